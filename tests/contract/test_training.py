"""The training loop: what it leaves behind, how it stops, and that a continued run equals an uninterrupted one."""

import json
import os
import signal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mimickit.envs.base import EnvMode
from mimickit.learning.config import TrainOptions, parse_agent_config
from mimickit.learning.evaluation import Evaluation
from mimickit.learning.methods import build_agent
from mimickit.learning.metrics import EpisodeTracker
from mimickit.learning.trainer import roll_out, train
from mimickit.util.checkpoint import find_latest, load_checkpoint
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import NonFiniteError, UserError
from mimickit.util.logging import read_log
from tests.contract.toy_env import AGENT_CONFIG, ToyEnv

ALONE = Distributed.single()
PER_ITER = 16 * 16


def run(folder, env=None, seed=0, agent_keys=None, **options):
    seed_process(seed, 0)
    env = env or ToyEnv(16)
    config = {**AGENT_CONFIG, "test_episodes": 16, **(agent_keys or {})}
    agent = build_agent(env, parse_agent_config(config), ALONE)
    result = train(env, agent, ALONE, TrainOptions(folder, **options))
    return result, agent, env


def last_checkpoint(folder):
    return load_checkpoint(find_latest(folder), ALONE)


def assert_same_checkpoint(folder_a, folder_b):
    a, b = last_checkpoint(folder_a), last_checkpoint(folder_b)
    for name in a.shared["agent"]:
        assert torch.equal(a.shared["agent"][name], b.shared["agent"][name]), name
    for part in ("env", "tracker"):
        for name in a.local[part]:
            assert torch.equal(a.local[part][name], b.local[part][name]), name
    assert torch.equal(a.local["random_cpu"], b.local["random_cpu"])
    for name in set(a.shared) - {"agent", "wall_s", "evaluation", "best", "concurrent"}:
        assert a.shared[name] == b.shared[name], name
    if a.shared["concurrent"] is not None:
        assert a.shared["concurrent"]["samples"] == b.shared["concurrent"]["samples"]
        pairs = ((a.shared["concurrent"]["frozen"], b.shared["concurrent"]["frozen"]),
                 (a.local["concurrent"], b.local["concurrent"]))
        for x, y in pairs:
            assert all(torch.equal(x[name], y[name]) for name in x) and x.keys() == y.keys()


@pytest.mark.parametrize("every", [100, 3, 2])
@pytest.mark.parametrize(("optimizer", "beside"), [("SGD", 0), ("Adam", 0), ("Adam", 4)])
def test_continued_run_equals_an_uninterrupted_one(tmp_path, every, optimizer, beside):
    keys = {"iters_per_output": every, "actor_optimizer": {"type": optimizer, "learning_rate": 1e-3},
            "exp_prob_beg": 1.0, "exp_prob_end": 0.5, "exp_anneal_samples": 2000, "normalizer_samples": 4 * PER_ITER,
            "action_std_end": 0.02, "std_anneal_samples": 8 * PER_ITER, "critic_ema_decay": 0.5}
    whole = run(tmp_path / "whole", agent_keys=keys, max_iters=6, eval_envs=beside)
    run(tmp_path / "parts", agent_keys=keys, max_iters=3, eval_envs=beside)
    parts = run(tmp_path / "parts", seed=99, agent_keys=keys, max_iters=3, resume=tmp_path / "parts", eval_envs=beside)
    assert parts[0].samples == whole[0].samples == 6 * PER_ITER
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    assert parts[0].evaluation == whole[0].evaluation
    columns, rows = read_log(tmp_path / "whole" / "log.txt")
    timeless = [i for i, name in enumerate(columns) if name != "Wall_Time"]
    found = read_log(tmp_path / "parts" / "log.txt")[1]
    assert [[r[i] for i in timeless] for r in found if r[0] in [x[0] for x in rows]] == [
        [r[i] for i in timeless] for r in rows]


class Overflowing(ToyEnv):
    """Drops a contact in every iteration."""

    def health(self):
        return {**super().health(), "contact_overflow": torch.ones((), dtype=torch.int64)}


def test_a_continued_run_knows_what_happened_before(tmp_path):
    whole, _, _ = run(tmp_path / "whole", env=Overflowing(16), max_iters=6)
    run(tmp_path / "parts", env=Overflowing(16), max_iters=3)
    parts, _, _ = run(tmp_path / "parts", env=Overflowing(16), max_iters=3, resume=tmp_path / "parts")
    assert parts.contact_overflow == whole.contact_overflow > 6


def test_speed_is_that_of_the_whole_training(tmp_path):
    run(tmp_path, max_iters=6)
    before = last_checkpoint(tmp_path).shared["wall_s"]
    last, _, _ = run(tmp_path, max_iters=1, resume=tmp_path)
    assert last.samples == 7 * PER_ITER and before > 0.0
    assert last.total_wall_s == pytest.approx(before + last.wall_s, abs=0.05)
    assert last.samples_per_s == pytest.approx(last.samples / last.total_wall_s, rel=0.01)


def test_a_continued_run_says_where_it_goes_on(tmp_path, capsys):
    run(tmp_path, max_iters=3)
    capsys.readouterr()
    run(tmp_path, max_iters=1, resume=tmp_path)
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"resuming {tmp_path}/checkpoints/0000000003: 768 samples learned from, next is iteration 3"


@pytest.mark.parametrize("beside", [0, 4])
def test_an_evaluation_of_endless_episodes_ends(tmp_path, beside):
    class Endless(ToyEnv):
        episode_steps = 10**9

        def step(self, action):
            super().step(torch.zeros_like(action))

    assert TrainOptions(tmp_path).max_episode_steps == 10_000, "also where nobody says when"
    result, _, _ = run(tmp_path, env=Endless(16), agent_keys={"iters_per_output": 1}, max_iters=3, eval_envs=beside,
                       max_episode_steps=24)
    assert result.evaluation["episode_length"] == 24


class Interrupting(ToyEnv):
    """Sends SIGTERM to the process itself after ``at`` steps in training, or at the first step of a later test."""

    def __init__(self, at, in_test=False):
        super().__init__(16)
        self.at, self.in_test = at, in_test

    def step(self, action):
        super().step(action)
        testing = self.mode is EnvMode.TEST
        if self.at is not None and self.steps_made > self.at and testing == self.in_test:
            self.at = None
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("in_test", "every", "beside"), [
    (False, 100, 0), (False, 2, 0), (True, 2, 0), (False, 100, 4), (False, 2, 4)])
def test_a_signal_ends_the_run_with_a_checkpoint_that_continues_exactly(tmp_path, in_test, every, beside):
    keys = {"iters_per_output": every}
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path / "whole", agent_keys=keys, max_samples=6 * PER_ITER, eval_envs=beside)
    stopped, _, _ = run(tmp_path / "parts", env=Interrupting(60, in_test), agent_keys=keys, max_samples=6 * PER_ITER,
                        eval_envs=beside)
    assert stopped.outcome == "interrupted"
    assert stopped.signal == signal.SIGTERM
    assert stopped.samples < 6 * PER_ITER
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    result, _, _ = run(
        tmp_path / "parts", seed=5, agent_keys=keys, max_samples=6 * PER_ITER, resume=tmp_path / "parts",
        eval_envs=beside)
    assert result.outcome == "completed"
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    iterations = [r[0] for r in read_log(tmp_path / "parts" / "log.txt")[1]]
    assert iterations == [r[0] for r in read_log(tmp_path / "whole" / "log.txt")[1]]


def test_files_of_a_run(tmp_path):
    result, _, _ = run(tmp_path, max_iters=5, save_int_models=True, agent_keys={"iters_per_output": 2})
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "log.txt", "progress.json", "model.pt", "heartbeat/rank_0", "checkpoints/best/model.pt",
        "checkpoints/best/evaluation.json", *(f"int_models/model_{i:010d}.pt" for i in (0, 2, 4)),
        *(f"checkpoints/{i:010d}/{name}" for i in (3, 5) for name in
          ("manifest.json", "manifest.json.sha256", "rank_0.pt", "shared.pt")),
    }
    assert result.checkpoint == str(tmp_path / "checkpoints" / "0000000005")
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["phase"], progress["iteration"], progress["samples"]) == ("done", 4, 5 * PER_ITER)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {
        "_obs_norm._count", "_obs_norm._mean", "_a_norm._std", "_model._actor_layers.0.weight",
        "_model._action_dist._mean_net.bias", "_model._action_dist._logstd_net", "_model._critic_out.weight",
    } <= set(model)
    assert model["_obs_norm._count"].dtype == torch.int64
    assert model["_obs_norm._count"].tolist() == [5 * PER_ITER]
    assert model["_obs_norm._mean"].dtype == torch.float32
    assert result.to_dict()["nonfinite"] == 0


@pytest.mark.parametrize(("options", "outputs", "outcome"), [
    ({"max_samples": 5 * PER_ITER}, ["0", "4"], "completed"),
    ({"max_samples": 5 * PER_ITER, "output_samples": 2 * PER_ITER}, ["0", "2", "4"], "completed"),
    ({"max_samples": 7 * PER_ITER, "output_samples": 3 * PER_ITER, "agent_keys": {"iters_per_output": 4}},
     ["0", "3", "6"], "completed"),
    ({"max_samples": 7 * PER_ITER, "output_samples": 4 * PER_ITER, "agent_keys": {"iters_per_output": 3}},
     ["0", "3", "6"], "completed"),
    ({"max_samples": 3 * PER_ITER, "output_seconds": 0.0}, ["0", "1", "2"], "completed"),
    ({"time_budget_s": 0.0}, ["0"], "budget"),
    ({"max_samples": 1}, ["0"], "completed"),
])
def test_when_outputs_are_made_and_runs_end(tmp_path, options, outputs, outcome):
    result, _, _ = run(tmp_path, **options)
    assert [r[0] for r in read_log(tmp_path / "log.txt")[1]] == outputs
    assert result.outcome == outcome
    assert result.evaluation["episodes"] == 16


def test_training_goes_on_from_fresh_episodes_in_train_mode(tmp_path):
    resets = []

    class Watching(ToyEnv):
        def reset(self, first=None):
            resets.append(self.mode)
            super().reset(first)

    run(tmp_path, env=Watching(16), max_iters=2)
    assert resets == [EnvMode.TRAIN, EnvMode.TEST, EnvMode.TRAIN, EnvMode.TEST, EnvMode.TRAIN]
    run(tmp_path / "longer", max_iters=5, agent_keys={"iters_per_output": 2})
    columns, rows = read_log(tmp_path / "longer/log.txt")
    lengths = [float(row[columns.index("Train_Episode_Length")]) for row in rows]
    assert 0 < max(lengths) <= ToyEnv.episode_steps, "no episode goes on after a pause"


def test_what_an_interrupted_evaluation_changed_is_not_saved(tmp_path):
    class Remembering(Interrupting):
        def set_mode(self, mode):
            if mode is EnvMode.TEST:
                self.before = self._position.clone()
            super().set_mode(mode)

    result, _, env = run(tmp_path, env=Remembering(60, in_test=True), agent_keys={"iters_per_output": 2}, max_iters=6)
    assert result.outcome == "interrupted"
    assert torch.equal(last_checkpoint(tmp_path).local["env"]["position"], env.before)


class Worsening(ToyEnv):
    """Every test pays less than the one before it."""

    pay = 1.0

    def set_mode(self, mode):
        if mode is EnvMode.TEST:
            self.pay *= 0.5
        super().set_mode(mode)

    def step(self, action):
        super().step(action)
        self.reward.mul_(self.pay)


def test_a_worse_evaluation_leaves_the_best_model(tmp_path):
    """Also one of a run that continues: it knows how good the best was."""
    best = tmp_path / "checkpoints" / "best"
    keys = {"iters_per_output": 1}
    run(tmp_path, env=Worsening(16), agent_keys=keys, max_iters=1)
    kept = (best / "model.pt").read_bytes(), (best / "evaluation.json").read_bytes()
    env = Worsening(16)
    env.pay = 0.5
    run(tmp_path, env=env, agent_keys=keys, max_iters=3, resume=tmp_path)
    assert ((best / "model.pt").read_bytes(), (best / "evaluation.json").read_bytes()) == kept
    assert json.loads(kept[1])["iteration"] == 0
    assert (tmp_path / "model.pt").read_bytes() != kept[0]  # that one is always the newest
    env.pay = 64.0
    run(tmp_path, env=env, agent_keys=keys, max_iters=1, resume=tmp_path)
    assert json.loads((best / "evaluation.json").read_text())["iteration"] == 4


def test_few_episodes_do_not_tell_which_policy_is_best(tmp_path, capsys):
    for eval_envs, written in ((7, False), (8, True)):
        folder = tmp_path / str(eval_envs)
        result, _, _ = run(folder, max_iters=6, agent_keys={"iters_per_output": 1}, eval_envs=eval_envs)
        assert result.evaluation["episodes"] == eval_envs
        assert (folder / "checkpoints/best").exists() is written
    assert capsys.readouterr().err.count("evaluations of 7 episodes are too few to tell which policy is best") == 1


def test_progress_knows_where_the_iterations_end(tmp_path, capsys):
    """Also those of a process that continues."""
    run(tmp_path, max_iters=2)
    run(tmp_path, max_iters=2, max_samples=10**9, resume=tmp_path)
    said = [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]
    assert said == ["256 of 512 samples (50.0%)", "512 of 512 samples (100.0%)", "768 of 1.02k samples (75.0%)",
                    "1.02k of 1.02k samples (100.0%)"]
    assert json.loads((tmp_path / "progress.json").read_text())["max_samples"] == 1024


def test_what_was_not_evaluated_is_not_shown(tmp_path, capsys):
    """Neither before the first evaluation, nor where there are to be none."""
    run(tmp_path / "beside", max_iters=3, eval_envs=4)
    first, _, last = capsys.readouterr().out.split("--- ")[1:]
    assert "Test_" not in first and "Train_Return" in first and last
    result, _, _ = run(tmp_path / "none", max_iters=2, agent_keys={"test_episodes": 0, "iters_per_output": 1})
    columns, rows = read_log(tmp_path / "none/log.txt")
    assert not any(name.startswith("Test_") for name in columns) and len(rows) == 2 and result.evaluation is None
    assert not (tmp_path / "none/checkpoints/best").exists()


class NoWaiting(TorchDispatchMode):
    """Refuses operations that wait for a device, or bring host data to it, when they run on CUDA."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.refused, f"{name} waits for the device"
        if name in ("index", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "boolean indexing waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keys", [{}, {"agent_name": "Dummy"}, {
    "actor_optimizer": {"type": "SGD", "learning_rate": 1e-3, "weight_decay": 0.1, "grad_clip": 1.0},
    "model": {**AGENT_CONFIG["model"], "actor_std_type": "CONSTANT"}, "action_entropy_weight": 0.1,
    "action_reg_weight": 0.1, "exp_prob_end": 0.2, "exp_anneal_samples": 100,
}])
def test_rolling_out_and_learning_never_wait_for_the_device(keys):
    seed_process(0, 0)
    env = ToyEnv(16)
    config = {"agent_name": "Dummy"} if keys.get("agent_name") else {**AGENT_CONFIG, **keys}
    agent = build_agent(env, parse_agent_config(config), ALONE)
    tracker = EpisodeTracker(16, "cpu")
    with NoWaiting():
        agent.start_iteration(50)
        roll_out(env, agent, agent.config.steps_per_iter, lambda: tracker.update(env.reward, env.done))
        metrics = agent.update(50)
        tracker.metrics()
        agent.info(50)
    assert all(torch.isfinite(metric.value) for metric in metrics.values())
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        env.reward.sum().item()


def test_nothing_left_to_do_keeps_the_result(tmp_path):
    done, _, _ = run(tmp_path, max_samples=2 * PER_ITER)
    again, _, _ = run(tmp_path, max_samples=2 * PER_ITER, resume=tmp_path)
    assert again.samples == done.samples
    assert again.evaluation == done.evaluation
    assert again.checkpoint == done.checkpoint
    assert again.iterations == 2


def test_a_model_that_was_damaged_is_written_anew_where_nothing_is_left_to_do(tmp_path):
    run(tmp_path, max_samples=2 * PER_ITER)
    whole = torch.load(tmp_path / "model.pt", weights_only=True)
    (tmp_path / "model.pt").write_bytes(b"damaged")
    run(tmp_path, max_samples=2 * PER_ITER, resume=tmp_path)
    anew = torch.load(tmp_path / "model.pt", weights_only=True)
    assert whole.keys() == anew.keys() and all(torch.equal(anew[name], tensor) for name, tensor in whole.items())


def test_other_sizes_cannot_be_continued(tmp_path):
    run(tmp_path, max_iters=1)
    with pytest.raises(UserError, match=r"num_envs 16, this run has 8.*--model_file"):
        run(tmp_path, env=ToyEnv(8), max_iters=1, resume=tmp_path)
    smaller = {"model": {**AGENT_CONFIG["model"], "actor_net": "fc_2layers_256units"}}
    with pytest.raises(UserError, match="_actor_layers"):
        run(tmp_path, agent_keys=smaller, max_iters=1, resume=tmp_path)


def test_a_checkpoint_of_an_earlier_layout_is_refused_with_a_way_out(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("mimickit.learning.run_files.LAYOUT", 1)
        run(tmp_path, max_iters=1)
    with pytest.raises(UserError, match=r"0000000001 was written by another version.*layout 1, here 2.*--model_file"):
        run(tmp_path, max_iters=1, resume=tmp_path)


def test_changed_configuration_is_mentioned(tmp_path, capsys):
    before = {"env": {"name": "toy", "limits": (0.0, float("inf"))}, "agent": {"model": {"action_std": 0.1}}}
    run(tmp_path, max_iters=1, configuration=before)
    run(tmp_path, max_iters=1, configuration=before, resume=tmp_path)
    assert "another configuration" not in capsys.readouterr().err
    after = {**before, "agent": {"model": {"action_std": 0.05}, "discount": 0.9}}
    run(tmp_path, max_iters=1, configuration=after, resume=tmp_path)
    said = capsys.readouterr().err
    assert ("no exact continuation: agent.discount 0.9 (before: 'not there'); "
            "agent.model.action_std 0.05 (before: 0.1)\n") in said


def test_without_random_actions_the_rate_stays(tmp_path):
    keys = {"exp_prob_beg": 0.0, "exp_prob_end": 0.0, "kl_target": 0.03,
            "actor_optimizer": {"type": "Adam", "learning_rate": 1e-3}}
    run(tmp_path, agent_keys=keys, max_iters=4)
    columns, rows = read_log(tmp_path / "log.txt")
    assert float(rows[-1][columns.index("Actor_Rate")]) == pytest.approx(1e-3)


def test_nonfinite_environment_steps_fail_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match=r"iteration 0: 1 environment step"):
        run(tmp_path, env=ToyEnv(16, nan_at=3), max_iters=1)


def test_nonfinite_losses_fail_the_run(tmp_path):
    class Infinite(ToyEnv):
        def step(self, action):
            super().step(action)
            self.reward.fill_(float("inf"))

    with pytest.raises(NonFiniteError, match=r"iteration 0: .*Critic_Loss"):
        run(tmp_path, env=Infinite(16), max_iters=1)


def test_too_large_minibatches_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"actor_batch_size = 17\.0 exceeds steps_per_iter = 16"):
        run(tmp_path, agent_keys={"actor_batch_size": 17}, max_iters=1)


def test_value_passes_in_slices_change_nothing(tmp_path):
    whole = run(tmp_path / "a", max_iters=2)
    sliced = run(tmp_path / "b", max_iters=2, agent_keys={"critic_eval_batch_size": 5})
    for name, tensor in whole[1].model_tensors().items():
        torch.testing.assert_close(sliced[1].model_tensors()[name], tensor, rtol=1e-4, atol=1e-6)


def test_dummy_agent_runs_the_common_loop(tmp_path):
    env = ToyEnv(16)
    agent = build_agent(env, parse_agent_config(None), ALONE)
    result = train(env, agent, ALONE, TrainOptions(tmp_path, max_samples=128))
    assert result.samples == 16 * 32
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {
        f"{norm}.{name}" for norm in ("_obs_norm", "_a_norm") for name in ("_count", "_mean", "_std")}
    assert torch.equal(agent.action, torch.zeros(16, 2))
    assert agent.model_tensors()["_obs_norm._count"].item() == 16 * 32
    columns, _ = read_log(tmp_path / "log.txt")
    assert columns[-3:] == ["Distance_Err", "Obs_Norm_Mean", "Obs_Norm_Std"]
    assert "Critic_Loss" not in columns


def test_what_could_not_be_measured_is_left_out():
    """No episode has ended, so there is no success rate: no NaN may reach a result that is judged."""
    evaluation = Evaluation(1.0, 2.0, 1, {"root_pos_err": 0.1, "success_rate": float("nan"), "far": float("inf")})
    assert evaluation.measured() == {"root_pos_err": 0.1, "far": float("inf")}
