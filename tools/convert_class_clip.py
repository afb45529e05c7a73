"""Convert a clip of an older asset pack, pickled as an object of a class, into a clip of plain values.

    python tools/convert_class_clip.py --input_file old.pkl --output_file new.pkl

The library refuses such files: unpickling an object may run anything. Here every class and function that the file names
is replaced by an empty stand-in that only keeps what it is given, so nothing of it is imported or run. Loop mode, rate
and frames are then taken from what the stand-ins hold: attributes (with or without underscores in front, in
``__dict__`` or ``__slots__``), the items of a dictionary, or the three values of a named tuple, of the pickled object
itself or of one that it holds (``{"motion": ...}``, a list of one clip). Frames and rate may be tensors of torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimickit.anim.motion import KEYS, LoopMode, MotionClip, clip_from_values, read_clip_file
from mimickit.anim.plain_data import RefusedError, StandIn, arrays_in, read_pickle
from mimickit.clips.convert import run
from mimickit.util.failures import UserError

MAX_DEPTH = 3  # objects within objects that are looked into
MAX_LOOKED_INTO = 100  # values of each


def convert(args: argparse.Namespace) -> MotionClip:
    """The clip inside.

    Raises:
        UserError: damaged, or no loop mode, rate and frames are in it.
    """
    path = args.input_file
    try:
        return clip_from_object(read_pickle(read_clip_file(path), unknown=lambda name: None), path)
    except RefusedError as error:
        raise UserError(f"{path} was refused: {error}") from None


def clip_from_object(data: Any, path: Path) -> MotionClip:
    """The clip in what :func:`read_pickle` made of a file. Raises UserError where there is none."""
    level, outermost = [data], None
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for value in level:
            found = _named(value)
            if found is not None and all(key in found for key in KEYS):
                values = {key: arrays_in(found[key]) for key in KEYS}
                return clip_from_values({**values, "loop_mode": _loop_mode(values["loop_mode"])}, path,
                                        empty_columns=True)
            outermost = found if outermost is None else outermost
            inside += list(_values(value))[:MAX_LOOKED_INTO]
        level = inside[:MAX_LOOKED_INTO]
    if outermost is None:
        raise UserError(f"{path} holds a {_kind(data)}, neither an object nor a dictionary")
    missing = [key for key in KEYS if key not in outermost]
    raise UserError(f"{path}: no {', '.join(missing)} in {_kind(data)}, which has "
                    f"{', '.join(list(outermost)[:20]) or 'nothing'}")


def _kind(data: Any) -> str:
    return data.name.name.rpartition(".")[2] if isinstance(data, StandIn) else type(data).__name__


def _named(data: Any) -> dict[str, Any] | None:
    """What an object or a dictionary holds, by name; None for other values."""
    if isinstance(data, StandIn):
        values: Any = data.args  # a tuple with names is made of its values alone
        if data.name.name == "_reconstructor" and data.args:  # of old protocols: class, built-in base, the base's value
            values = data.args[-1]
        if isinstance(values, tuple):
            values = dict(zip(KEYS, values)) if len(values) == len(KEYS) else {}
        data = {**(values if isinstance(values, Mapping) else {}), **data.state}
    if not isinstance(data, Mapping):
        return None
    return {str(key)[:80].lstrip("_"): value for key, value in data.items()}


def _values(data: Any) -> Any:
    if isinstance(data, StandIn):
        return [*data.state.values(), *data.args, *data.items]
    return data.values() if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else ()


def _loop_mode(value: Any) -> Any:
    """An enumeration's member is pickled as its class called with the value, or looked up by its name."""
    if isinstance(value, StandIn):
        state = value.state.get("_value_", value.state.get("value"))
        value = value.args[-1] if value.args and state is None else state
    if isinstance(value, str) and value.upper() in LoopMode.__members__:
        return int(LoopMode[value.upper()])
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--input_file", type=Path, required=True)
    parser.add_argument("--output_file", type=Path, required=True, help=".pkl or .npz")
    return run(convert, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
