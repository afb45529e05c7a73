"""Episode statistics, the rule for evaluations, and how sure a test is of its numbers."""

import math

import pytest
import torch

from mimickit.envs.base import EnvMode
from mimickit.learning.evaluation import episodes_per_env, evaluate, run_test
from mimickit.learning.metrics import (
    EpisodeRecord,
    EpisodeTracker,
    Metric,
    reduce_metrics,
    student_t95,
    summarize,
    wilson95,
)
from mimickit.util.distributed import Distributed
from mimickit.util.means import Means

ALONE = Distributed.single()


def values(tracker):
    return list(reduce_metrics(tracker.metrics(), ALONE).values())


def test_episode_tracker():
    tracker = EpisodeTracker(3, "cpu")
    assert values(tracker) == [0.0, 0.0, 0.0]
    for reward, done, expected in [
        ([1, 1, 1], [0, 0, 1], [1.0, 1.0, 1]),
        ([1, 2, 3], [0, 3, 0], [2.0, 1.5, 2]),
        ([1, 1, 1], [1, 0, 2], [2.75, 2.0, 4]),
    ]:
        tracker.update(torch.tensor(reward).float(), torch.tensor(done).int())
        assert values(tracker) == pytest.approx(expected)


def test_skipped_environments_do_not_count():
    tracker = EpisodeTracker(3, "cpu", skip=2)
    tracker.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 1, 1]))
    assert values(tracker) == [4.0, 1.0, 1.0]


@pytest.mark.parametrize(("forget", "expected"), [
    (EpisodeTracker.clear, [6.0, 2.0, 1.0]),  # the episode under way goes on
    (EpisodeTracker.restart, [1.0, 1.0, 1.0]),
])
def test_forgetting_what_was_finished_or_everything(forget, expected):
    tracker = EpisodeTracker(2, "cpu")
    tracker.update(torch.tensor([5.0, 9.0]), torch.tensor([0, 1]))
    forget(tracker)
    tracker.update(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]))
    assert values(tracker) == expected


class FixedLengths:
    """Environment ``i`` ends after ``lengths[i]`` steps, reward 1 per step."""

    def __init__(self, lengths):
        self.device, self.num_envs = torch.device("cpu"), len(lengths)
        self.lengths, self.age = torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.int64)
        self.reward, self.done = torch.ones(len(lengths)), torch.zeros(len(lengths), dtype=torch.int32)
        self.modes, self.resets = [], 0

    def set_mode(self, mode):
        self.modes.append(mode)

    def reset(self):
        self.age.zero_()
        self.resets += 1

    def step(self, action):
        self.age += 1
        self.done.copy_(3 * (self.age >= self.lengths).int())
        self.age *= self.done == 0

    def metrics(self):
        return {"root_pos_err": torch.tensor(0.25)}

    def metric_sums(self):
        return {}

    def health(self):
        return {name: torch.tensor(0) for name in ("nonfinite", "contact_overflow", "constraint_overflow")}

    def clear_health(self):
        pass


class NoAgent:
    action = None

    def start_test(self):
        self.tested = 0

    def act_test(self):
        pass

    def observe_test(self):
        self.tested += 1

    def metric_sums(self):
        return {}


@pytest.mark.parametrize(("asked", "episodes", "steps"), [(8, 8, 24), (3, 4, 16)])
def test_short_episodes_do_not_weigh_more(asked, episodes, steps):
    env, agent = FixedLengths([2, 3, 5, 10]), NoAgent()
    found = evaluate(env, agent, ALONE, asked)
    assert (found.episodes, found.mean_return, found.episode_length) == (episodes, 5.0, 5.0)
    assert found.complete
    assert found.metrics == {"root_pos_err": 0.25} and agent.tested == steps
    assert env.modes == [EnvMode.TEST]
    assert env.resets == 1


def test_no_episodes_asked():
    assert evaluate(FixedLengths([2]), NoAgent(), ALONE, 0) is None


def test_evaluation_can_be_stopped_and_says_so():
    found = evaluate(FixedLengths([2, 1000]), NoAgent(), ALONE, 2, should_stop=lambda: True)
    assert not found.complete
    assert found.episodes == 1


def test_episodes_can_be_cut():
    found = evaluate(FixedLengths([2, 1000]), NoAgent(), ALONE, 2, max_episode_steps=6)
    assert found.episodes == 2
    assert found.episode_length == 4.0


@pytest.mark.parametrize(("episodes", "num_envs", "world_size", "expected"), [
    (8, 4, 1, 2), (3, 4, 1, 1), (32, 4096, 2, 1), (33, 4, 2, 5), (0, 4, 1, 0), (2**63 - 1, 4, 1, 2**61),
])
def test_episodes_per_env(episodes, num_envs, world_size, expected):
    assert episodes_per_env(episodes, num_envs, world_size) == expected


def test_metrics_of_one_process():
    t = torch.tensor
    found = reduce_metrics({
        "mean": Metric(t(3.0)), "none": Metric(t(3.0), "mean", 0.0), "sum": Metric(t(4), "sum"),
        "min": Metric(t(-2.0), "min"), "max": Metric(t(7.0), "max"), "bad": Metric(t(float("nan"))),
    }, ALONE)
    bad = found.pop("bad")
    assert bad != bad
    assert found == {"mean": 3.0, "none": 0.0, "sum": 4.0, "min": -2.0, "max": 7.0}


# --- the record of episodes -------------------------------------------------------------------------------------------


def test_record_keeps_the_first_episodes_one_by_one():
    """Two episodes of each of two environments; the measure counts only within them."""
    error, steps = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    record = EpisodeRecord(2, "cpu", per_env=2, metrics={"err": (error, steps)})
    for reward, done, err in [
        ([1.0, 2.0], [0, 1], [0.1, 1.0]), ([1.0, 2.0], [3, 0], [0.3, 2.0]), ([5.0, 2.0], [2, 3], [0.5, 4.0]),
        ([9.0, 9.0], [1, 1], [9.0, 9.0]),
    ]:
        error += torch.tensor(err)
        steps += 1
        assert not record.complete()
        record.update(torch.tensor(reward), torch.tensor(done))
        if int(record.finished.min()) == 2:
            break
    assert record.complete()
    record.update(torch.tensor([7.0, 7.0]), torch.tensor([1, 1]))  # a third one: does not count
    assert record.names == ("return", "length", "survival", "err")
    rows = record.episodes()
    expected = [[2.0, 2.0, 1.0, 0.4], [2.0, 1.0, 0.0, 1.0], [5.0, 1.0, 1.0, 0.5], [4.0, 2.0, 1.0, 6.0]]
    torch.testing.assert_close(rows[:, :, 0], torch.tensor(expected, dtype=torch.float64))
    assert rows[:, 3, 1].tolist() == [2.0, 1.0, 1.0, 2.0]
    assert {name: float(total / weight) for name, (total, weight) in record.sums().items()} == pytest.approx(
        {"return": 13 / 4, "length": 6 / 4, "survival": 3 / 4, "err": 7.9 / 6})


def test_record_of_very_many_episodes_keeps_the_first():
    record = EpisodeRecord(40000, "cpu", per_env=2**61)
    for _ in range(3):
        record.update(torch.ones(40000), torch.ones(40000, dtype=torch.int32))
    assert not record.complete()
    assert record.episodes().shape == (40000, 3, 2)


class Measured(FixedLengths):
    """Error of environment ``i``: i in every step. All episodes of environment 0 fail."""

    def __init__(self, lengths):
        super().__init__(lengths)
        self.total, self.count = (torch.zeros(len(lengths), dtype=torch.float64) for _ in range(2))

    def step(self, action):
        super().step(action)
        self.total += torch.arange(self.num_envs)
        self.count += 1
        self.done[0] = int(self.done[0] != 0)

    def metric_sums(self):
        return {"err": (self.total, self.count), "never": (self.total, torch.zeros_like(self.total))}

    def metrics(self):
        return {"err": (self.total / self.count).mean(), "never": torch.tensor(math.nan), "other": torch.tensor(7.0)}


def test_only_steps_of_counted_episodes_are_measured():
    """Each environment contributes one episode; the short ones go on meanwhile, which changes nothing."""
    found = run_test(Measured([2, 3, 5, 10]), NoAgent(), ALONE, 4)
    assert found.measures == {"survival": 0.75, "err": pytest.approx((3 + 10 + 30) / 20), "other": 7.0}
    assert set(found.statistics) == {"return", "length", "survival", "err"}
    length = found.statistics["length"]
    assert (length["mean"], length["episodes"], length["min"], length["max"]) == (5.0, 4, 2.0, 10.0)
    assert length["ci95"] == pytest.approx(3.1824 * math.sqrt((9 + 4 + 0 + 25) / 3 / 4), rel=1e-4)
    assert length["quantiles"]["50"] == 4.0


class Judging(NoAgent):
    """Tells of every step which one of the test it is."""

    def __init__(self, num_envs):
        self.means = Means(("test_step",), num_envs, "cpu")

    def observe_test(self):
        super().observe_test()
        every = torch.full_like(self.means.count, self.tested)
        self.means.add(every.unsqueeze(-1), torch.ones_like(every, dtype=torch.bool))

    def metric_sums(self):
        return self.means.per_env()


def test_what_the_agent_measures_counts_by_episode_too():
    """The last step of an episode belongs to it."""
    found = run_test(FixedLengths([2, 3, 5]), Judging(3), ALONE, 3)
    step = found.statistics["test_step"]
    assert (step["mean"], step["episodes"], step["min"], step["max"]) == (2.4, 3, 1.5, 3.0)
    assert found.measures["test_step"] == 2.4 and step["ci95"] > 0.0


def test_few_of_many_episodes_are_the_first():
    found = run_test(FixedLengths([2, 3, 5, 10]), NoAgent(), ALONE, 2, statistics_episodes=4)
    assert (found.test_episodes, found.test_return, found.test_episode_length) == (2, 2.5, 2.5)
    assert (found.statistics["return"]["episodes"], found.statistics["return"]["mean"]) == (4, 5.0)
    more = run_test(FixedLengths([2, 3, 5, 10]), NoAgent(), ALONE, 10, statistics_episodes=3)
    assert (more.test_episodes, more.statistics["return"]["episodes"]) == (10, 12)


def test_a_stopped_test_tells_what_it_has():
    found = run_test(FixedLengths([2, 1000]), NoAgent(), ALONE, 2, should_stop=lambda: True)
    assert (found.test_episodes, found.complete, found.statistics["return"]["ci95"]) == (1, False, None)
    nothing = run_test(FixedLengths([1000]), NoAgent(), ALONE, 2, should_stop=lambda: True)
    assert (nothing.test_episodes, nothing.test_return, nothing.statistics) == (0, 0.0, {})


def test_interval_of_a_ratio():
    """Two episodes with 1 and 3 steps: residuals 3 and -3."""
    found = summarize(torch.tensor([4.0, 0.0, 0.0]), torch.tensor([1.0, 3.0, 0.0]))
    assert (found["mean"], found["episodes"], found["max"]) == (1.0, 2, 4.0)
    assert found["ci95"] == pytest.approx(12.7062 * math.sqrt(2 * 18) / 4)
    assert summarize(torch.tensor([1.0]), torch.tensor([0.0])) is None


def test_interval_of_a_share():
    found = summarize(torch.zeros(10), torch.ones(10), share=True)
    assert (found["mean"], found["ci95"]) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson95(0.5, 100) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert summarize(torch.zeros(10), torch.ones(10))["ci95"] == 0.0


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (1000, 1.962)])
def test_student(freedom, expected):
    assert student_t95(freedom) == pytest.approx(expected, abs=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Steps of one episode are alike, and long episodes are worse: pooled steps would look far too sure."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        steps = torch.randint(1, 20, (60,), generator=generator).double()
        level = 0.1 * steps + torch.randn(60, generator=generator)
        found = summarize(level * steps, steps)
        inside += abs(found["mean"] - 0.1 * (19 * 20 * 39 / 6) / (19 * 20 / 2)) < found["ci95"]
    assert 0.92 < inside / 400 < 0.98
