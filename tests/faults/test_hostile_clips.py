"""Clips that want to do harm, or are nonsense: refused with one message each, in no time, and nothing in them runs.

The seeds below are what a coverage-guided fuzzer started from and what it, or a person, found; each once crashed the
process, filled its memory, ended in a traceback or gave nonsense.
"""

import enum
import io
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, clip_from_values, load_motion
from mimickit.anim.plain_data import RefusedError, read_npz, read_pickle
from mimickit.util import logging
from mimickit.util.failures import UserError
from tools.convert_class_clip import clip_from_object
from tools.convert_class_clip import main as convert_class_clip
from tools.convert_gmr import main as convert_gmr

ROOT = Path(__file__).resolve().parents[2]
HUMANOID = load_character_model(ROOT / "data/assets/humanoid/humanoid.xml")
WALK = ROOT / "data/motions/humanoid/humanoid_walk.pkl"
ROWS = [[float(10 * i + j) for j in range(8)] for i in range(3)]


def clip_data(**changes):
    return {"loop_mode": 1, "fps": 30, "frames": ROWS, **changes}


def refused(path, data):
    """The message that a file of these bytes, or of this value pickled, is refused with."""
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
    with pytest.raises(UserError) as caught:
        load_motion(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


# --- what would crash the process or fill its memory ------------------------------------------------------------------

DTYPE = b"cnumpy\ndtype\n(S'%s'\nI00\nI01\ntR(I3\nS'%s'\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I%d\nt" + DTYPE + b"I00\n%stb."


def binary(data):
    return b"B" + struct.pack("<I", len(data)) + data


HARMFUL = {
    "object pointers of bytes": (b"(dS'loop_mode'\nI1\nsS'fps'\nI30\nsS'frames'\n"
                                 + ARRAY[:-1] % (2, b"O8", b"|", binary(b"A" * 16)) + b"s.", "an array of the type O8"),
    "a structure of objects": (ARRAY % (1, b"V8", b"|", binary(b"A" * 8)), "an array of the type V8"),
    "memory as it lies": (b"cnumpy\nndarray\n((I9\nI9\nttR.", "it calls 'numpy.ndarray'"),
    "fewer bytes than numbers": (ARRAY % (9, b"f8", b"<", binary(b"A" * 16)), "an array of the shape [9] and type "),
    "more numbers than memory": (ARRAY % (2**40, b"f8", b"<", binary(b"")), "an array of a shape that is none"),
    "a shape below zero": (ARRAY % (-1, b"f8", b"<", binary(b"")), "an array of a shape that is none"),
    "a long double": (ARRAY % (1, b"f16", b"<", binary(b"A" * 16)), "an array of the type f16"),
    "complex numbers": (ARRAY % (1, b"c16", b"<", binary(b"A" * 16)), "an array of the type c16"),
    "a state for a function": (b"c_codecs\nencode\n(N}S'__defaults__'\n(S'x'\ntstb.", "it gives a state to something"),
    "a state for a list": (b"](N}S'x'\nNstb.", "it gives a state to something"),
    "a memo of 34 GB": (b"\x80\x02]r\xff\xff\xff\x7f0}.", "lacks loop_mode"),
    "a memo of 34 GB, in text": (b"]p2147483647\n0}.", "lacks loop_mode"),
    "a key that overflows the stack": (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
                                       "neither text nor a small number"),
    "keys of one hash": (b"\x80\x02}\x8a\x08" + struct.pack("<q", 2**61 - 1) + b"Ns.",  # n of them took n^2 steps
                         "neither text nor a small number"),
    "names of one hash": (b"]p%d\n." % (2**61 - 1), "it names a value by 2305843009213693951"),
    "an encoding of a million brackets": (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0a)" + b"2\x86" * 20 + b"\x86R.",
                                          "text in an encoding other than latin-1 and utf-8"),
    "a set that overflows the stack": (b"\x80\x04\x8f()" + b"\x85" * 100_000 + b"\x90.", "the operation EMPTY_SET"),
    "an item for an array": (ARRAY[:-1] % (2, b"f8", b"<", binary(b"A" * 16)) + b"I0\nI1\ns.", "it sets items of"),
    "8 GB of text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**33) + b"x.", "damaged"),
    "5,000 digits": (b"\x80\x02}(X\x03\x00\x00\x00fpsI" + b"9" * 5000 + b"\nu.", "damaged"),
    "an extension": (b"\x80\x02\x82\x01.", "the operation EXT1"),
    "a pickle that ends early": (b"\x80\x04]\x94(", "damaged"),
    "nothing on the stack": (b"R.", "it takes a value where there is none"),
    "a tensor in a tensor": (b"ctorch.storage\n_load_from_bytes\n(" + binary(b"ctorch.storage\n_load_from_bytes\n.")
                             + b"tR.", "it refers to 'torch.storage._load_from_bytes'"),
    "a tensor of other code": (b"ctorch.storage\n_load_from_bytes\n(" + binary(b"cos\nsystem\n(S'true'\ntR.")
                               + b"tR.", "it refers to 'os.system'"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_pickles(tmp_path, name):
    data, message = HARMFUL[name]
    assert message in refused(tmp_path / "clip.pkl", data)


def test_rows_of_changing_lengths_are_looked_at_once(monkeypatch):
    """A thousand rows after each one were looked at to see whether they are alike: a clip of 20 MB took minutes."""
    looked, frombuffer = [], np.frombuffer
    monkeypatch.setattr(np, "frombuffer", lambda data, kind, count, place: looked.append(count) or frombuffer(
        data, kind, count, place))
    number = b"G" + struct.pack(">d", 1.5)
    rows = (b"]\x94(" + number + b"e]\x94(" + number + number + b"e") * 1000
    assert read_pickle(b"\x80\x04](" + rows + b"e.") == [[1.5], [1.5, 1.5]] * 1000
    assert sum(looked) <= 4000
    looked.clear()
    assert read_pickle(pickle.dumps([[1.5, 2.5]] + [[0.5 * i, 1.5] for i in range(1, 5000)], 4))[-1] == [2499.5, 1.5]
    assert len(looked) < 200


def test_a_row_that_is_a_million_rows(tmp_path):
    """Lists of lists that are one and the same: 10^9 numbers in a hundred bytes."""
    rows = [0.0] * 10
    for _ in range(8):
        rows = [rows] * 10
    path = tmp_path / "clip.pkl"
    assert "frame 0 holds something other than numbers: a list" in refused(path, clip_data(frames=rows))
    row = [0.0] * 50_000
    assert "numbers; at most 67,108,864 are read" in refused(tmp_path / "clip.pkl", clip_data(frames=[row] * 50_000))
    assert "1,000,001 frames; at most 1,000,000 are read" in refused(
        tmp_path / "clip.pkl", clip_data(frames=np.zeros((1_000_001, 6), np.int8)))


def npz(path, *, header=None, compression=zipfile.ZIP_DEFLATED, size=0):
    """An archive whose frames have this header and ``size`` zeros behind it."""
    data = io.BytesIO()
    np.savez(data, loop_mode=1, fps=30)
    with zipfile.ZipFile(data, "a", compression) as archive, archive.open("frames.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (3, 8)} | header)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    path.write_bytes(data.getvalue())
    return data.getvalue()


@pytest.mark.parametrize(("header", "size", "message"), [
    ({"shape": (2**41, 2)}, 0, "a shape that is none"),
    ({"shape": (10**6, 10**4)}, 0, "at most 67,108,864 numbers are read"),
    ({"shape": (3, 9)}, 0, "of the shape [3, 9] and type float32 with 0 bytes"),
    ({"descr": "|O"}, 0, "an array of the type |O"),
    ({"descr": "<U4"}, 0, "an array of the type <U4"),
    ({"shape": (2**18, 70)}, 70 * 2**20, "bytes unpacked; at most 67,108,864 are read"),
])
def test_harmful_archives(tmp_path, header, size, message):
    assert message in refused(tmp_path / "clip.npz", npz(tmp_path / "clip.npz", header=header, size=size))


def test_other_members_of_an_archive_are_not_read(tmp_path):
    np.savez(tmp_path / "clip.npz", **clip_data(), names=np.array(["a"]), objects=np.array([{}], dtype=object))
    assert load_motion(tmp_path / "clip.npz").num_frames == 3


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"fps": 10**400}, "has fps inf; expected a number from 1 to 1000"),
    ({"fps": 1e-3}, "expected a number from 1 to 1000"),
    ({"fps": 1001}, "expected a number from 1 to 1000"),
    ({"fps": True}, "fps must be a number, found bool"),
    ({"fps": "30"}, "fps must be a number, found str"),
    ({"fps": 30j}, "it refers to 'builtins.complex'"),
    ({"loop_mode": True}, "loop_mode must be a number, found bool"),
    ({"frames": np.array(3.0)}, "has no frames, but a ndarray for them"),
    ({"frames": np.float32(3.0)}, "has no frames, but a float for them"),
    ({"frames": 3}, "has no frames, but a int for them"),
    ({"frames": np.zeros((3, 8), dtype=bool)}, "its frames are of the type bool; needed are numbers"),
    ({"frames": np.zeros((3, 8), dtype=complex)}, "an array of the type c16"),
    ({"frames": np.full((3, 8), "1.5")}, "an array of the type U3"),
    ({"frames": [["1.5"] * 8]}, "frame 0 holds something other than numbers: a str"),
    ({"frames": [*ROWS, [*[0.0] * 7, True]]}, "frame 3 holds something other than numbers: a bool"),
    ({"frames": [*ROWS, [10**400] * 8]}, "a whole number beyond all floats"),
    ({"frames": [*ROWS, [1e38] * 8]}, "frame 3, column 0 is 1e+38; allowed are -10000 to 10000 (as are 7 more)"),
    ({"frames": np.zeros((3, 8, 1))}, "found the shape [3, 8, 1]"),
    ({"frames": np.zeros((0, 8))}, "has no frames"),
    ({"frames": np.zeros((3, 5))}, "frame 0 has 5 numbers"),
])
def test_numbers_that_make_no_sense(tmp_path, changes, message):
    assert message in refused(tmp_path / "clip.pkl", clip_data(**changes))


# --- what is no regular file ------------------------------------------------------------------------------------------


def test_pipes_devices_folders_and_names_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.pkl")
    (tmp_path / "folder.pkl").mkdir()
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name, message in (("pipe.pkl", "a pipe or a device"), ("zero.npz", "a pipe or a device"),
                          ("folder.pkl", "is a folder"), ("a\0b.pkl", "cannot be the name"), ("x" * 5000, "too long")):
        with pytest.raises(UserError, match=message):
            load_motion(tmp_path / name)


def test_a_clip_that_is_too_large(tmp_path):
    with (tmp_path / "clip.pkl").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match=r"clip\.pkl: 1,073,741,824 bytes; at most 67,108,864 are read"):
        load_motion(tmp_path / "clip.pkl")


# --- clips as they are found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("fps", [torch.tensor(30), torch.tensor([30.0]), torch.tensor(30, dtype=torch.float64)])
def test_tensors_of_torch(tmp_path, protocol, fps):
    """MimicKit's humanoid_double_kong has such a rate."""
    frames = torch.tensor(ROWS, dtype=torch.float64)
    for given in (frames, frames.t().contiguous().t(), torch.cat([frames, frames])[3:], list(frames)[:3]):
        if isinstance(given, list):
            given = [row.tolist() for row in given]
        (tmp_path / "clip.pkl").write_bytes(pickle.dumps(clip_data(fps=fps, frames=given), protocol=protocol))
        clip = load_motion(tmp_path / "clip.pkl")
        assert clip.fps == 30
        np.testing.assert_array_equal(clip.frames, np.array(ROWS, dtype=np.float32))


def test_tensors_that_lie(tmp_path):
    good = pickle.dumps(clip_data(frames=torch.zeros(3, 8)), protocol=4)
    for place in range(0, len(good), 2):
        for value in (0xFF, good[place] ^ 1):
            (tmp_path / "clip.pkl").write_bytes(good[:place] + bytes([value]) + good[place + 1:])
            try:
                frames = load_motion(tmp_path / "clip.pkl").frames
            except UserError:
                continue
            assert np.abs(frames).max() <= 1e4


def walk_with(change):
    rows = np.array(pickle.loads(WALK.read_bytes())["frames"])
    change(rows)
    return rows


def test_a_joint_that_is_nan_throughout(tmp_path, capsys):
    """MimicKit's humanoid_walk has such a neck; its exponential map makes no rotation of it."""
    logging.warn_once.cache_clear()
    neck = slice(9, 12)
    rows = walk_with(lambda rows: rows.__setitem__((slice(None), neck), np.nan))
    for frames in (rows, rows.tolist()):
        (tmp_path / "walk.pkl").write_bytes(pickle.dumps(clip_data(frames=frames)))
        clip = load_motion(tmp_path / "walk.pkl", HUMANOID)
        assert (clip.frames[:, neck] == 0).all()
        others = np.delete(np.arange(34), np.arange(9, 12))
        np.testing.assert_array_equal(clip.frames[:, others], rows[:, others].astype(np.float32))
    assert capsys.readouterr().err == (f"warning: motion {tmp_path}/walk.pkl: NaN in all {len(rows)} frames of joint "
                                       "neck (columns 9 to 11); read as no rotation\n")
    with pytest.raises(UserError, match="frame 0, column 9 is not finite"):
        load_motion(tmp_path / "walk.pkl")


@pytest.mark.parametrize(("where", "message"), [
    ((slice(1, None), slice(9, 12)), "frame 1, column 9 is not finite"),
    ((slice(None), slice(9, 11)), r"joint neck \(columns 9 to 11\) is not finite in some"),
    ((slice(None), 3), "frame 0, column 3 is not finite"),
    ((slice(None), 2), "frame 0, column 2 is not finite"),
    ((5, 20), "frame 5, column 20 is not finite"),
])
def test_nan_anywhere_else(tmp_path, where, message):
    (tmp_path / "walk.pkl").write_bytes(pickle.dumps(clip_data(
        frames=walk_with(lambda rows: rows.__setitem__(where, np.nan)))))
    with pytest.raises(UserError, match=message):
        load_motion(tmp_path / "walk.pkl", HUMANOID)


class Mode(enum.Enum):
    CLAMP = 0
    WRAP = 1


class Plain:
    def __init__(self):
        self.loop_mode, self.fps, self.frames = Mode.WRAP, torch.tensor(30), np.array(ROWS)


class Slots:
    __slots__ = ("_fps", "_frames", "_loop_mode")

    def __init__(self):
        self._loop_mode, self._fps, self._frames = Mode.WRAP, 30.0, ROWS


class Items(dict):
    def __init__(self):
        super().__init__(loop_mode=1, fps=np.float32(30), frames=np.array(ROWS))


Tuple = namedtuple("Tuple", "loop_mode fps frames")
LAYOUTS = {
    "attributes": Plain, "slots": Slots, "dictionary": Items, "tuple": lambda: Tuple(Mode.WRAP, 30, np.array(ROWS)),
    "inside a dictionary": lambda: {"name": "walk", "motion": Plain()}, "in a list": lambda: [Plain()],
    "plain with an enumeration": lambda: clip_data(loop_mode=Mode.WRAP),
    "rows of tensors": lambda: clip_data(loop_mode=Mode.WRAP, frames=[torch.tensor(row) for row in ROWS]),
}


@pytest.mark.parametrize(("layout", "protocol"), [
    (layout, protocol) for layout in LAYOUTS for protocol in range(2 if layout == "slots" else 0, 6)])  # as Python can
def test_clips_of_classes(tmp_path, monkeypatch, layout, protocol):
    source, target = tmp_path / "old.pkl", tmp_path / "new.pkl"
    source.write_bytes(pickle.dumps(LAYOUTS[layout](), protocol=protocol))
    with pytest.raises(UserError, match=r"refers to .*tools/convert_class_clip\.py"):
        load_motion(source)
    monkeypatch.setattr(sys, "argv", ["convert", "--input_file", str(source), "--output_file", str(target)])
    assert convert_class_clip() == 0
    clip = load_motion(target)
    assert (clip.loop_mode, clip.fps) == (LoopMode.WRAP, 30)
    np.testing.assert_array_equal(clip.frames, np.array(ROWS, dtype=np.float32))


def test_a_class_clip_without_a_neck_stays_readable(tmp_path, monkeypatch):
    source, target = tmp_path / "old.pkl", tmp_path / "new.pkl"
    frames = walk_with(lambda rows: rows.__setitem__((slice(None), slice(9, 12)), np.nan))
    source.write_bytes(pickle.dumps(types.SimpleNamespace(loop_mode=Mode.WRAP, fps=30, frames=frames)))
    monkeypatch.setattr(sys, "argv", ["convert", "--input_file", str(source), "--output_file", str(target)])
    assert convert_class_clip() == 0
    assert (load_motion(target, HUMANOID).frames[:, 9:12] == 0).all()


# --- the fuzzer's short sister ----------------------------------------------------------------------------------------


def read_any(data):
    """What the fuzzer runs. Anything but the two refusals is a finding."""
    try:
        if data[:2] == b"PK":
            clip = clip_from_values(read_npz(data, ("loop_mode", "fps", "frames"), "x"), Path("x"))
        else:
            clip = clip_from_object(read_pickle(data, unknown=lambda name: None), Path("x"))
    except (UserError, RefusedError) as error:
        assert len(str(error)) < 3000
    else:
        assert clip.frames.dtype == np.float32 and clip.frames.shape[1] >= 6 and 1 <= clip.fps <= 1000


def test_a_thousand_mutations():
    archive = io.BytesIO()
    np.savez_compressed(archive, **clip_data())
    seeds = [archive.getvalue(), *(data for data, _ in HARMFUL.values() if len(data) < 5000)]
    for protocol in range(6):
        for data in (clip_data(), clip_data(frames=np.array(ROWS)), clip_data(fps=torch.tensor(3)), Plain()):
            seeds.append(pickle.dumps(data, protocol=protocol))
    draw = random.Random(7)
    for seed in seeds:
        read_any(seed)
    for _ in range(1000):
        data, other = bytearray(draw.choice(seeds)), draw.choice(seeds)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[place] = draw.randrange(256)
            elif kind == 1:
                del data[place:place + draw.randint(1, 8)]
            elif kind == 2:
                start = draw.randrange(len(other))
                data[place:place] = other[start:start + draw.randint(1, 40)]
            else:
                data[place:place + 4] = struct.pack("<I", draw.choice((0, 1, 2**31 - 1, 2**32 - 1)))
            data = data or bytearray(b".")
        read_any(bytes(data))


def test_a_hostile_clip_for_a_converter(tmp_path, capsys):
    (tmp_path / "evil.pkl").write_bytes(HARMFUL["object pointers of bytes"][0])
    assert convert_gmr(["--input_file", str(tmp_path / "evil.pkl"), "--output_file", str(tmp_path / "out.pkl")]) == 2
    assert "an array of the type O8" in capsys.readouterr().err and not (tmp_path / "out.pkl").exists()
