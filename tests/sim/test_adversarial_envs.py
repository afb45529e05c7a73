"""Environments with a discriminator on the real engine: what it sees of the character fits what it sees of the clip."""

from pathlib import Path

import pytest
import torch

from mimickit.engines.engine_config import load_engine_config
from mimickit.envs.env_builder import build_env, load_env_config

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[2]
WALK = ROOT / "data/motions/humanoid/humanoid_walk.pkl"


def make(name: str, num_envs: int = 4):
    path = ROOT / f"data/envs/{name}_humanoid_env.yaml"
    changes = {"motion_file": WALK, "char_file": ROOT / load_env_config(path).char_file}
    torch.manual_seed(0)
    return build_env(load_env_config(path, changes), load_engine_config(ROOT / "data/engines/newton_engine.yaml"),
                     num_envs, "cpu")


def follow(env) -> torch.Tensor:
    """A command that brings the dofs to the next reference pose, against the drive's damping (kd = 0.1 s kp)."""
    ref = env.terms.reference.lookup(env.steps * env.dt + env.dt)[0].now
    return env.character.rot_to_dof(ref.joint_rot) + 0.1 * ref.dof_vel


def test_add_sees_little_difference_while_the_clip_is_followed():
    env = make("add")
    env.step(follow(env))
    difference = (env.info["disc_obs_demo"] - env.info["disc_obs"]).abs()
    pose, velocity = difference[:, :138], difference[:, 138:144]
    assert 0 < pose.max() < 0.2 and pose.mean() < 0.01  # m, and components of unit vectors
    assert velocity.mean() < 0.2  # m/s, rad/s
    for _ in range(8):
        env.step(env.action_low.expand(4, -1))
    assert (env.info["disc_obs_demo"] - env.info["disc_obs"]).abs()[:, :138].mean() > 0.1
    env.close()


@pytest.mark.parametrize("name", ["amp", "ase", "amp_location", "amp_steering"])
def test_windows_of_the_character_look_like_those_of_the_clip(name):
    env = make(name)
    for _ in range(4):
        env.step(follow(env))
        assert torch.isfinite(env.info["disc_obs"]).all() and torch.isfinite(env.info["disc_demo"]).all()
        assert torch.isfinite(env.obs).all()
    agent, demo = (env.info[key].view(4, 10, 142) for key in ("disc_obs", "disc_demo"))
    assert (agent[..., :2].abs().amax(dim=(0, 1)) < 0.5).all()  # 0.3 s of walking
    assert ((agent[..., 2] - demo[..., 2]).abs() < 0.15).all()  # height of the root
    assert env.health()["nonfinite"] == 0
    assert all(torch.isfinite(marker.pos).all() for marker in env.markers())
    env.close()


@pytest.mark.parametrize("name", ["amp", "amp_location", "amp_steering"])
def test_resetting_the_first_environments_leaves_the_others_as_they_were(name):
    """Nothing that outlives a step changes in them, and they go on as if nothing had happened."""
    env, undisturbed = make(name), make(name)
    for _ in range(3):
        for one in (env, undisturbed):
            torch.manual_seed(1)
            one.step(follow(one))
    env.reset(2)
    assert env.steps.tolist() == [0, 0, 3, 3]
    states = env.state_dict(), undisturbed.state_dict()
    for key in states[0]:
        if key.startswith(("engine.", "memory", "obs", "reference")) and states[0][key].shape[:1] == (4,):
            assert torch.equal(states[0][key][2:], states[1][key][2:]), key
    for one in (env, undisturbed):
        torch.manual_seed(2)
        one.step(one.action_low.expand(4, -1) * 0.1)
    assert torch.equal(env.next_obs[2:], undisturbed.next_obs[2:])
    assert torch.equal(env.reward[2:], undisturbed.reward[2:])
    assert not torch.equal(env.next_obs[:2], undisturbed.next_obs[:2])
    env.close(), undisturbed.close()
