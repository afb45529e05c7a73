"""Clip files: what is read, and everything that is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, MotionClip, check_dofs, load_motion, save_motion
from mimickit.util.failures import AssetMissingError, UserError

HUMANOID = Path(__file__).parents[3] / "data/assets/humanoid/humanoid.xml"
ROWS = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0]]


class Evil:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def write(path, data, protocol=4):
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


def clip_data(**changes):
    return {"loop_mode": 1, "fps": 30, "frames": ROWS, **changes}


@pytest.mark.parametrize("name", ["clip.pkl", "clip.npz"])
def test_round_trip(tmp_path, name):
    clip = MotionClip(LoopMode.WRAP, 29.5, np.array(ROWS, dtype=np.float32))
    save_motion(tmp_path / name, clip)
    back = load_motion(tmp_path / name)
    assert back.loop_mode is LoopMode.WRAP and back.fps == 29.5 and back.num_frames == 2
    assert back.frames.dtype == np.float32
    np.testing.assert_array_equal(back.frames, clip.frames)
    assert back.length == pytest.approx(1 / 29.5)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing half written is left


def test_saved_pickles_need_no_class(tmp_path):
    save_motion(tmp_path / "clip.pkl", MotionClip(LoopMode.CLAMP, 30.0, np.array(ROWS, dtype=np.float32)))

    class Bare(pickle.Unpickler):
        def find_class(self, module, name):
            raise AssertionError(f"{module}.{name}")

    with (tmp_path / "clip.pkl").open("rb") as file:
        data = Bare(file).load()
    assert data["loop_mode"] == 0 and data["fps"] == 30 and isinstance(data["frames"][0][0], float)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_are_read_in_every_protocol(tmp_path, protocol):
    data = clip_data(frames=np.array(ROWS), fps=np.float64(60), loop_mode=np.int64(0), comment="ignored")
    clip = load_motion(write(tmp_path / "clip.pkl", data, protocol))
    assert clip.fps == 60 and clip.loop_mode is LoopMode.CLAMP
    np.testing.assert_array_equal(clip.frames, np.array(ROWS, dtype=np.float32))


def test_the_older_name_of_numpy_is_known(tmp_path):
    path = write(tmp_path / "clip.pkl", clip_data(frames=np.array(ROWS)), protocol=2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_motion(path).frames, np.array(ROWS, dtype=np.float32))


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_not_run(tmp_path, protocol):
    target = tmp_path / "was_here"
    path = write(tmp_path / "clip.pkl", clip_data(frames=Evil(target)), protocol)
    with pytest.raises(UserError) as error:
        load_motion(path)
    assert not target.exists()
    assert "open" in str(error.value) and str(path) in str(error.value) and "nothing else is loaded" in str(error.value)


@pytest.mark.parametrize("text", [
    b"cos\nsystem\n(S'touch was_here'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"c_codecs\nencode\n(Vx\nVzip\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.", b"", b"not a pickle", b"\x80\x04]\x94",
    b"cnumpy._core.multiarray\n_reconstruct\n(I1\ntR."])
def test_hostile_and_damaged_files(tmp_path, text):
    path = tmp_path / "clip.pkl"
    path.write_bytes(text)
    with pytest.raises(UserError, match="refused"):
        load_motion(path)


@pytest.mark.parametrize("data, message", [
    ([1, 2], "holds a list"),
    ({"fps": 30}, "lacks loop_mode, frames; it has fps"),
    (clip_data(loop_mode=2), "loop_mode 2; allowed are 0 (clamp) and 1 (wrap)"),
    (clip_data(loop_mode=None), "loop_mode must be a number, found NoneType"),
    (clip_data(fps=0), "fps 0"),
    (clip_data(fps=float("nan")), "fps nan"),
    (clip_data(fps="fast"), "fps must be a number"),
    (clip_data(frames=[]), "has no frames"),
    (clip_data(frames=None), "has no frames"),
    (clip_data(frames=[ROWS[0], ROWS[1][:-1]]), "frame 1 has 6 numbers, frame 0 has 7"),
    (clip_data(frames=[[1.0, 2.0]]), "frame 0 has 2 numbers"),
    (clip_data(frames=[1.0, 2.0]), "frame 0 has 0 numbers"),
    (clip_data(frames=[ROWS[0], [*ROWS[1][:-1], float("nan")]]), "frame 1, column 6 is not finite"),
    (clip_data(frames=[[1e300] * 6]), "frame 0, column 0 is not finite (as are 5 more)"),
    (clip_data(frames=[["a"] * 6]), "other than numbers"),
    (clip_data(frames=[[[1.0]] * 6]), "frame 0 holds something other than numbers: a list"),
])
def test_wrong_content(tmp_path, data, message):
    path = write(tmp_path / "clip.pkl", data)
    with pytest.raises(UserError) as error:
        load_motion(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(AssetMissingError, match=r"nothing\.pkl"):
        load_motion(tmp_path / "nothing.pkl")


def test_dofs_must_fit():
    model = load_character_model(HUMANOID)
    check_dofs(MotionClip(LoopMode.CLAMP, 30.0, np.zeros((1, 34), dtype=np.float32)), model, "a.pkl")
    with pytest.raises(UserError, match=r"a\.pkl has 29 dofs \(rows of 35 numbers\).* has 28"):
        check_dofs(MotionClip(LoopMode.CLAMP, 30.0, np.zeros((1, 35), dtype=np.float32)), model, "a.pkl")
