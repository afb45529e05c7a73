"""Agent files."""

from pathlib import Path

import pytest

from mimickit.config import load_layered
from mimickit.learning.config import DummyConfig, PPOConfig, parse_agent_config
from mimickit.util.failures import UserError

FILE = Path(__file__).resolve().parents[3] / "data" / "agents" / "deepmimic_humanoid_ppo_agent.yaml"


def test_shipped_file():
    config = parse_agent_config(load_layered(FILE), str(FILE))
    assert isinstance(config, PPOConfig)
    assert config.actor_optimizer.learning_rate == 1e-4  # text to YAML 1.1
    assert config.normalizer_samples == 1e8
    assert (config.actor_epochs, config.critic_epochs, config.steps_per_iter) == (5, 2, 32)
    assert config.exp_anneal_samples == float("inf")
    assert config.critic_eval_batch_size == 0


@pytest.mark.parametrize("path", sorted(FILE.parent.glob("*_agent*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_is_valid(path):
    name = path.stem.split("_")[0].upper()
    expected = {"DEEPMIMIC": "AWR" if "awr" in path.stem else "PPO"}.get(name, name)
    assert parse_agent_config(load_layered(path), str(path)).agent_name == expected


@pytest.mark.parametrize("path", sorted(FILE.parent.glob("*_agent.yaml")), ids=lambda p: p.stem)
def test_every_agent_has_a_tuned_variant_that_keeps_method_and_networks(path):
    shipped = parse_agent_config(load_layered(path), str(path))
    tuned = parse_agent_config(load_layered(path.with_name(f"{path.stem}_tuned.yaml")))
    assert tuned.agent_name == shipped.agent_name
    std, kl_target = (0.05, 0.07) if "_smpl_" in path.stem else (0.1, 0.03)
    assert tuned.model == shipped.model.model_copy(update={"action_std": std})
    assert tuned.actor_optimizer.type == "Adam" and tuned.kl_target == kl_target and shipped.kl_target == 0.0
    assert getattr(tuned, "task_reward_weight", None) == getattr(shipped, "task_reward_weight", None)


def test_whole_numbers_in_scientific_notation():
    data = load_layered(FILE.parent / "amp_humanoid_agent.yaml")
    assert parse_agent_config({**data, "disc_buffer_size": "2e5"}).disc_buffer_size == 200_000
    with pytest.raises(UserError, match="disc_buffer_size"):
        parse_agent_config({**data, "disc_buffer_size": "2.5"})


@pytest.mark.parametrize(("key", "value"), [("action_entropy_weight", float("nan")),
                                            ("disc_reward_weight", float("inf")),
                                            ("normalizer_samples", float("nan"))])
def test_numbers_that_are_none(key, value):
    data = load_layered(FILE.parent / "amp_humanoid_agent.yaml")
    with pytest.raises(UserError, match=f"key '{key}' = {value}"):
        parse_agent_config({**data, key: value})


def test_shipped_values_of_the_methods():
    def shipped(name):
        return parse_agent_config(load_layered(FILE.parent / f"{name}_agent.yaml"))

    penalties = [shipped(f"{m}_humanoid").disc_grad_penalty for m in ("amp", "add", "ase")]
    assert penalties == [5, 2, 5]
    task = shipped("amp_task_humanoid")
    assert (task.task_reward_weight, task.disc_reward_weight, task.iters_per_output) == (0.5, 0.5, 200)
    ase = shipped("ase_humanoid")
    assert (ase.model.latent_dim, ase.latent_time_max, ase.enc_optimizer.learning_rate) == (64, 5.0, 5e-5)
    assert (shipped("deepmimic_humanoid_awr").awr_temp, shipped("deepmimic_humanoid_awr").a_weight_clip) == (1, 20)


def test_without_a_file_nothing_is_learned():
    config = parse_agent_config(None)
    assert isinstance(config, DummyConfig)
    assert (config.discount, config.steps_per_iter, config.iters_per_output) == (0.99, 32, 100)
    assert (config.test_episodes, config.normalizer_samples) == (10, 10000.0)


def changed(**keys):
    return {**load_layered(FILE), **keys}


@pytest.mark.parametrize(("data", "message"), [
    (changed(agent_name="PP0"),
     r"x\.yaml.*'PP0' is not supported.*did you mean 'PPO'.*PPO, LCP, AWR, AMP, ADD, ASE, SMP, Dummy"),
    ({"discount": 0.9}, r"missing key 'agent_name'"),
    (changed(td_lamda=0.9), r"unknown key 'td_lamda' \(did you mean 'td_lambda'\?\)"),
    ({k: v for k, v in load_layered(FILE).items() if k != "ppo_clip_ratio"}, r"missing key 'ppo_clip_ratio'"),
    (changed(actor_optimizer={"type": "Sgd", "learning_rate": 1}), r"actor_optimizer\.type.*'SGD' or 'Adam'"),
    (changed(agent_name="LCP"), r"missing key 'lcp_weight'"),
    (changed(agent_name="SMP"), r"missing key 'smp_prior_cfg'"),
])
def test_mistakes_are_named(data, message):
    with pytest.raises(UserError, match=message):
        parse_agent_config(data, "x.yaml")
