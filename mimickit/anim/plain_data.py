"""Numbers and containers out of pickles and ``.npz`` archives; nothing in a file is executed, imported or trusted.

Python's own unpickler can be made to write memory, to fill it, or to overflow the stack, also when it may look up
hardly any name. So the operations of a pickle, as the standard library's ``pickletools`` reads them, are followed here:
on the stack lie numbers, text, bytes, lists, tuples, dictionaries with plain keys, and stand-ins for the names of NumPy
and torch by which arrays are pickled. Arrays are of booleans, integers and floats (kinds b, i, u, f); they are made
from the bytes in the file once these are found to be as many as shape and type need.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimickit.util.failures import UserError
from mimickit.util.reading import MAX_CLIP_BYTES, MAX_CLIP_NUMBERS, MAX_CLIP_STEPS, at_most


class RefusedError(ValueError):
    """What the data holds is damaged, or is nothing that is read."""


@dataclass(frozen=True, slots=True)
class Name:
    """In place of the class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def refuse_name(name: Name) -> None:
    """What to do with a name that is not known: nothing else than arrays and plain values is made."""
    raise RefusedError(f"it refers to '{name}'; clips hold only plain containers, numbers and NumPy arrays, so nothing "
                       "else is loaded from them. A clip of an older asset pack: tools/convert_class_clip.py reads it "
                       "safely")


# --- arrays -----------------------------------------------------------------------------------------------------------

_DTYPE = re.compile(r"([<>=|]?)(b1|[iu][1248]|f[248])")
_SHOWN = 80  # characters of a foreign text in a message


class _DType:
    """A data type of NumPy: made of its code, then told its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        found = _DTYPE.fullmatch(code) if isinstance(code, str) else None
        if found is None:
            raise RefusedError(f"an array of the type {str(code)[:_SHOWN] if isinstance(code, str) else type(code)}; "
                               "arrays of booleans, integers and floats of up to 64 bits are read")
        self.order, self.code = found[1] or "=", found[2]

    def set_state(self, state: Any) -> None:
        """(version, byte order, then five entries that say nothing for simple types, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise RefusedError("a data type with fields; arrays of plain numbers are read")
        order = _text(state[1])
        if order not in ("<", ">", "=", "|"):
            raise RefusedError("a data type of an unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """A NumPy array: made empty or of bytes, in some protocols told its content afterwards."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray | None = None) -> None:
        self.values = values

    def set_state(self, state: Any) -> None:
        """(version, shape, data type, whether columns come first, bytes); the version is left out in very old ones."""
        if not isinstance(state, tuple) or not 4 <= len(state) <= 5:
            raise RefusedError("an array without shape, type and bytes")
        shape, dtype, fortran, raw = state[-4:]
        self.values = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """The array of this shape whose numbers are the bytes ``raw``; there are as many as it takes."""
    if not isinstance(dtype, _DType):
        raise RefusedError("an array without a data type")
    sizes = _sizes(shape)
    kind, raw = dtype.numpy(), _raw(raw)
    if order not in ("C", "F"):
        raise RefusedError("an array of an unknown order")
    if math.prod(sizes) * kind.itemsize != len(raw):
        raise RefusedError(f"an array of the shape {list(sizes)} and type {kind} with {len(raw):,} bytes")
    return np.frombuffer(raw, dtype=kind).reshape(sizes, order=order) if raw else np.zeros(sizes, kind)


def _sizes(shape: Any) -> tuple[int, ...]:
    """A shape: up to eight whole numbers that are not negative, and not many numbers in all."""
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise RefusedError("an array of a shape that is none")
    if math.prod(max(n, 1) for n in shape) > MAX_CLIP_NUMBERS:
        raise RefusedError(f"an array of the shape {list(shape)}; at most {MAX_CLIP_NUMBERS:,} numbers are read")
    return shape


def _raw(data: Any) -> bytes:
    """Bytes; pickles of Python 2 spell them as text."""
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise RefusedError("an array without bytes")
    return bytes(data)


def _text(data: Any) -> Any:
    return data.decode("latin-1") if isinstance(data, bytes) else data


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> _Array:
    if axes is not None:
        raise RefusedError("an array whose axes are permuted; save a contiguous one")
    return _Array(_array(raw, dtype, shape, order))


def _scalar(dtype: Any, raw: Any) -> bool | int | float:
    return _array(raw, dtype, ()).item()


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """``_codecs.encode``, by which old protocols spell bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8") or not isinstance(text, str):
        raise RefusedError("text in an encoding other than latin-1 and utf-8")
    return text.encode(encoding)


# --- tensors of torch -------------------------------------------------------------------------------------------------

_STORAGES = {"BoolStorage": "b1", "ByteStorage": "u1", "CharStorage": "i1", "ShortStorage": "i2", "IntStorage": "i4",
             "LongStorage": "i8", "HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8"}
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_VERSION = 1001


@dataclass(frozen=True, slots=True)
class _Storage:
    values: np.ndarray  # [n]


def _load_storage(data: Any) -> _Storage:
    """A tensor's numbers, which torch pickles as a file of its own: five pickles, a count, then the numbers."""
    raw = _raw(data)
    if raw[:2] == b"PK":
        raise RefusedError("a tensor of torch in a form that is not read; save numbers: float(fps), frames.tolist()")
    file = io.BytesIO(raw)
    head = [_Machine(file, refuse_name, _STORAGE_NAMES).run() for _ in range(5)]
    kind = head[3][1] if isinstance(head[3], tuple) and len(head[3]) >= 2 else None
    if head[0] != _TORCH_MAGIC or head[1] != _TORCH_VERSION or not isinstance(kind, Name) or kind.module != "torch":
        raise RefusedError("a tensor of torch in a form that is not read; save numbers: float(fps), frames.tolist()")
    dtype = _DType(_STORAGES.get(kind.name))
    dtype.order = "<"
    count, rest = int.from_bytes(file.read(8), "little"), file.read()
    return _Storage(_array(rest, dtype, (count,)))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Array:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise RefusedError("a tensor of torch without numbers")
    sizes, strides, (first,) = _sizes(size), _sizes(stride), _sizes(offset)
    values = storage.values
    last = first + sum((n - 1) * step for n, step in zip(sizes, strides))
    if len(sizes) != len(strides) or (0 not in sizes and last >= len(values)):
        raise RefusedError("a tensor of torch that is larger than its numbers")
    if 0 in sizes:
        return _Array(np.zeros(sizes, values.dtype))
    steps = [step * values.itemsize for step in strides]
    return _Array(np.lib.stride_tricks.as_strided(values[first:], sizes, steps, writeable=False))


_STORAGE_NAMES: dict[tuple[str, str], Callable[..., Any] | None] = {("torch", name): None for name in _STORAGES}

# What a pickle may name, and what stands for it: a function that makes a value of the arguments, or None where the name
# itself is an argument.
_NAMES: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): lambda code, *_: _DType(_text(code)),
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
for _core in ("numpy.core", "numpy._core"):  # the name changed with NumPy 2
    _NAMES[_core + ".multiarray", "_reconstruct"] = lambda cls, shape, kind: _Array()
    _NAMES[_core + ".multiarray", "scalar"] = _scalar
    _NAMES[_core + ".numeric", "_frombuffer"] = _frombuffer


# --- pickles ----------------------------------------------------------------------------------------------------------

# A list of floats as pickle writes it, a frame that is read at once: what names it (its memo), then its numbers.
_ROW = re.compile(rb"\](\x94|q.|r....|)\(((?:G.{8})+)e", re.DOTALL)
_FLOAT = np.dtype([("operation", "u1"), ("value", ">f8")])
_BATCH = 1000  # rows that are read at once, at most
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEYS = (str, bytes, type(None))  # of dictionaries: hashing deep tuples would overflow the stack
_MAX_NUMBER = 2**32  # of a key that is one, and of what names a value: larger ones can all be given the same hash
_MARK = object()


class StandIn:
    """In place of an instance of an unknown class: what it was made of, and the state it was given."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: Name, args: tuple) -> None:
        self.name, self.args = name, args
        self.state: dict[Any, Any] = {}
        self.items: list[Any] = []  # of a list of a foreign class

    def set_state(self, state: Any) -> None:
        """A dictionary, or that of ``__dict__`` and that of ``__slots__``."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)


class _Machine:
    """Follows the operations of one pickle in ``file``.

    Args:
        unknown: called with every name that is not in ``names``; raises, or the name stands for a class whose
            instances are kept as :class:`StandIn`.
    """

    def __init__(self, file: io.BytesIO, unknown: Callable[[Name], None], names: dict) -> None:
        self.file, self.unknown, self.names = file, unknown, names
        self.data = file.getvalue()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.batch = 1  # rows that may be alike
        self.handled = 0  # bytes given to makers: the same ones may be named again and again

    def run(self) -> Any:
        """What the pickle holds. Raises RefusedError, or nearly anything where it is damaged."""
        stack = self.stack
        for step, (operation, argument, place) in enumerate(pickletools.genops(self.file)):
            if step > MAX_CLIP_STEPS:
                raise RefusedError(f"more than {MAX_CLIP_STEPS:,} operations")
            name = operation.name
            if name == "EMPTY_LIST":
                if not self._rows(place):
                    stack.append([])
            elif name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "STOP":
                return self._pop()
            else:
                act = _ACTIONS.get(name)
                if act is None:
                    raise RefusedError(f"it uses the operation {name}, which no clip needs")
                act(self, argument)
        raise RefusedError("it ends early")

    def _rows(self, place: int) -> bool:
        """Read the list of floats that begins at ``place``, and those of the same length that follow at once."""
        row = _ROW.match(self.data, place)
        if row is None:
            return False
        memo, numbers, length = row[1], len(row[2]) // _FLOAT.itemsize, row.end() - place
        kind = np.dtype([("before", "u1", len(memo) + 2), ("numbers", _FLOAT, numbers), ("after", "u1")])
        count = min((len(self.data) - place) // length, self.batch) if memo == b"\x94" else 1
        rows = np.frombuffer(self.data, kind, count, place)
        alike = ((rows["before"] == rows["before"][0]).all(1) & (rows["after"] == rows["after"][0])
                 & (rows["numbers"]["operation"] == ord("G")).all(1))
        self.batch = min(2 * self.batch, _BATCH) if alike.all() else 1
        rows = rows if alike.all() else rows[:alike.argmin()]
        lists = rows["numbers"]["value"].tolist()
        if memo:
            first = len(self.memo) if memo == b"\x94" else int.from_bytes(memo[1:], "little")
            self.memo.update(enumerate(lists, first))
        self.stack += lists
        self.file.seek(place + length * len(lists))
        return True

    def _pop(self) -> Any:
        if not self.stack or (value := self.stack.pop()) is _MARK:
            raise RefusedError("it takes a value where there is none")
        return value

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedError("it needs a value where there is none")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        stack = self.stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                values = stack[place + 1:]
                del stack[place:]
                return values
        raise RefusedError("it takes values up to a mark that is not there")

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        onto = self._top()
        if isinstance(onto, StandIn):
            onto.items += values
        elif type(onto) is list:
            onto += values
        else:
            raise RefusedError("it appends to something other than a list")

    def _set_items(self, values: list[Any]) -> None:
        onto = self._top()
        onto = onto.state if isinstance(onto, StandIn) else onto
        if type(onto) is not dict:
            raise RefusedError("it sets items of something other than a dictionary")
        onto.update(_pairs(values))

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("it names a class by something other than text")
        found = Name(module[:_SHOWN], name[:_SHOWN])
        if (module, name) not in self.names:
            self.unknown(found)
        self.stack.append(found)

    def _call(self, made_by: Any, args: Any) -> None:
        if not isinstance(made_by, Name) or not isinstance(args, tuple):
            raise RefusedError("it calls something that is no function, or without arguments")
        key = (made_by.module, made_by.name)
        if key not in self.names:
            self.stack.append(StandIn(made_by, args))
        elif (maker := self.names[key]) is None:
            raise RefusedError(f"it calls '{made_by}'")
        else:
            self.handled += sum(len(arg) for arg in args if isinstance(arg, (str, bytes, bytearray)))
            if self.handled > 4 * MAX_CLIP_BYTES:
                raise RefusedError("it makes too much of the same bytes")
            self.stack.append(maker(*args))

    def _reduce(self) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _new_with_keywords(self) -> None:
        keywords, args = self._pop(), self._pop()
        self._call(self._pop(), args)
        if isinstance(made := self.stack[-1], StandIn):
            made.set_state(keywords)

    def _instance(self) -> None:
        made_by, *args = self._since_mark() or [None]
        self._call(made_by, tuple(args))

    def _instance_of(self, argument: Any) -> None:
        args = self._since_mark()
        self._name(*argument.split(" ", 1))
        self._call(self._pop(), tuple(args))

    def _build(self) -> None:
        state, onto = self._pop(), self._top()
        if not isinstance(onto, (StandIn, _Array, _DType)):
            raise RefusedError("it gives a state to something that has none")
        onto.set_state(state)

    def _persistent(self) -> None:
        """What torch's files say of a storage; :func:`_load_storage` looks into it."""
        if not isinstance(self._top(), tuple):
            raise RefusedError("it refers to something outside itself")

    def _put(self, index: int) -> None:
        if not 0 <= index < _MAX_NUMBER:
            raise RefusedError(f"it names a value by {index}")
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedError("it refers to a value that it has not named")
        self.stack.append(self.memo[index])


def _pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    if len(values) % 2 or not all(map(_is_key, keys)):
        raise RefusedError("a dictionary with a key that is neither text nor a small number")
    return dict(zip(keys, values[1::2]))


def _is_key(key: Any) -> bool:
    return isinstance(key, _KEYS) or (isinstance(key, int) and abs(key) < _MAX_NUMBER)


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m._since_mark(),
    "DUP": lambda m, a: m.stack.append(m._top()),
    "LIST": lambda m, a: m.stack.append(m._since_mark()),
    "APPEND": lambda m, a: m._append([m._pop()]),
    "APPENDS": lambda m, a: m._append(m._since_mark()),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "TUPLE": lambda m, a: m.stack.append(tuple(m._since_mark())),
    "TUPLE1": lambda m, a: m._tuple(1),
    "TUPLE2": lambda m, a: m._tuple(2),
    "TUPLE3": lambda m, a: m._tuple(3),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "DICT": lambda m, a: m.stack.append(_pairs(m._since_mark())),
    "SETITEM": lambda m, a: m._set_items(list(reversed([m._pop(), m._pop()]))),
    "SETITEMS": lambda m, a: m._set_items(m._since_mark()),
    "GLOBAL": lambda m, a: m._name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m._name(*reversed([m._pop(), m._pop()])),
    "INST": lambda m, a: m._instance_of(a),
    "OBJ": lambda m, a: m._instance(),
    "REDUCE": lambda m, a: m._reduce(),
    "NEWOBJ": lambda m, a: m._reduce(),
    "NEWOBJ_EX": lambda m, a: m._new_with_keywords(),
    "BUILD": lambda m, a: m._build(),
    "BINPERSID": lambda m, a: m._persistent(),
    "PUT": lambda m, a: m._put(a),
    "BINPUT": lambda m, a: m._put(a),
    "LONG_BINPUT": lambda m, a: m._put(a),
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m._top()),
    "GET": lambda m, a: m._get(a),
    "BINGET": lambda m, a: m._get(a),
    "LONG_BINGET": lambda m, a: m._get(a),
}


def read_pickle(data: bytes, unknown: Callable[[Name], None] = refuse_name) -> Any:
    """What a pickle holds: plain values, arrays (also inside a list or a dictionary), and :class:`StandIn` for
    instances of classes that ``unknown`` lets pass (:func:`arrays_in` makes arrays of what those hold).

    Raises:
        RefusedError: it is damaged, or holds anything else; the message says what.
    """
    try:
        return _with_arrays(_Machine(io.BytesIO(data), unknown, _NAMES).run())
    except RefusedError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything; nothing of it has an effect
        raise RefusedError(f"damaged: {str(error)[:200] or type(error).__name__}") from None


def _with_arrays(data: Any) -> Any:
    """``data`` with arrays for their stand-ins: itself, or in the values of a dictionary, or in lists there."""
    if type(data) is dict:
        return {key: arrays_in(value) for key, value in data.items()}
    return arrays_in(data)


def arrays_in(data: Any) -> Any:
    """``data`` with arrays for their stand-ins: itself, or in a list. Raises RefusedError for one without content."""
    if type(data) in (list, tuple) and any(isinstance(value, _Array) for value in data):
        return [_filled(value) for value in data]
    return _filled(data)


def _filled(data: Any) -> Any:
    if isinstance(data, _Array):
        if data.values is None:
            raise RefusedError("an array without content")
        return data.values
    return data


# --- archives ---------------------------------------------------------------------------------------------------------


def read_npz(data: bytes, keys: Collection[str], where: object) -> dict[str, np.ndarray | None]:
    """The arrays of an ``.npz`` archive that ``keys`` name; None for the others that are there, which are not read.

    Headers are looked at before the numbers behind them.

    Raises:
        RefusedError: it is damaged, or holds other arrays than those of numbers.
        UserError: unpacked it is larger than what is read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {key: info for key, info in members.items() if key in keys}
            at_most(where, sum(info.file_size for info in wanted.values()), MAX_CLIP_BYTES, "bytes unpacked")
            return {key: _read_npy(archive, info) if key in wanted else None for key, info in members.items()}
    except (RefusedError, UserError):
        raise
    except Exception as error:  # a damaged archive may raise nearly anything
        raise RefusedError(f"damaged: {str(error)[:200] or type(error).__name__}") from None


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"{info.filename[:_SHOWN]} is compressed in a way that NumPy does not use")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read_header is None:
            raise RefusedError(f"{info.filename[:_SHOWN]} has the version {version}")
        shape, fortran, kind = read_header(file)
        dtype = _DType(kind.str)
        return _array(file.read(info.file_size + 1), dtype, _sizes(shape), "F" if fortran else "C")
