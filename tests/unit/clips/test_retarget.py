"""Retargeting: its steps, SMPL in full, a robot by inverse kinematics."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode, MotionClip, load_motion
from mimickit.clips.check import MOTIONS, measure, problems
from mimickit.clips.cleanup import repeated
from mimickit.clips.feet import Feet, feet_of, soles
from mimickit.clips.retarget import (
    ROBOTS,
    Solver,
    held,
    lengthened,
    make_targets,
    resampled,
    retarget_robot,
    retarget_smpl,
    shortened,
    smoothed,
    within_reach,
)
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, unpack
from mimickit.util import rotations as rot
from mimickit.util.failures import UserError
from tools.retarget import main


@pytest.fixture(scope="module")
def human():
    return Shape(ASSETS / CHARACTERS["humanoid"])


@pytest.fixture(scope="module")
def smpl():
    return Shape(ASSETS / CHARACTERS["smpl"])


@pytest.fixture(scope="module")
def walk():
    return load_motion(MOTIONS / "humanoid/humanoid_walk.pkl")


def standing(frames=4):
    """The humanoid at rest with its arms hanging and its knees a little bent, soles on the ground."""
    rows = np.zeros((frames, 34), np.float32)
    rows[:, [20 + 1, 27 + 1]], rows[:, [23, 30]], rows[:, [25, 32]] = -0.2, 0.4, -0.2
    rows[:, 12], rows[:, 16] = np.pi / 2, -np.pi / 2
    rows[:, 2] = (0.421546 + 0.40987) * np.cos(0.2) + 0.05
    return MotionClip(LoopMode.CLAMP, 60.0, rows)


def test_resampling_keeps_length_and_ends(walk, human):
    motion = unpack(walk, human)
    out = resampled(motion, 60.0)
    assert len(out.root_pos) == 2 * len(motion.root_pos) - 1 and out.fps == 60.0
    torch.testing.assert_close(out.joint_rot[::2], motion.joint_rot)
    torch.testing.assert_close(out.root_pos[1], 0.5 * (motion.root_pos[0] + motion.root_pos[1]))
    assert resampled(motion, 47.0).fps == pytest.approx(60 / (38 / 30))  # 1.2667 s: 60 frames


def test_three_periods_and_back(walk, human):
    motion = unpack(walk, human)
    three = lengthened(motion)
    assert len(three.root_pos) == 3 * 38 + 1
    stride = motion.root_pos[-1] - motion.root_pos[0]
    torch.testing.assert_close(three.root_pos[-1], motion.root_pos[0] + 3 * stride)
    again = shortened(three)
    torch.testing.assert_close(again.joint_rot[:-1], motion.joint_rot[:-1])
    assert again.root_pos[0, :2].norm() == 0
    torch.testing.assert_close(again.root_pos[-1, :2], stride[:2])
    torch.testing.assert_close(repeated(motion, 1).root_pos, motion.root_pos)


def test_smoothing_keeps_what_is_smooth_and_tames_a_jump(human):
    motion = unpack(standing(41), human)
    torch.testing.assert_close(smoothed(motion, 0.03).joint_rot, motion.joint_rot)
    jump = motion.joint_rot.clone()
    jump[20:, 1] = rot.exp_map_to_quat(torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64))
    out = smoothed(replace(motion, joint_rot=jump), 0.03).joint_rot[:, 1]
    steps = rot.quat_diff_angle(out[1:], out[:-1])
    assert steps.max() < 0.6 / 3 and steps.sum() == pytest.approx(0.6, abs=1e-3)


def test_the_root_is_lowered_where_a_leg_is_too_short(human):
    """Sole at z = 0 (ankle 0.05), hip at 1.0: 0.95 m; the leg may be 0.9 long, so the root comes down by 0.05."""
    root = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).repeat(30, 1)
    turn = torch.zeros(30, 4, dtype=torch.float64)
    turn[:, 3] = 1.0
    hips = torch.tensor([[0.0, -0.1, 0.0], [0.0, 0.1, 0.0]], dtype=torch.float64)
    pos = hips.repeat(30, 1, 1) + torch.tensor([0.0, 0.0, 0.05], dtype=torch.float64)
    feet = Feet(pos, turn.unsqueeze(1).repeat(1, 2, 1))
    reach = torch.tensor([0.9, 0.9], dtype=torch.float64)
    np.testing.assert_allclose(within_reach(root, turn, feet, hips, reach, human, 60.0)[:, 2], 0.95, atol=1e-9)
    assert (within_reach(root, turn, feet, hips, 2 * reach, human, 60.0) == root).all()
    high = Feet(pos + torch.tensor([0.0, 0.0, 0.2], dtype=torch.float64), feet.rot)
    assert (within_reach(root, turn, high, hips, reach - 0.3, human, 60.0) == root).all()  # feet in the air may stretch


def test_feet_are_held_near_the_ground_only(human):
    pos = torch.zeros(3, 2, 3, dtype=torch.float64)
    pos[:, :, 2] = 0.05 + torch.tensor([0.0, 0.075, 0.3], dtype=torch.float64).unsqueeze(1)
    turn = torch.zeros(3, 2, 4, dtype=torch.float64)
    turn[..., 3] = 1.0
    np.testing.assert_allclose(held(Feet(pos, turn), human)[:, 0], [1.0, 0.5, 0.0], atol=1e-9)


def test_smpl_stands_like_the_humanoid(human, smpl):
    clip = retarget_smpl(standing(), human, smpl)
    pos, turn = smpl.kinematics(unpack(clip, smpl))
    names = smpl.character.body_names
    hand = pos[0, names.index("L_Wrist")] - pos[0, names.index("L_Shoulder")]
    assert hand[2] / hand.norm() < -0.98  # arms hang
    assert abs(measure(clip, smpl).lowest) < 1e-4
    np.testing.assert_allclose(turn[0, names.index("L_Ankle"), :3], 0.0, atol=1e-3)  # soles flat
    assert clip.frames[0, 10] == pytest.approx(0.4, abs=0.25) and clip.frames[0, 10] > 0.1  # left knee bends forward


def test_smpl_spreads_the_spine(human, smpl):
    source = standing()
    source.frames[:, 6:9] = (0.3, 0.0, 0.6)
    frames = retarget_smpl(source, human, smpl).frames[0]
    for first in (30, 33, 36):  # Torso, Spine, Chest
        np.testing.assert_allclose(frames[first:first + 3], (0.1, 0.0, 0.2), atol=1e-5)


def test_the_shipped_smpl_walk_is_reproduced(human, smpl, walk):
    clip, shipped = retarget_smpl(walk, human, smpl), load_motion(MOTIONS / "smpl/smpl_walk.pkl")
    assert (clip.fps, clip.loop_mode) == (shipped.fps, shipped.loop_mode)
    np.testing.assert_allclose(clip.frames, shipped.frames, atol=1e-4)
    assert problems(measure(clip, smpl)) == []


@pytest.mark.parametrize("char, scale", [("g1", 0.787), ("hightorque_pi_plus", 0.340)])
def test_targets_are_scaled(human, char, scale):
    """Leg lengths 0.654 and 0.283 m against the humanoid's 0.831 m."""
    shape = Shape(ASSETS / CHARACTERS[char])
    source = standing()
    source.frames[:, 0] = np.arange(4) / 60  # 1 m/s
    targets = make_targets(unpack(source, human), human, shape, ROBOTS[char])
    step = targets.pelvis_pos[1] - targets.pelvis_pos[0]
    np.testing.assert_allclose(step, (scale / 60, 0.0, 0.0), atol=2e-4)
    low = shape.sole_heights(targets.feet.pos, targets.feet.rot)
    np.testing.assert_allclose(low, 0.0, atol=1e-6)
    middle = soles(targets.feet, shape)
    assert (middle[:, 0, 1] > 0.05 * scale).all() and (middle[:, 1, 1] < -0.05 * scale).all()  # left, right
    np.testing.assert_allclose(targets.knees, 0.4, atol=1e-6)


def test_robots_by_inverse_kinematics(human):
    """A standing humanoid becomes a standing G1; without the solver the message says what to install."""
    shape = Shape(ASSETS / CHARACTERS["g1"])
    if importlib.util.find_spec("mink") is None or importlib.util.find_spec("daqp") is None:
        with pytest.raises(UserError, match=r"pip install -e \.\[tools\]"):
            Solver(ROBOTS["g1"], shape)
        return
    clip = retarget_robot(standing(), human, shape, ROBOTS["g1"])
    report = measure(clip, shape)
    assert problems(report) == [] and abs(report.lowest_foot) < 2e-3
    assert 0.6 < clip.frames[0, 2] < 0.79
    knee = clip.frames[:, [9, 15]]
    assert (knee > 0.1).all() and (knee < 0.8).all()
    np.testing.assert_allclose(knee[:, 0], knee[:, 1], atol=0.02)
    pos, _ = shape.kinematics(unpack(clip, shape))
    hand = pos[-1, shape.character.body_names.index("left_wrist_yaw_link")]
    assert hand[1] > 0.15 and hand[2] < clip.frames[-1, 2] + 0.1  # hangs beside the hip


@pytest.mark.parametrize("char, prefix", [("g1", "g1"), ("hightorque_pi_plus", "pi_plus"), ("smpl", "smpl")])
def test_walks_follow_the_humanoid(human, walk, char, prefix):
    """Shipped walks: as far as the source, scaled; feet alternate as in the source."""
    shape = Shape(ASSETS / CHARACTERS[char])
    clip = load_motion(MOTIONS / char / f"{prefix}_walk.pkl")
    motion, source = unpack(clip, shape), resampled(unpack(walk, human), 60.0)
    assert clip.length == pytest.approx(walk.length, abs=1e-3)
    scale = float((motion.root_pos[-1, 0] - motion.root_pos[0, 0]) / (source.root_pos[-1, 0] - source.root_pos[0, 0]))
    assert scale == pytest.approx({"g1": 0.787, "pi_plus": 0.340, "smpl": 0.935}[prefix], rel=0.02)
    left = shape.sole_heights(feet_of(motion, shape).pos, feet_of(motion, shape).rot)[:, 0]
    wanted = human.sole_heights(feet_of(source, human).pos, feet_of(source, human).rot)[:, 1]
    assert np.corrcoef(left, wanted)[0, 1] > 0.9


def test_command_line(tmp_path, capsys):
    assert main(["smpl", "--clips", "run", "--out-dir", str(tmp_path)]) == 0
    assert "| smpl_run | 49 | 60 | wrap |" in capsys.readouterr().out
    assert load_motion(tmp_path / "smpl_run.pkl").num_frames == 49
    assert main(["smlp"]) == 2 and "did you mean 'smpl'" in capsys.readouterr().err
    assert main(["smpl", "--clips", "fly"]) == 2 and "humanoid_fly.pkl" in capsys.readouterr().err
