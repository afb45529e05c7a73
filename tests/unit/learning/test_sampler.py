"""Minibatches and rollout storage."""

import pytest
import torch

from mimickit.learning.config import minibatch_plan
from mimickit.learning.rollout import MinibatchSampler, Rollout, SampleTable


@pytest.mark.parametrize(("num_envs", "steps", "batch", "epochs", "expected"), [
    (4096, 32, 4, 5, (16384, 40)), (4096, 32, 2, 2, (8192, 32)), (100, 32, 3, 2, (300, 22)), (8, 32, 2.5, 1, (20, 13)),
])
def test_minibatch_plan(num_envs, steps, batch, epochs, expected):
    assert minibatch_plan(steps, num_envs, batch, epochs) == expected


@pytest.mark.parametrize(("capacity", "count"), [(12, 4), (10, 3), (10, 7), (5, 12)])
def test_every_index_is_drawn_equally_often(capacity, count):
    torch.manual_seed(0)
    sampler = MinibatchSampler(capacity, "cpu")
    draws = torch.cat([sampler.draw(count) for _ in range(capacity)])
    assert torch.equal(torch.bincount(draws, minlength=capacity), torch.full((capacity,), count))
    for start in range(0, capacity * count, capacity):  # each pass is a permutation
        assert draws[start:start + capacity].sort().values.tolist() == list(range(capacity))


def test_drawn_indices_survive_the_next_permutation():
    torch.manual_seed(0)
    sampler = MinibatchSampler(100, "cpu")
    first = sampler.draw(100)
    kept = first.clone()
    second = sampler.draw(100)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_restart_forgets_the_present_pass():
    torch.manual_seed(0)
    sampler = MinibatchSampler(10, "cpu")
    sampler.draw(7)
    sampler.restart()
    assert sampler.draw(10).sort().values.tolist() == list(range(10))


def test_goes_on_from_its_state():
    torch.manual_seed(0)
    sampler, other = MinibatchSampler(10, "cpu"), MinibatchSampler(10, "cpu")
    first = sampler.draw(7)
    other.load(sampler.state())
    rest = sampler.draw(3)
    assert torch.equal(other.draw(3), rest)
    assert torch.cat([first, rest]).sort().values.tolist() == list(range(10))
    other.load(MinibatchSampler(10, "cpu").state())  # one that has drawn nothing begins with a random order
    assert other.draw(10).tolist() != list(range(10))


def test_rollout_copies_and_flattens_time_first():
    rollout = Rollout(3, 2, {"obs": (1,), "done": ()}, "cpu", dtypes={"done": torch.int32})
    obs = torch.zeros(2, 1)
    for t in range(3):
        obs.copy_(torch.tensor([[10.0 * t], [10.0 * t + 1.0]]))
        rollout.record(t, obs=obs, done=torch.tensor([t, -t], dtype=torch.int32))
    obs.fill_(-1.0)
    assert rollout.num_samples == 6
    assert rollout.take("obs", torch.tensor([0, 1, 4]))[:, 0].tolist() == [0.0, 1.0, 20.0]
    assert rollout.take("done", torch.tensor([5])).tolist() == [-2]
    assert rollout["obs"].shape == (3, 2, 1)


def test_table_gives_minibatches_of_all_its_columns():
    torch.manual_seed(0)
    table = SampleTable(3, 2, {"obs": (33,), "mask": (), "action": (2,)}, "cpu")
    kept = {"obs": torch.randn(3, 2, 33), "mask": torch.randn(3, 2), "action": torch.randn(3, 2, 2)}
    for t in range(3):
        table.record(t, **{name: values[t] for name, values in kept.items()})
    index = torch.tensor([5, 0, 3, 3])
    batch = table.minibatch(index)
    for name, values in kept.items():
        assert torch.equal(table[name], values)
        assert torch.equal(batch[name], values.flatten(0, 1)[index])
        assert torch.equal(table.take(name, index), batch[name])
    assert batch["obs"].stride() == (64, 1)  # rows begin on boundaries of 128 bytes
