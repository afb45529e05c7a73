"""Episode statistics and the rule for evaluations."""

import pytest
import torch

from mimickit.envs.base import EnvMode
from mimickit.learning.evaluate import episodes_per_env, evaluate
from mimickit.learning.stats import Stat, reduce_stats
from mimickit.learning.tracker import EpisodeTracker
from mimickit.util.distributed import Distributed

ALONE = Distributed.single()


def values(tracker):
    return list(reduce_stats(dict(zip("abc", tracker.stats(), strict=True)), ALONE).values())


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
    assert tracker.env_episodes.tolist() == [1, 1, 2]


def test_clearing_drops_partial_episodes():
    tracker = EpisodeTracker(1, "cpu")
    tracker.update(torch.tensor([5.0]), torch.tensor([0]))
    tracker.clear()
    tracker.update(torch.tensor([1.0]), torch.tensor([1]))
    assert values(tracker) == [1.0, 1.0, 1.0]


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

    def diagnostics(self):
        return {"root_pos_err": torch.tensor(0.25)}


class NoAgent:
    action = None

    def start_test(self):
        self.tested = 0

    def act_test(self):
        pass

    def observe_test(self):
        self.tested += 1

    def diagnostics(self):
        return {"tested_steps": torch.tensor(float(self.tested))}


@pytest.mark.parametrize(("asked", "episodes", "steps"), [(8, 8, 24), (3, 4, 16)])
def test_short_episodes_do_not_weigh_more(asked, episodes, steps):
    env = FixedLengths([2, 3, 5, 10])
    found = evaluate(env, NoAgent(), ALONE, asked)
    assert (found.episodes, found.mean_return, found.episode_length) == (episodes, 5.0, 5.0)
    assert found.complete
    assert found.measures == {"root_pos_err": 0.25, "tested_steps": steps}
    assert env.modes == [EnvMode.TEST]
    assert env.resets == 1


def test_no_episodes_asked():
    found = evaluate(FixedLengths([2]), NoAgent(), ALONE, 0)
    assert (found.episodes, found.mean_return, found.complete) == (0, 0.0, True)


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


def test_stats_of_one_process():
    t = torch.tensor
    found = reduce_stats({
        "mean": Stat(t(3.0)), "none": Stat(t(3.0), "mean", 0.0), "sum": Stat(t(4), "sum"), "min": Stat(t(-2.0), "min"),
        "max": Stat(t(7.0), "max"), "bad": Stat(t(float("nan"))),
    }, ALONE)
    bad = found.pop("bad")
    assert bad != bad
    assert found == {"mean": 3.0, "none": 0.0, "sum": 4.0, "min": -2.0, "max": 7.0}
