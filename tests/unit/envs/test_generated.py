"""Windows that a prior generates become states to start from."""

import pytest
import torch

from mimickit.anim.character import Character
from mimickit.envs.amp import window_observation
from mimickit.envs.generated import decode_windows
from tests.unit.env_case import CHAR_FILE, make_env, write_clip

DT = 1.0 / 30.0


@pytest.fixture
def env(tmp_path):
    clip = write_clip(tmp_path / "clip.pkl")
    return make_env("amp", num_envs=3, motion_file=clip, num_disc_obs_steps=4, disc_dof_vel_obs=False)


def windows_of(env, count=5):
    """Windows of the clip as a prior sees them, and the states they show."""
    history = env.terms.memory["history"]
    states = history.windows.sample(count)
    return window_observation(env.scene.config, env.scene)(states), states


def test_a_window_of_a_clip_is_decoded_to_its_states(env):
    windows, states = windows_of(env)
    found = decode_windows(windows.unflatten(-1, (4, -1)), env.character, DT)
    anchor = states.root_pos[:, -1:].clone()
    anchor[..., 2] = 0.0
    for name in ("root_rot", "joint_rot", "body_rot"):
        torch.testing.assert_close(getattr(found, name), getattr(states, name), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.root_pos, states.root_pos - anchor, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.body_pos, states.body_pos - anchor.unsqueeze(-2), rtol=0, atol=1e-5)
    steps = (states.root_pos[:, 1:] - states.root_pos[:, :-1]) / DT
    torch.testing.assert_close(found.root_vel, torch.cat([steps, steps[:, -1:]], dim=1), rtol=0, atol=1e-4)


def test_velocities_are_forward_differences_and_the_last_repeats():
    character = Character.load(CHAR_FILE)
    turn = torch.tensor([0.0, 0.1, 0.4])
    zeros, ones = torch.zeros(3), torch.ones(3)
    root = torch.stack([0.1 * turn, zeros, 0.9 * ones, turn.cos(), turn.sin(), zeros, zeros, zeros, ones], dim=-1)
    rest = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0]).repeat(3, character.num_joints)
    found = decode_windows(torch.cat([root, rest], dim=-1).unsqueeze(0), character, 0.1)
    torch.testing.assert_close(found.root_vel[0, :, 0], torch.tensor([0.1, 0.3, 0.3]))
    torch.testing.assert_close(found.root_ang_vel[0, :, 2], torch.tensor([1.0, 3.0, 3.0]), rtol=0, atol=1e-4)
    assert found.dof_vel.abs().max() < 1e-5


def test_what_is_no_rotation_is_made_one():
    character = Character.load(CHAR_FILE)
    torch.manual_seed(0)
    found = decode_windows(torch.randn(8, 3, 9 + 6 * character.num_joints), character, DT)
    for rotation in (found.root_rot, found.joint_rot, found.body_rot):
        torch.testing.assert_close(rotation.norm(dim=-1), torch.ones(rotation.shape[:-1]))
    assert all(torch.isfinite(x).all() for x in found)


def test_episodes_start_from_generated_windows_once_there_are_some(env):
    history, starts = env.terms.memory["history"], env.starts
    starts.open(4, 4)
    env.reset()
    assert (env.engine.root_pos[:, :2].abs().amax() > 0.01) or (env.terms.reference.start > 0.0).any()
    windows, _ = windows_of(env, 2)
    windows[:, 2::windows.shape[1] // 4] += torch.tensor([[0.25], [0.5]])  # heights
    starts.add(windows)
    seen = set()
    for _ in range(8):
        env.reset()
        torch.testing.assert_close(env.engine.root_pos[:, :2], torch.zeros(3, 2))
        assert (env.terms.reference.start == 0.0).all()
        for row, height in enumerate(env.engine.root_pos[:, 2].tolist()):
            which = int(height > 0.9 + 0.4)
            seen.add(which)
            frames = window_observation(env.scene.config, env.scene)(history.frames())[row]
            own = frames.unflatten(-1, (4, -1))[:, :9 + 6 * env.character.num_joints]
            expected = windows[which].unflatten(-1, (4, -1))[:, :own.shape[1]]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)
    assert seen == {0, 1}


def test_new_windows_replace_the_oldest(env):
    starts = env.starts
    starts.open(3, 4)
    windows, _ = windows_of(env, 5)
    windows[:, -9:] = 0.0
    heights = torch.arange(5.0)
    windows[:, 2::windows.shape[1] // 4] = heights.unsqueeze(-1)
    starts.add(windows[:2])
    starts.add(windows[2:])
    kept = starts.buffers()["generated.root_pos"][:, -1, 2]
    assert sorted(kept.tolist()) == [2.0, 3.0, 4.0]
    with pytest.raises(RuntimeError):
        starts.add(windows[:, :8])
