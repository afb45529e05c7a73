"""A disturbed environment on real physics: it runs, worlds differ, and it goes on exactly."""

import pytest
import torch

from mimickit.config import load_layered
from mimickit.envs.env_builder import build_env, make_env_config
from mimickit.util.assets import SHIPPED
from tests.unit.fake_engine import engine_config

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    data = load_layered(SHIPPED / "data/envs/deepmimic_go2_env_robust.yaml")
    torch.manual_seed(2)
    built = build_env(make_env_config(data, "robust"), engine_config(), 6, "cpu")
    yield built
    built.close()


def actions(env, seed, steps):
    middle = 0.5 * (env.action_low + env.action_high)
    generator = torch.Generator().manual_seed(seed)
    return [middle + 0.2 * torch.randn(env.num_envs, len(middle), generator=generator) for _ in range(steps)]


def test_it_goes_on_exactly_from_its_state(env):
    """Random numbers and masses included; what was drawn in between is forgotten."""
    for action in actions(env, 1, 20):
        env.step(action)
    state, random = env.state_dict(), torch.get_rng_state()
    mass = env.engine.model.body_mass.numpy().copy()

    def go_on():
        rows = []
        for action in actions(env, 2, 40):
            env.step(action)
            rows.append(torch.cat([env.obs, env.reward.unsqueeze(-1), env.done.unsqueeze(-1)], dim=1).clone())
        return torch.stack(rows)

    expected = go_on()
    assert expected.isfinite().all() and expected[..., -1].any(), "some episodes ended, others began"
    assert env.health()["contact_overflow"] == 0 and env.health()["nonfinite"] == 0
    env.reset()
    env.engine.mass.fill_(1.0)
    env.engine.set_masses()
    assert (env.engine.model.body_mass.numpy() != mass).any()
    env.load_state_dict(state)
    torch.set_rng_state(random)
    assert torch.equal(go_on(), expected)
    assert (env.engine.model.body_mass.numpy() == mass).all()


def test_no_two_worlds_are_alike(env):
    """The same state, the same commands, and no noise of the policy's: bodies part all the same."""
    model = env.engine.model.body_mass.numpy().reshape(6, -1)
    assert len({tuple(row) for row in model.tolist()}) == 6
    env.reset()
    state = env.scene.char_state()
    env.scene.place(torch.ones(6, dtype=torch.bool), type(state)(*(x[:1].expand_as(x).clone() for x in state)))
    command = 0.5 * (env.action_low + env.action_high)
    env.engine.command.copy_(command.expand(6, -1))
    for _ in range(3):
        env.engine.step()
    distance = torch.cdist(env.engine.dof_pos, env.engine.dof_pos)
    assert distance[~torch.eye(6, dtype=torch.bool)].min() > 1e-3


def test_policies_can_be_trained_on_it(tmp_path, monkeypatch):
    from mimickit import run
    from mimickit.util.files import read_json

    monkeypatch.chdir(SHIPPED)
    out = tmp_path / "run"
    assert run.main(["train", "deepmimic_go2_ppo", "--variant", "robust", "--devices", "cpu", "--num_envs", "8",
                     "--eval_envs", "0", "--max_iters", "2", "--out_dir", str(out), "--rand_seed", "1",
                     "--set", "agent.test_episodes=2", "agent.steps_per_iter=8", "env.episode_length=0.5"]) == 0
    assert run.main(["test", str(out), "--disturb", "standard", "--devices", "cpu", "--num_envs", "2",
                     "--max_episode_steps", "20"]) == 0
    result = read_json(out / "test_standard" / "result.json")
    assert result["disturbances"]["friction"] == [0.4, 1.2] and "roughness" not in result["disturbances"]
    assert 0.0 <= result["measures"]["survival"] <= 1.0
