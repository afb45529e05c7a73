"""Evaluation beside training."""

import json
import math

import pytest
import torch

from mimickit.learning.config import TrainOptions, parse_agent_config
from mimickit.learning.evaluation import evaluate
from mimickit.learning.methods import build_agent
from mimickit.learning.trainer import train
from mimickit.util.curves import read_curves
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import UserError
from mimickit.util.logging import read_log
from tests.contract.toy_env import AGENT_CONFIG, ToyEnv
from tests.contract.toy_style_env import build

ALONE = Distributed.single()


def run(folder, num_envs=256, **options):
    seed_process(0, 0)
    env = ToyEnv(num_envs)
    agent = build_agent(env, parse_agent_config({**AGENT_CONFIG, "iters_per_output": 2}), ALONE)
    return train(env, agent, ALONE, TrainOptions(folder, **options)), agent, env


def test_it_measures_the_frozen_policy(tmp_path):
    """Every row's evaluation agrees with one of many episodes of the model that was saved with the row."""
    result, _, _ = run(tmp_path, max_iters=9, eval_envs=128, save_int_models=True)
    columns, rows = read_log(tmp_path / "log.txt")
    found = {int(row[columns.index("Samples")]): float(row[columns.index("Test_Return")]) for row in rows}
    per_iter = 256 * 16
    assert list(found) == [i * per_iter for i in (3, 5, 7, 9)]  # episodes take two iterations
    assert math.isnan(found.pop(9 * per_iter)), "the last policy was not evaluated"
    assert result.evaluation["samples"] == list(found)[-1]
    across, values = read_curves(tmp_path).line("Samples", "Test_Return")
    assert dict(zip(across, values)) == found, "as MimicKit reads the columns"
    env = ToyEnv(2000)
    judge = build_agent(env, parse_agent_config(AGENT_CONFIG), ALONE)
    for samples in found:
        judge.load_model(tmp_path / "int_models" / f"model_{samples // per_iter - 1:010d}.pt")
        expected = evaluate(env, judge, ALONE, 2000).mean_return
        assert found[samples] == pytest.approx(expected, abs=4 * 3.0 / math.sqrt(128))
    assert found[7 * per_iter] > found[3 * per_iter] + 0.3


@pytest.mark.parametrize("eval_envs", [0, 4])
def test_every_row_is_whole_and_of_its_own_policy(tmp_path, eval_envs):
    """The log has the same columns however evaluations are made, and training's metrics are those of the row."""
    run(tmp_path, num_envs=16, max_iters=7, eval_envs=eval_envs)
    columns, rows = read_log(tmp_path / "log.txt")
    assert columns[:6] == ["Iteration", "Wall_Time", "Samples", "Test_Return", "Test_Episode_Length", "Test_Episodes"]
    assert columns[-1] == "Exp_Prob"
    assert [int(row[2]) for row in rows] == [(int(row[0]) + 1) * 16 * 16 for row in rows]
    episodes = [int(float(row[5])) for row in rows]
    assert episodes == ([4, 4, 0] if eval_envs else [AGENT_CONFIG["test_episodes"]] * 4)


def test_a_continued_run_replaces_rows_that_were_not_evaluated(tmp_path):
    """Rows of a run that ended, went on past a checkpoint, and was continued from it: each once, all evaluated."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, num_envs=16, max_iters=12, eval_envs=4)
    run(parts, num_envs=16, max_iters=8, eval_envs=4)
    before = read_log(parts / "log.txt")[1]
    assert [row[0] for row in before] == ["2", "4", "6", "7"] and [row[3] == "nan" for row in before] == [0, 0, 1, 1]
    checkpoint = sorted((parts / "checkpoints").glob("0*"))[0]
    for resume in (checkpoint, parts):
        run(parts, num_envs=16, max_samples=12 * 16 * 16, eval_envs=4, resume=resume)
        columns, rows = read_log(parts / "log.txt")
        assert [row[0] for row in rows] == ["2", "4", "6", "8", "10", "11"]
        timeless = [i for i, name in enumerate(columns) if name != "Wall_Time"]
        assert [[row[i] for i in timeless] for row in rows] == [
            [row[i] for i in timeless] for row in read_log(whole / "log.txt")[1]]


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_a_run_too_short_for_one_is_evaluated_at_its_end(tmp_path, capsys, iterations):
    """Once, of its last policy; a continuation does what it does without. ``Test_`` numbers say of which policy."""
    result, _, _ = run(tmp_path / "run", num_envs=16, max_iters=iterations, eval_envs=4)
    per_iter, episodes = 16 * 16, AGENT_CONFIG["test_episodes"]
    rows = read_log(tmp_path / "run/log.txt")[1]
    assert (result.evaluation["samples"], result.evaluation["episodes"]) == (iterations * per_iter, episodes)
    assert [(int(row[2]), int(float(row[5]))) for row in rows][-1] == (iterations * per_iter, episodes)
    assert rows[-1][3] == repr(result.evaluation["return"])
    best = json.loads((tmp_path / "run/checkpoints/best/evaluation.json").read_text())
    assert best["samples"] == iterations * per_iter
    printed = capsys.readouterr().out.split("--- ")[1:]
    assert "Test_" not in printed[0], "no evaluation has ended"
    assert all("Test_Samples 0" in text for text in printed[2:])

    again, _, _ = run(tmp_path / "run", num_envs=16, max_samples=1, eval_envs=4, resume=tmp_path / "run")
    assert again.evaluation == result.evaluation and again.new_iterations == 0
    assert [row[:1] + row[2:] for row in read_log(tmp_path / "run/log.txt")[1]] == [row[:1] + row[2:] for row in rows]


def test_its_environments_teach_the_actor_nothing_and_are_not_random(tmp_path):
    _, agent, _ = run(tmp_path, num_envs=16, max_iters=1, eval_envs=4)
    mask = agent._rollout["explore_mask"]
    assert mask[:, :4].sum() == 0 and mask[:, 4:].min() == 1


def test_other_environments_go_on_when_an_evaluation_begins(tmp_path):
    firsts = []

    class Watching(ToyEnv):
        def reset(self, first=None):
            firsts.append(first)
            age = self.state_dict()["age"].clone()
            super().reset(first)
            if first is not None:
                assert self.state_dict()["age"][:first].max() == 0
                assert torch.equal(self.state_dict()["age"][first:], age[first:])

    seed_process(0, 0)
    env = Watching(256)
    agent = build_agent(env, parse_agent_config({**AGENT_CONFIG, "iters_per_output": 2}), ALONE)
    train(env, agent, ALONE, TrainOptions(tmp_path, max_iters=9, eval_envs=128))
    assert firsts == [None, 128, 128, 128, 128]


def test_the_best_model_is_the_frozen_one(tmp_path):
    run(tmp_path, max_iters=9, eval_envs=128, save_int_models=True)
    entries = json.loads((tmp_path / "checkpoints/best/evaluation.json").read_text())
    best = torch.load(tmp_path / "checkpoints/best/model.pt", weights_only=True)
    iteration = entries["samples"] // (256 * 16) - 1
    then = torch.load(tmp_path / f"int_models/model_{iteration:010d}.pt", weights_only=True)
    for name in ("_obs_norm._mean", "_model._actor_layers.0.weight", "_model._action_dist._mean_net.bias"):
        assert torch.equal(best[name], then[name]), name


def test_everything_in_best_is_of_the_policy_that_was_evaluated(tmp_path):
    """Discriminator, critic and iteration too; also when the training was continued meanwhile."""
    def go_on(iterations, resume=None):
        env, agent = build("AMP", iters_per_output=2)
        train(env, agent, ALONE, TrainOptions(tmp_path, max_iters=iterations, eval_envs=32, save_int_models=True,
                                              resume=resume))

    go_on(4)
    go_on(4, tmp_path)
    entries = json.loads((tmp_path / "checkpoints/best/evaluation.json").read_text())
    best = torch.load(tmp_path / "checkpoints/best/model.pt", weights_only=True)
    assert entries["iteration"] == entries["samples"] // (64 * 16) - 1 > 0
    then = torch.load(tmp_path / f"int_models/model_{entries['iteration']:010d}.pt", weights_only=True)
    assert best.keys() == then.keys() and any("_disc" in name for name in best)
    assert [name for name in best if not torch.equal(best[name], then[name])] == []


def test_some_environments_must_be_left(tmp_path):
    with pytest.raises(UserError, match=r"--eval_envs 16 leaves none of the 16 environments"):
        run(tmp_path, num_envs=16, max_iters=1, eval_envs=16)
