"""The clock of the reference, its future frames, and where episodes start."""

import pytest
import torch

from mimickit.anim.character import Character
from mimickit.anim.motion import LoopMode
from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.ref_motion import FixedPose, RefMotion
from tests.unit.env_case import CHAR_FILE, write_clip

DT = 1 / 30


@pytest.fixture(scope="module")
def humanoid():
    return Character.load(CHAR_FILE)


@pytest.fixture
def dataset(tmp_path):
    """Two clips: a looping one of 1 s (weight 3), and one of 2 s that stops (weight 1)."""
    loop = write_clip(tmp_path / "loop.pkl", speed=0.5)
    stop = write_clip(tmp_path / "stop.pkl", frames=61, loop=LoopMode.CLAMP, speed=1.0)
    path = tmp_path / "set.yaml"
    path.write_text(f"motions:\n- {{file: {loop}, weight: 3}}\n- {{file: {stop}, weight: 1}}\n")
    return path


def test_future_frames_and_end(humanoid, dataset):
    ref = RefMotion(MotionLib(dataset, humanoid), 2, DT, (1, 5), rand_reset=True)
    ref.ids.copy_(torch.tensor([0, 1]))
    ref.start.copy_(torch.tensor([0.81, 1.51]))
    seen, _ = ref.lookup(torch.tensor([0.4, 0.4]))
    assert seen.time.tolist() == pytest.approx([1.21, 1.91])
    assert seen.ended.tolist() == [False, False]
    x = torch.tensor([0.5, 1.0])[:, None] * (seen.time[:, None] + torch.tensor([0, DT, 5 * DT]))
    x[1, 2] = 2.0  # stands still at its end
    torch.testing.assert_close(seen.frames.root_pos[..., 0], x, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.now.root_pos, seen.frames.root_pos[:, 0])
    torch.testing.assert_close(seen.future.body_pos, seen.frames.body_pos[:, 1:])
    assert ref.lookup(torch.tensor([9.0, 0.5]))[0].ended.tolist() == [False, True]


def test_reset_draws_clips_by_weight_and_times_within_them(humanoid, dataset):
    torch.manual_seed(5)
    n = 4000
    ref = RefMotion(MotionLib(dataset, humanoid), n, DT, (), rand_reset=True)
    ref.start.fill_(-1.0)
    mask = torch.arange(n) % 4 != 0
    _, start = ref.lookup(torch.zeros(n))
    ref.reset(mask, start)
    assert (ref.start[~mask] == -1.0).all()
    ids, times_drawn = ref.ids[mask], ref.start[mask]
    assert ids.float().mean().item() == pytest.approx(0.25, abs=0.03)
    for clip, length in ((0, 1.0), (1, 2.0)):
        times = times_drawn[ids == clip]
        assert times.min() >= 0 and times.max() < length
        assert times.mean().item() == pytest.approx(length / 2, abs=0.06)


def test_windows_of_reference_and_reset_state(humanoid, dataset):
    """The past leads up to the same frame that the future starts from, of the same clip."""
    torch.manual_seed(2)
    motions = MotionLib(dataset, humanoid)
    ref = RefMotion(motions, 3, DT, (1, 2), True, past_steps=2, past_of_reference=True)
    ref.ids.copy_(torch.tensor([0, 1, 1]))
    ref.start.copy_(torch.tensor([0.3, 0.5, 1.0]))
    for seen in ref.lookup(torch.tensor([0.4, 0.1, 0.2])):
        for states, steps in ((seen.window, (-2, -1, 0)), (seen.frames, (0, 1, 2))):
            times = seen.time[:, None] + DT * torch.tensor(steps)
            frame = motions.frame(seen.ids[:, None], times)
            for name in ("root_pos", "joint_rot", "dof_vel"):
                torch.testing.assert_close(getattr(states, name), getattr(frame, name))
    seen, start = RefMotion(motions, 3, DT, (), True, past_steps=2).lookup(torch.zeros(3))
    assert seen.window.root_pos.shape == (3, 1, 3) and start.window.root_pos.shape == (3, 3, 3)


def test_fixed_pose(humanoid):
    dof = torch.linspace(-0.5, 0.5, 28)
    pose = FixedPose(humanoid, 3, torch.tensor([0.0, 0, 1.2]), torch.tensor([0.0, 0, 0, 1]), dof)
    seen = pose.lookup(torch.zeros(3))[0]
    assert seen.now.root_pos.tolist() == [[0, 0, pytest.approx(1.2)]] * 3
    torch.testing.assert_close(humanoid.rot_to_dof(seen.now.joint_rot), dof.expand(3, 28), atol=1e-5, rtol=0)
    assert not seen.ended.any() and not seen.now.dof_vel.any()
