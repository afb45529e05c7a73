"""Clips of older packs, pickled as objects: refused by the library, read by the converter without running anything."""

import enum
import os
import pickle
import sys
import types

import numpy as np
import pytest

from mimickit.anim.motion import LoopMode, load_motion
from mimickit.util.failures import UserError
from tools.convert_class_clip import main

FRAMES = np.arange(3 * 34, dtype=np.float32).reshape(3, 34) / 100


@pytest.fixture
def old_pack():
    """A module as older packs had it; it is gone again when their files are read."""
    module = types.ModuleType("old_anim")

    class Mode(enum.Enum):
        CLAMP = 0
        WRAP = 1

    class Motion:
        def __init__(self, frames):
            self._loop_mode, self._fps, self._frames = Mode.WRAP, 30, frames

    for cls in (Mode, Motion):
        cls.__module__, cls.__qualname__ = "old_anim", cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules["old_anim"] = module
    yield module
    sys.modules.pop("old_anim", None)


def convert(monkeypatch, source, target):
    monkeypatch.setattr(sys, "argv", ["convert", "--input_file", str(source), "--output_file", str(target)])
    return main()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_object_becomes_a_clip(tmp_path, monkeypatch, old_pack, protocol):
    source = tmp_path / "old.pkl"
    source.write_bytes(pickle.dumps(old_pack.Motion(FRAMES), protocol=protocol))
    del sys.modules["old_anim"]
    with pytest.raises(UserError, match=r"old_anim\.Motion.*tools/convert_class_clip\.py"):
        load_motion(source)
    assert convert(monkeypatch, source, tmp_path / "new.pkl") == 0
    clip = load_motion(tmp_path / "new.pkl")
    assert (clip.loop_mode, clip.fps) == (LoopMode.WRAP, 30)
    np.testing.assert_array_equal(clip.frames, FRAMES)


class Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_nothing_in_a_hostile_file_runs(tmp_path, monkeypatch, capsys):
    mark = tmp_path / "mark"
    for name, call in (("system", (os.system, (f"touch {mark}",))), ("eval", (eval, (f"open({str(mark)!r}, 'w')",)))):
        source = tmp_path / f"{name}.pkl"
        source.write_bytes(pickle.dumps({"loop_mode": 0, "fps": 30, "frames": Evil(call)}))
        assert convert(monkeypatch, source, tmp_path / "new.pkl") == 2
    assert not mark.exists() and not (tmp_path / "new.pkl").exists()


def test_an_object_without_frames_is_named(tmp_path, monkeypatch, capsys, old_pack):
    motion = old_pack.Motion(FRAMES)
    del motion._frames
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(motion))
    assert convert(monkeypatch, tmp_path / "old.pkl", tmp_path / "new.pkl") == 2
    assert "no frames in Motion" in capsys.readouterr().err


def test_an_object_made_of_nothing_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "old.pkl").write_bytes(b"ccopy_reg\n_reconstructor\n)R.")
    assert convert(monkeypatch, tmp_path / "old.pkl", tmp_path / "new.pkl") == 2
    assert "no loop_mode, fps, frames in _reconstructor" in capsys.readouterr().err
