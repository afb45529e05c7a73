"""The three environments of the humanoid on the real engine."""

from pathlib import Path

import pytest
import torch

from mimickit.engines.engine_config import load_engine_config
from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.env_builder import build_env, load_env_config

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[2]
NUM_ENVS = 4


def make(name: str, num_envs: int = NUM_ENVS, seed: int = 0, **changes):
    """The shipped environment of the humanoid, whatever the working directory."""
    torch.manual_seed(seed)
    path = ROOT / f"data/envs/{name}_humanoid_env.yaml"
    config = load_env_config(path, changes)
    changes["char_file"] = ROOT / config.char_file
    for motion_file in config.motion_files:
        changes["motion_file"] = ROOT / motion_file
    config = load_env_config(path, changes)
    return build_env(config, load_engine_config(ROOT / "data/engines/newton_engine.yaml"), num_envs, "cpu")


@pytest.fixture(scope="module")
def env():
    env = make("deepmimic")
    yield env
    env.close()


def follow(env) -> torch.Tensor:
    """A command that brings the dofs to the next reference pose, against the drive's damping (kd = 0.1 s kp)."""
    ref = env.terms.reference.lookup(env._time() + env.dt)[0].now
    return env.character.rot_to_dof(ref.joint_rot) + 0.1 * ref.dof_vel


def noise(env) -> torch.Tensor:
    centre, half = 0.5 * (env.action_high + env.action_low), 0.5 * (env.action_high - env.action_low)
    return centre + 0.3 * half * torch.randn(env.num_envs, len(half))


def test_sizes(env):
    assert env.obs.shape == (NUM_ENVS, 464) and env.action_low.shape == (28,)
    assert env.engine.total_mass == pytest.approx(50.05, abs=0.01)


def test_starts_with_nearly_full_reward(env):
    """Position and velocity of the reference are really in the simulation: the first step is tracked well."""
    assert first_rewards(env) > 0.88


@pytest.mark.parametrize("name", ["root_vel", "root_ang_vel", "dof_vel"])
def test_a_wrong_start_velocity_would_be_noticed(env, name):
    assert first_rewards(env, getattr(env.engine, name)) < 0.84


def first_rewards(env, negated: torch.Tensor | None = None) -> float:
    """Mean reward of the first step after a reset, over 5 resets; with some velocity turned round."""
    rewards = []
    for seed in range(5):
        torch.manual_seed(seed)
        env.reset()
        if negated is not None:
            negated.neg_()
        env.step(follow(env))
        rewards.append(env.reward.clone())
    return torch.stack(rewards).mean().item()


def test_bodies_are_where_our_kinematics_have_them(env):
    torch.manual_seed(1)
    env.reset()
    expected = env.engine.body_pos.clone(), env.engine.body_rot.clone()
    env.engine.body_pos.zero_()
    env.engine.body_rot.zero_()
    env.engine.flush()
    assert (env.engine.body_pos - expected[0]).abs().max() < 1e-4
    assert ((env.engine.body_rot * expected[1]).sum(dim=-1).abs() > 1 - 1e-5).all()
    for _ in range(3):  # and in motion
        env.step(noise(env))
        engine = env.engine
        ours = env.character.forward_kinematics(
            engine.root_pos, engine.root_rot, env.character.dof_to_rot(engine.dof_pos)
        )
        assert (engine.body_pos - ours[0]).abs().max() < 1e-4


def test_random_steps(env):
    env.reset()
    env.set_mode(EnvMode.TEST)
    ended = torch.zeros(NUM_ENVS, dtype=torch.bool)
    for _ in range(60):
        env.step(noise(env))
        for name in ("obs", "next_obs", "reward"):
            assert torch.isfinite(getattr(env, name)).all(), name
        assert (env.reward >= 0).all() and (env.reward <= 1).all()
        assert ((env.done == DoneFlag.NULL) | (env.done == DoneFlag.FAIL)).all()
        assert (env.steps[env.done != DoneFlag.NULL] == 0).all()
        ended |= env.done == DoneFlag.FAIL
    assert ended.all(), "flailing characters fall or lose the reference within two seconds"
    assert all(value.item() == 0 for value in env.health().values())
    measures = env.metrics()
    assert measures["success_rate"].item() == 0.0 and 0.01 < measures["root_pos_err"].item() < 1.0


def test_same_seed_same_rollout():
    def rollout(env):
        torch.manual_seed(7)
        env.reset()
        for _ in range(20):
            env.step(noise(env))
        return env.obs.clone(), env.reward.clone()

    pairs = [rollout(make("deepmimic", num_envs=2, seed=s)) for s in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_continues_exactly():
    def go_on(env, steps):
        for _ in range(steps):
            env.step(noise(env))
        return env.obs.clone(), env.next_obs.clone(), env.reward.clone(), env.done.clone()

    env = make("deepmimic", num_envs=2)
    go_on(env, 15)
    state, random = env.state_dict(), torch.get_rng_state()
    first = go_on(env, 15)
    other = make("deepmimic", num_envs=2, seed=5)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    second = go_on(other, 15)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_viewing_shows_the_clip():
    env = make("view_motion", num_envs=2)
    env.set_mode(EnvMode.TEST)
    env.reset()
    for _ in range(40):
        env.step(torch.zeros(2, 28))
    assert env.engine.config.sim_freq == 30
    assert env.metrics()["pose_err"].item() < 1e-4


def test_dofs_follow_their_commands():
    """28 worlds drive a dof each: a whole swing of every dof in 4 s."""
    env = make("dof_test", num_envs=28)
    env.set_mode(EnvMode.TEST)
    root = env.engine.root_pos.clone()
    for _ in range(120):
        env.step(torch.zeros(28, 28))
    measures = env.metrics()
    assert measures["command_size"].item() > 1.0
    assert measures["pose_err"].item() < 0.25  # the lag of a damped position drive, 0.1 s, at these speeds
    torch.testing.assert_close(env.engine.root_pos, root)
