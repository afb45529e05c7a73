"""The converter of DeepMimic clips, its clean-up, and the clips shipped with the project."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode, MotionClip, load_motion
from mimickit.clips.check import measure
from mimickit.clips.cleanup import clean
from mimickit.clips.shape import Shape, pack, unpack
from mimickit.util import rotations as rot
from mimickit.util.failures import AssetMissingError, UserError
from tools.import_deepmimic import CHARACTER, convert, list_clips, main, read_source

MOTIONS = Path(__file__).parents[3] / "data/motions/humanoid"
QUATS = (4, 8, 12, 16, 21, 25, 30, 35, 39)


@pytest.fixture(scope="module")
def shape():
    return Shape(CHARACTER)


def rest_row(duration=1 / 30):
    row = np.zeros(44)
    row[0] = duration
    row[list(QUATS)] = 1.0
    return row


def write(path, rows, loop="wrap"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"Loop": loop, "Frames": np.asarray(rows).tolist()}))
    return path


def source(tmp_path, rows, name="humanoid_x", loop="wrap"):
    return read_source(write(tmp_path / "clip.txt", rows, loop), name)


def turn(axis, angle):
    """wxyz"""
    return [math.cos(angle / 2), *(math.sin(angle / 2) * np.array(axis))]


def test_axes_and_columns(tmp_path):
    """Every source column moves to its place: Y up becomes Z up, Z right becomes -Y."""
    row = rest_row()
    row[1:4] = (1.0, 2.0, 3.0)  # forward, up, right
    row[4:8] = turn((0, 1, 0), 0.5)  # about up: yaw
    row[8:12] = turn((1, 0, 0), 0.1)
    row[12:16] = turn((0, 0, 1), 0.2)  # about right: pitches the other way about left
    row[16:20], row[20], row[21:25] = turn((1, 0, 0), 0.3), -0.7, turn((0, 0, 1), 0.4)
    row[29], row[43] = 0.8, 0.9
    row[30:34], row[34], row[35:39] = turn((0, 1, 0), 0.6), -1.1, turn((1, 0, 0), -0.2)
    clip = convert(source(tmp_path, [row, row]))
    assert clip.fps == 30 and clip.loop_mode is LoopMode.WRAP and clip.frames.shape == (2, 34)
    quarter = math.pi / 2
    expected = [1, -3, 2, 0, 0, 0.5, 0.1, 0, 0, 0, -0.2, 0, quarter, 0, 0, 0.8, -quarter, 0, 0, -0.9,
                0.3, 0, 0, 0.7, 0, -0.4, 0, 0, 0, 0.6, 1.1, -0.2, 0, 0]
    np.testing.assert_allclose(clip.frames[0], expected, atol=1e-6)


def test_shoulders_hang_at_rest(tmp_path, shape):
    """The source's rest has the arms down: the hands end under the shoulders."""
    pos, _ = shape.kinematics(unpack(convert(source(tmp_path, [rest_row()] * 2)), shape))
    names = shape.character.body_names
    for side in ("right", "left"):
        down = pos[0, names.index(f"{side}_hand")] - pos[0, names.index(f"{side}_upper_arm")]
        np.testing.assert_allclose(down, (0, 0, -0.274788 - 0.258947), atol=1e-6)


def test_shoulder_rotation_applies_after_the_rest_pose(tmp_path, shape):
    row = rest_row()
    row[25:29] = turn((0, 0, 1), 0.5)  # about right: swings the arm forward
    pos, _ = shape.kinematics(unpack(convert(source(tmp_path, [row] * 2)), shape))
    names = shape.character.body_names
    arm = pos[0, names.index("right_hand")] - pos[0, names.index("right_upper_arm")]
    np.testing.assert_allclose(arm / arm.norm(), (math.sin(0.5), 0, -math.cos(0.5)), atol=1e-6)


def test_quaternions_are_normalised(tmp_path):
    row = rest_row()
    row[8:12] = 1.42 * np.array(turn((1, 0, 0), 0.1))
    np.testing.assert_allclose(convert(source(tmp_path, [row, row])).frames[0, 6:9], (0.1, 0, 0), atol=1e-6)


def test_a_long_frame_is_resampled(tmp_path):
    rows = [rest_row(1 / 60) for _ in range(5)]
    for i, (x, angle) in enumerate([(0, 0), (1, 0.1), (2, 0.2), (4, 0.4), (5, 0.5)]):
        rows[i][1] = x
        rows[i][8:12] = turn((1, 0, 0), angle)
    rows[2][0] = 2 / 60
    rows[4][0] = 0
    clip = convert(source(tmp_path, rows))
    assert clip.fps == 60
    np.testing.assert_allclose(clip.frames[:, 0], [0, 1, 2, 3, 4, 5], atol=1e-4)
    np.testing.assert_allclose(clip.frames[:, 6], [0, 0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-4)


@pytest.mark.parametrize("name, loop, mode", [
    ("humanoid_walk", "wrap", LoopMode.WRAP), ("humanoid_kick", "none", LoopMode.CLAMP),
    ("humanoid_walker_turn_left0", "wrap", LoopMode.CLAMP)])
def test_loop_modes(tmp_path, name, loop, mode):
    assert convert(source(tmp_path, [rest_row()] * 2, name, loop)).loop_mode is mode


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"Frames": [[1, 2]]}', '{"Frames": "x"}',
                                  '{"Frames": [], "Loop": "wrap"}'])
def test_wrong_sources(tmp_path, text):
    (tmp_path / "clip.txt").write_text(text)
    with pytest.raises(UserError, match=r"clip\.txt"):
        read_source(tmp_path / "clip.txt", "x")
    with pytest.raises(UserError, match="Loop is 'sometimes'"):
        source(tmp_path, [rest_row()], loop="sometimes")


def test_clips_are_found_by_name(tmp_path):
    for file in ("humanoid3d_walk.txt", "walker/turn_left0.txt", "dog_trot.txt"):
        write(tmp_path / file, [rest_row()])
    assert list(list_clips([tmp_path])) == ["humanoid_walk", "humanoid_walker_turn_left0"]
    with pytest.raises(AssetMissingError, match="nowhere"):
        list_clips([tmp_path / "nowhere"])


def test_command_line(tmp_path, capsys):
    write(tmp_path / "in/humanoid3d_stand.txt", [rest_row() + np.eye(44)[2] * 0.9] * 3)
    out = tmp_path / "out"
    assert main([str(tmp_path / "in"), "--list"]) == 0
    assert "humanoid_stand" in capsys.readouterr().out and not out.exists()
    assert main([str(tmp_path / "in"), "--out-dir", str(out)]) == 0
    assert "| humanoid_stand | 3 | 30 | wrap |" in capsys.readouterr().out
    assert load_motion(out / "humanoid_stand.pkl").num_frames == 3
    assert main([str(tmp_path / "in"), "--clips", "humanoid_stnd"]) == 2
    assert "did you mean 'humanoid_stand'" in capsys.readouterr().err


def walk(shape, frames=61, drift=0.0):
    """Strides at 60 fps; at the end an elbow, an ankle and the heading are off by ``drift`` rad, the height by 2 cm."""
    rows = np.zeros((frames, 34), dtype=np.float32)
    phase = np.linspace(0, 2 * math.pi, frames)
    rows[:, 0], rows[:, 2] = 1.2 * np.linspace(0, 1, frames), 0.85
    rows[:, 21], rows[:, 28] = -0.3 - 0.3 * np.cos(phase), -0.3 + 0.3 * np.cos(phase)
    rows[:, 23], rows[:, 30] = 0.6, 0.6
    ramp = np.linspace(0, 1, frames)
    rows[:, 2] += 0.02 * ramp * bool(drift)
    rows[:, 5] += drift * ramp
    rows[:, 15] = 1.0 + drift * ramp
    rows[:, 25] += drift * ramp
    return MotionClip(LoopMode.WRAP, 60.0, rows)


def test_seams_close(shape):
    before, after = walk(shape, drift=0.4), clean(walk(shape, drift=0.4), shape)
    assert measure(before, shape).seam_rot == pytest.approx(0.4, abs=1e-3)
    report = measure(after, shape)
    assert report.seam_rot < 1e-3 and report.seam_pos < 1e-4
    assert after.frames.shape == before.frames.shape and after.fps == before.fps
    assert report.max_speed < measure(before, shape).max_speed + 8.0  # the elbow's gap is led away, not jumped over


def test_nothing_sinks(shape):
    low = walk(shape)
    low.frames[:, 2] -= 0.1 * np.sin(np.linspace(0, math.pi, 61)) ** 2  # bends its path into the ground
    assert measure(low, shape).lowest_foot < -0.05
    report = measure(clean(low, shape), shape)
    assert report.lowest_foot > -0.01 and report.lowest > -0.01


def test_clean_clips_stay_as_they_are(shape):
    """Solving the legs and leading over the seam change nothing where nothing is wrong (but the height)."""
    once = clean(walk(shape), shape)
    again = clean(once, shape)
    moved = np.abs(once.frames - again.frames)
    assert moved[:, [0, 1, 3, 4, 5, *range(6, 34)]].max() < 0.02 and moved[:, 2].max() < 0.01


def test_hyperextended_knees_are_bent(shape):
    clip = walk(shape)
    clip.frames[:, 23] = -0.2
    assert measure(clip, shape).hinge_violation == pytest.approx(0.2, abs=1e-6)
    assert measure(clean(clip, shape), shape).hinge_violation == 0


def test_unpack_and_pack_are_inverse(shape):
    clip = walk(shape, drift=0.3)
    np.testing.assert_allclose(pack(unpack(clip, shape), shape).frames, clip.frames, atol=1e-6)


SHIPPED = {
    "backflip": (29, 16, 1), "cartwheel": (164, 60, 1), "crawl": (177, 60, 1), "dance_a": (98, 60, 1),
    "dance_b": (153, 60, 1), "getup_facedown": (183, 60, 0), "getup_faceup": (227, 60, 0), "jump": (107, 60, 1),
    "kick": (47, 30, 0), "punch": (65, 30, 0), "roll": (122, 60, 1), "run": (25, 30, 1), "spin": (107, 24, 1),
    "spinkick": (78, 60, 1), "walk": (39, 30, 1), "walker_0walk_forward": (38, 30, 1),
    "walker_turn_left0": (38, 30, 0), "walker_turn_left1": (38, 30, 0), "walker_turn_right0": (38, 30, 0),
    "walker_turn_right1": (38, 30, 0),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_clips_are_sound(shape, name):
    frames, fps, loop = SHIPPED[name]
    clip = load_motion(MOTIONS / f"humanoid_{name}.pkl")
    assert (clip.num_frames, clip.fps, int(clip.loop_mode)) == (frames, fps, loop)
    report = measure(clip, shape)
    assert report.lowest > -0.02 and report.max_speed < 40.0 and report.hinge_violation < 1e-3
    assert report.seam_rot < 0.05 and report.seam_pos < 0.01
    root = torch.from_numpy(clip.frames[:, :6]).double()
    assert torch.diff(root[:, :3], dim=0).norm(dim=-1).max() * clip.fps < 6.0  # m/s
    quat = rot.exp_map_to_quat(root[:, 3:])
    assert rot.quat_diff_angle(quat[1:], quat[:-1]).max() * clip.fps < 20.0  # rad/s
