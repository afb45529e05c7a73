"""The ring of past samples."""

import pytest
import torch

from mimickit.learning.replay import ReplayRing
from mimickit.util.failures import UserError


def column(first, last):
    return torch.arange(first, last + 1, dtype=torch.float32).unsqueeze(1)


def test_oldest_are_overwritten():
    ring = ReplayRing(10, 1, "cpu")
    ring.push(column(0, 5))
    assert not ring.full
    ring.push(column(10, 15))
    assert ring.data[:, 0].tolist() == [14, 15, 2, 3, 4, 5, 10, 11, 12, 13]
    assert ring.full and ring.received % ring.capacity == 2


def test_draws_are_uniform_over_what_is_there():
    torch.manual_seed(0)
    ring = ReplayRing(100, 1, "cpu")
    ring.push(column(1, 30))
    counts = torch.bincount(ring.draw(30_000)[:, 0].long(), minlength=31)
    assert counts[0] == 0  # nothing of the empty part
    assert counts[1:].min() > 850 and counts[1:].max() < 1150


def test_rollouts_enter_whole_until_full_then_a_subset():
    torch.manual_seed(0)
    ring = ReplayRing(20, 1, "cpu")
    ring.push_rollout(column(1, 8), 3)
    assert ring.received == 8 and sorted(ring.data[:8, 0].tolist()) == list(range(1, 9))
    assert ring.data[:8, 0].tolist() != list(range(1, 9))
    ring.push_rollout(column(11, 18), 3)
    ring.push_rollout(column(21, 28), 3)  # runs over the end
    assert ring.received == 24 and ring.full
    ring.push_rollout(column(31, 38), 3)
    assert ring.received == 27
    fresh = ring.data[4:7, 0].tolist()
    assert all(31 <= value <= 38 for value in fresh) and len(set(fresh)) == 3
    assert (ring.data > 30).sum() == 3


@pytest.mark.parametrize("count_when_full", [3, 50])
def test_a_rollout_larger_than_the_ring_leaves_a_random_subset(count_when_full):
    torch.manual_seed(0)
    ring = ReplayRing(10, 1, "cpu")
    for _ in range(2):
        ring.push_rollout(column(0, 99), count_when_full)
        values = ring.data[:, 0].tolist()
        assert all(0 <= v <= 99 for v in values) and max(values) > 40
    assert ring.full and ring.received == 10 + min(count_when_full, 10)


def test_continues_exactly_from_saved_tensors():
    torch.manual_seed(0)
    ring, other = ReplayRing(10, 2, "cpu"), ReplayRing(10, 2, "cpu")
    ring.push(torch.randn(7, 2))
    state = ring.state()
    assert state["data"].shape == (7, 2)  # what is there, no more
    other.load(state, "x")
    more = torch.randn(5, 2)
    ring.push(more)
    other.push(more)
    assert torch.equal(ring.data, other.data) and other.received == 12
    torch.manual_seed(1)
    drawn = ring.draw(50)
    torch.manual_seed(1)
    assert torch.equal(drawn, other.draw(50))
    ring.push(torch.randn(8, 2))
    with pytest.raises(UserError, match=r"x: the discriminator's replay holds \(10, 2\).*after 20 samples.*\(15, 2\)"):
        ReplayRing(15, 2, "cpu").load(ring.state(), "x")
