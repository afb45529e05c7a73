"""A case of SMP on real physics: its prior, a policy that was interrupted, and a test without the prior's file."""

import json
from pathlib import Path

import pytest
import torch

from mimickit import run
from mimickit.util.checkpoint import read_model
from mimickit.util.logging import read_log

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
TINY = ["estimate_mode=sample", "num_layers=1", "num_attention_heads=1", "attention_head_dim=16", "batch_size=32",
        "num_samples_stat=200", "num_iterations=40", "output_iter=40", "model_ema=false", "lr=1e-3"]


def test_a_prior_a_policy_and_its_continuation(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    prior = tmp_path / "prior"
    assert run.main(
        ["prior", "smp_dodgeball_humanoid", "--devices", "cpu", "--out_dir", str(prior), "--set", *TINY]) == 0

    def train(target, out, iterations, *more):
        assert run.main(["train", target, "--devices", "cpu", "--max_iters", str(iterations), *more]) == 0
        assert json.loads((out / "result.json").read_text())["nonfinite"] == 0
        return read_model(out / "model.pt")

    def options(out):
        return ["--out_dir", str(out), "--num_envs", "4", "--eval_envs", "0", "--rand_seed", "1", "--set",
                f"agent.smp_prior_cfg={prior}/diffusion_config.yaml", f"agent.smp_prior_model={prior}/model.pt",
                "agent.gsi_buffer_size=6", "agent.gsi_regen_num_motions=4", "agent.gsi_batch_size=4",
                "agent.gsi_iters=2", "agent.test_episodes=4", "agent.iters_per_output=100", "env.episode_length=0.2",
                "env.proj_trigger_time_min=0.1", "env.proj_trigger_time_max=0.15"]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train("smp_dodgeball_humanoid", whole, 3, *options(whole))
    train("smp_dodgeball_humanoid", parts, 1, *options(parts))
    found = train(str(parts), parts, 2)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for name, tensor in read_model(prior / "model.pt").items():
        assert torch.equal(tensor, found[f"_prior_model.{name}"]), name
    columns, rows = read_log(whole / "log.txt")
    assert 0.0 < float(rows[-1][columns.index("Smp_Reward_Mean")]) < 1.0

    (prior / "model.pt").unlink()
    capfd.readouterr()
    assert run.main(["test", str(parts), "--devices", "cpu", "--num_envs", "2"]) == 0
    assert "test_smp_reward" in capfd.readouterr().out
