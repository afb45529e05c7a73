"""Lookups in clips, against a hand-computed clip of four frames."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mimickit.anim.character import Character
from mimickit.anim.motion import LoopMode, MotionClip, load_motion, save_motion
from mimickit.anim.motion_lib import MotionLib, list_motions, missing_motions
from mimickit.util import rotations as rot
from mimickit.util.failures import AssetMissingError, UserError

HUMANOID = Path(__file__).parents[3] / "data/assets/humanoid/humanoid.xml"
ABDOMEN_X, ELBOW = 6, 15  # columns


@pytest.fixture(scope="module")
def humanoid():
    return Character.load(HUMANOID)


def frames(count=4):
    rows = np.zeros((count, 34), dtype=np.float32)
    rows[:, 2] = 0.9
    return rows


def four_frames(mode):
    rows = frames()
    rows[:, 0:3] = [(0, 0, 0.90), (0.2, 0.1, 0.92), (0.5, 0.1, 0.91), (0.9, 0, 0.88)]
    rows[:, 5] = [0, 0.1, 0.3, 0.2]
    rows[:, ABDOMEN_X] = [0, 0.2, 0.4, 0]
    rows[:, ELBOW] = [0, 0.5, 1.0, 0]
    return MotionClip(mode, 10.0, rows)




def library(tmp_path, humanoid, *clips, weights=None, **options):
    names = [tmp_path / f"clip{i}.pkl" for i in range(len(clips))]
    for name, clip in zip(names, clips):
        save_motion(name, clip)
    if len(clips) == 1 and weights is None:
        return MotionLib(names[0], humanoid, **options)
    dataset = tmp_path / "dataset.yaml"
    lines = [f"  - {{file: {name}, weight: {w}}}" for name, w in zip(names, weights or [1.0] * len(clips))]
    dataset.write_text("motions:\n" + "\n".join(lines))
    return MotionLib(dataset, humanoid, **options)


def at(lib, time, clip=0):
    ids = torch.tensor([clip])
    return type(lib.frame(ids, torch.tensor([time])))(*(x[0] for x in lib.frame(ids, torch.tensor([time]))))


def close(actual, expected, tol=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tol, rtol=0)


def dof(humanoid, frame):
    values = humanoid.rot_to_dof(frame.joint_rot)
    return values[..., ABDOMEN_X - 6], values[..., ELBOW - 6]


@pytest.mark.parametrize("time, phase, root_pos, quat, vel, abdomen, elbow, elbow_vel", [
    (-0.04, 0.866667, (-0.16, 0.04, 0.892), (0.119712, 0.992809), (4, -1, -0.3), 0.16, 0.4, -10),
    (0.05, 0.166667, (0.1, 0.05, 0.91), (0.024997, 0.999688), (2, 1, 0.2), 0.1, 0.25, 5),
    (0.13, 0.433333, (0.29, 0.1, 0.917), (0.079915, 0.996802), (3, 0, -0.1), 0.26, 0.65, 5),
    (0.25, 0.833333, (0.7, 0.05, 0.895), (0.124675, 0.992198), (4, -1, -0.3), 0.2, 0.5, -10),
    (0.34, 0.133333, (0.98, 0.04, 0.908), (0.019999, 0.9998), (2, 1, 0.2), 0.08, 0.2, 5),
    (0.65, 0.166667, (1.9, 0.05, 0.91), (0.024997, 0.999688), (2, 1, 0.2), 0.1, 0.25, 5),
])
def test_wrap(tmp_path, humanoid, time, phase, root_pos, quat, vel, abdomen, elbow, elbow_vel):
    lib = library(tmp_path, humanoid, four_frames(LoopMode.WRAP))
    frame = at(lib, time)
    close(lib.phase(torch.tensor([0]), torch.tensor([time])), [phase])
    close(frame.root_pos, root_pos)
    close(frame.root_rot, (0, 0, *quat))
    close(frame.root_vel, vel, 1e-4)
    close(dof(humanoid, frame)[0], abdomen)
    close(dof(humanoid, frame)[1], elbow)
    close(frame.dof_vel[ELBOW - 6], elbow_vel, 1e-4)


def test_frame_velocities(tmp_path, humanoid):
    lib = library(tmp_path, humanoid, four_frames(LoopMode.CLAMP))
    for time, vel, spin, abdomen, elbow in [
        (0.05, (2, 1, 0.2), 1, 2, 5), (0.15, (3, 0, -0.1), 2, 2, 5), (0.25, (4, -1, -0.3), -1, -4, -10),
    ]:
        frame = at(lib, time)
        close(frame.root_vel, vel, 1e-4)
        close(frame.root_ang_vel, (0, 0, spin), 1e-4)
        close(frame.dof_vel[ABDOMEN_X - 6], abdomen, 1e-4)
        close(frame.dof_vel[ELBOW - 6], elbow, 1e-4)
    close(lib.lengths, [0.3])


def test_clamp_stands_still_outside(tmp_path, humanoid):
    """Outside its length a clamped clip holds its pose, and its velocities are zero."""
    still = library(tmp_path, humanoid, four_frames(LoopMode.CLAMP))
    moving = library(tmp_path, humanoid, four_frames(LoopMode.CLAMP), hold_still=False)
    for time, root_pos, z, phase, vel in [
        (-0.04, (0, 0, 0.9), 0.0, 0, (2, 1, 0.2)), (0.34, (0.9, 0, 0.88), 0.099833, 1, (4, -1, -0.3)),
        (7.0, (0.9, 0, 0.88), 0.099833, 1, (4, -1, -0.3)),
    ]:
        for lib in (still, moving):
            close(lib.phase(torch.tensor([0]), torch.tensor([time])), [float(phase)])
            close(at(lib, time).root_pos, root_pos)
            close(at(lib, time).root_rot[2], z)
        close(at(moving, time).root_vel, vel, 1e-4)
        frame = at(still, time)
        for velocity in (frame.root_vel, frame.root_ang_vel, frame.dof_vel):
            assert velocity.abs().max() == 0
    inside = at(still, 0.25)
    close(inside.root_vel, (4, -1, -0.3), 1e-4)
    close(inside.root_pos, (0.7, 0.05, 0.895))


def test_wrapped_clips_keep_moving(tmp_path, humanoid):
    lib = library(tmp_path, humanoid, four_frames(LoopMode.WRAP))
    close(at(lib, 300.05).root_vel, (2, 1, 0.2), 1e-4)


@pytest.mark.parametrize("mode", list(LoopMode))
def test_a_clip_of_one_frame_is_a_pose(tmp_path, humanoid, mode):
    """Length 0, phase 0, no motion, nothing undefined."""
    rows = frames(1)
    rows[0, 0] = 0.5
    lib = library(tmp_path, humanoid, MotionClip(mode, 30.0, rows))
    assert lib.lengths.tolist() == [0.0]
    for time in (-1.0, 0.0, 2.0):
        frame = at(lib, time)
        close(frame.root_pos, (0.5, 0, 0.9))
        assert all(torch.isfinite(x).all() for x in frame) and frame.root_vel.abs().max() == 0
        assert lib.phase(torch.tensor([0]), torch.tensor([time])).item() == 0
    assert lib.sample_times(torch.tensor([0, 0])).tolist() == [0, 0]


def test_clips_do_not_leak_into_each_other(tmp_path, humanoid):
    """The last frame's velocity repeats the one before; the next clip in the table has no influence."""
    far = frames(3)
    far[:, 0] = 100.0
    lib = library(tmp_path, humanoid, four_frames(LoopMode.CLAMP), MotionClip(LoopMode.CLAMP, 60.0, far),
                  four_frames(LoopMode.WRAP))
    assert lib.num_motions == 3 and lib.num_frames.tolist() == [4, 3, 4]
    close(lib.lengths, [0.3, 2 / 60, 0.3])
    close(at(lib, 0.3 - 1e-6).root_vel, (4, -1, -0.3), 1e-4)
    assert at(lib, 0.02, clip=1).root_vel.abs().max() == 0
    close(at(lib, 0.02, clip=1).root_pos, (100, 0, 0.9))
    close(at(lib, 0.65, clip=2).root_pos, (1.9, 0.05, 0.91))


def test_any_leading_shape(tmp_path, humanoid):
    lib = library(tmp_path, humanoid, four_frames(LoopMode.WRAP), four_frames(LoopMode.CLAMP))
    ids = torch.tensor([[0], [1], [0]])
    times = torch.tensor([0.05, 0.65])
    frame = lib.frame(ids, times)
    assert frame.root_pos.shape == (3, 2, 3) and frame.joint_rot.shape == (3, 2, 14, 4)
    assert frame.dof_vel.shape == (3, 2, 28) and lib.phase(*torch.broadcast_tensors(ids, times)).shape == (3, 2)
    close(frame.root_pos[0, 1], (1.9, 0.05, 0.91))
    close(frame.root_pos[1, 1], (0.9, 0, 0.88))


def test_sampling_follows_the_weights(tmp_path, humanoid):
    lib = library(tmp_path, humanoid, *[four_frames(LoopMode.WRAP)] * 4, weights=[0.0, 3.0, 1.0, 0.0])
    close(lib.weights, [0, 0.75, 0.25, 0])
    drawn = lib.sample_motions(4000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0 and counts[3] == 0
    assert abs(counts[1] / 4000 - 0.75) < 0.03  # 4 standard deviations


def test_sampled_times(tmp_path, humanoid):
    long = MotionClip(LoopMode.WRAP, 10.0, frames(31))
    lib = library(tmp_path, humanoid, four_frames(LoopMode.WRAP), long)
    ids = torch.arange(2).repeat(1000)
    times = lib.sample_times(ids, generator=torch.Generator().manual_seed(0))
    for clip, length in ((0, 0.3), (1, 3.0)):
        of = times[ids == clip]
        assert of.min() >= 0 and of.max() <= length
        assert abs(of.mean() / length - 0.5) < 0.04 and of.max() > 0.95 * length
    assert lib.sample_times(ids, rand_reset=False).abs().max() == 0


def test_turning_loops(tmp_path, humanoid):
    """By default a loop starts again in its own heading; with accumulate_yaw it goes on from where it turned to.

    The clip walks a quarter circle of radius 1 about (0, 1), so four periods come back to the start.
    """
    angle = np.linspace(0, math.pi / 2, 10)
    rows = frames(10)
    rows[:, 0], rows[:, 1], rows[:, 5] = np.sin(angle), 1 - np.cos(angle), angle
    clip = MotionClip(LoopMode.WRAP, 9.0, rows)  # 1 s
    plain = library(tmp_path, humanoid, clip)
    close(at(plain, 2.001).root_pos, (2, 2, 0.9), 3e-3)
    close(rot.heading(at(plain, 1.5).root_rot), math.pi / 4)
    turning = library(tmp_path, humanoid, clip, accumulate_yaw=True)
    for time in (-2.25, -0.5, 0.3, 1.5, 2.25, 7.9):
        frame = at(turning, time)
        a = time * math.pi / 2
        close(frame.root_pos, (math.sin(a), 1 - math.cos(a), 0.9), 5e-3)  # chords of the arc
        close(rot.wrap_angle(rot.heading(frame.root_rot) - a), 0.0, 1e-4)
        direction = torch.atan2(frame.root_vel[1], frame.root_vel[0])
        close(rot.wrap_angle(direction - a), 0.0, 0.1)  # velocities are those of the frame before
        close(frame.root_ang_vel, (0, 0, math.pi / 2), 1e-3)


def test_turning_loops_of_a_body_that_leans(tmp_path, humanoid):
    """The turn is that of the heading, applied about the world's vertical: the lean stays, period by period."""
    angle = torch.linspace(0, math.pi / 2, 10)
    lean = rot.axis_angle_to_quat(torch.tensor([0.3, 1.0, 0.0]), torch.tensor(0.6))
    rows = frames(10)
    rows[:, 0], rows[:, 1] = torch.sin(angle), 1 - torch.cos(angle)
    rows[:, 3:6] = rot.quat_to_exp_map(rot.quat_mul(rot.yaw_quat(angle), lean))
    clip = MotionClip(LoopMode.WRAP, 9.0, rows)  # 1 s
    turning = library(tmp_path, humanoid, clip, accumulate_yaw=True)
    for time in (-2.25, 0.3, 1.5, 2.25, 7.9):
        frame, a = at(turning, time), torch.tensor(time * math.pi / 2)
        assert rot.quat_diff_angle(frame.root_rot, rot.quat_mul(rot.yaw_quat(a), lean)) < 1e-3
        close(frame.root_pos, (math.sin(a), 1 - math.cos(a), 0.9), 5e-3)
        close(frame.root_ang_vel, (0, 0, math.pi / 2), 1e-3)
    plain = library(tmp_path, humanoid, clip)
    assert rot.quat_diff_angle(at(plain, 2.0 + 1e-4).root_rot, lean) < 1e-3


def test_straight_loops_do_not_depend_on_accumulate_yaw(tmp_path, humanoid):
    rows = frames(5)
    rows[:, 0] = np.arange(5) * 0.1
    clip = MotionClip(LoopMode.WRAP, 10.0, rows)
    plain, turning = library(tmp_path, humanoid, clip), library(tmp_path, humanoid, clip, accumulate_yaw=True)
    for time in (-0.7, 0.1, 3.33):
        close(at(plain, time).root_pos, at(turning, time).root_pos)


def test_all_missing_clips_are_named_at_once(tmp_path, humanoid):
    dataset = tmp_path / "d.yaml"
    save_motion(tmp_path / "here.pkl", four_frames(LoopMode.WRAP))
    dataset.write_text(f"motions: [{{file: {tmp_path}/a.pkl, weight: 1}}, {{file: {tmp_path}/here.pkl, weight: 1}}, "
                       f"{{file: {tmp_path}/b.pkl, weight: 1}}]")
    with pytest.raises(AssetMissingError) as error:
        MotionLib(dataset, humanoid)
    assert "2 of 3" in str(error.value) and "a.pkl" in str(error.value) and "b.pkl" in str(error.value)
    assert [p.name for p in missing_motions(dataset)] == ["a.pkl", "b.pkl"]


def test_all_wrong_clips_are_named_at_once(tmp_path, humanoid):
    short = MotionClip(LoopMode.WRAP, 10.0, frames()[:, :30])
    with pytest.raises(UserError) as error:
        library(tmp_path, humanoid, short, four_frames(LoopMode.WRAP), short)
    text = str(error.value)
    assert "clip0.pkl has 24 dofs" in text and "has 28" in text and "clip2.pkl" in text and "clip1.pkl" not in text


@pytest.mark.parametrize("text, message", [
    ("motions: []", "motions"), ("clips: 3", "unknown key 'clips'"), ("motions: [{file: a.pkl, weight: -1}]", "weight"),
    ("motions: [{file: a.pkl, weight: 0}]", "all weights are 0"), ("motions: [{weight: 1}]", "missing key"),
    ("motions: [{file: a.pkl, weight: .nan}]", "weight"),
])
def test_wrong_datasets(tmp_path, text, message):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        list_motions(tmp_path / "d.yaml")
    assert message in str(error.value)


def test_lookups_leave_the_host_out(tmp_path, humanoid):
    """A lookup makes no tensor from host data and asks for no value: it runs on the meta device."""
    lib = library(tmp_path, humanoid, four_frames(LoopMode.WRAP), accumulate_yaw=True)
    for owner in (lib, humanoid_on_meta := Character(humanoid.model, "meta")):
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                setattr(owner, name, value.to("meta"))
    lib.device, lib.character = torch.device("meta"), humanoid_on_meta
    ids = torch.empty(8, 3, dtype=torch.int64, device="meta")
    frame = lib.frame(ids, torch.empty(8, 3, device="meta"))
    pos, _ = humanoid_on_meta.forward_kinematics(frame.root_pos, frame.root_rot, frame.joint_rot)
    assert pos.shape == (8, 3, 15, 3) and humanoid_on_meta.rot_to_dof(frame.joint_rot).shape == (8, 3, 28)
    assert lib.sample_motions(8).shape == (8,) and lib.sample_times(ids).shape == (8, 3)


def test_a_shipped_clip(humanoid):
    """A lookup just after a frame's instant gives that frame's row; a loop later it is one stride further on."""
    file = HUMANOID.parents[2] / "motions/humanoid/humanoid_walk.pkl"
    rows = torch.from_numpy(load_motion(file).frames)
    lib = MotionLib(file, humanoid)
    close(lib.lengths, [38 / 30], 1e-6)
    stride = rows[-1, :2] - rows[0, :2]
    for index in (0, 1, 17, 37):
        for period in (0, 3):
            frame = at(lib, (index + 0.001) / 30 + period * 38 / 30)
            close(frame.root_pos[:2] - period * stride, rows[index, :2], 2e-4)
            close(frame.root_pos[2], rows[index, 2], 2e-4)
            close(rot.quat_to_exp_map(frame.root_rot), rows[index, 3:6], 2e-3)
            close(humanoid.rot_to_dof(frame.joint_rot), rows[index, 6:], 2e-3)
    assert stride[0] > 1.0 and stride[1].abs() < 0.2  # it walks forward
