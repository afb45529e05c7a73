"""The ring of past samples."""

import pytest
import torch

from mimickit.learning.rollout import ReplayBuffer
from mimickit.util.failures import UserError


def column(first, last):
    return torch.arange(first, last + 1, dtype=torch.float32).unsqueeze(1)


def test_oldest_are_overwritten():
    ring = ReplayBuffer(10, 1, "cpu")
    ring.push(column(0, 5))
    assert not ring.full
    ring.push(column(10, 15))
    assert ring.data[:, 0].tolist() == [14, 15, 2, 3, 4, 5, 10, 11, 12, 13]
    assert ring.full and ring.received % ring.capacity == 2


def drawn(ring, count):
    """Numbers of ``count`` samples."""
    return ring.take(ring.walk.draw(count))[:, 0].int().tolist()


@pytest.mark.parametrize("pushed", [10, 25])
@pytest.mark.parametrize("count", [1, 3, 10, 25])
def test_every_row_of_a_full_ring_is_drawn_equally_often(pushed, count):
    torch.manual_seed(0)
    ring = ReplayBuffer(10, 1, "cpu")
    for first in range(1, pushed + 1, 5):
        ring.push(column(first, first + 4))
    numbers = [number for _ in range(10) for number in drawn(ring, count)]
    for start in range(0, len(numbers), 10):  # each pass holds every sample once
        assert sorted(numbers[start:start + 10]) == list(range(pushed - 9, pushed + 1))
    assert len(numbers) == 10 * count and numbers[:10] != list(range(pushed - 9, pushed + 1))


def test_draws_cover_what_is_there_and_nothing_else():
    torch.manual_seed(0)
    ring = ReplayBuffer(100, 1, "cpu")
    ring.push(column(1, 30))
    first_drawn = set()
    for _ in range(20):
        assert sorted(drawn(ring, 40) + drawn(ring, 50)) == sorted([*range(1, 31)] * 3)
        first_drawn.add(drawn(ring, 30)[0])
    assert len(first_drawn) > 10  # every pass in an order of its own
    ring.push(column(31, 45))
    assert sorted(drawn(ring, 45)) == list(range(1, 46))


def test_a_new_walk_begins_when_the_ring_grows():
    torch.manual_seed(0)
    ring = ReplayBuffer(10, 1, "cpu")
    ring.push(column(1, 6))
    drawn(ring, 4)  # two are left of the pass
    ring.push(column(7, 8))
    assert sorted(drawn(ring, 8)) == list(range(1, 9))


def test_the_walk_through_a_full_ring_goes_on_and_shows_what_overwrites():
    torch.manual_seed(0)
    ring = ReplayBuffer(10, 1, "cpu")
    ring.push(column(0, 9))
    before = drawn(ring, 4)
    ring.push(column(10, 12))  # in place of 0, 1, 2
    after = drawn(ring, 6)
    assert sorted(before + [number % 10 for number in after]) == list(range(10))
    assert not {0, 1, 2} & set(after)
    assert sorted(drawn(ring, 10)) == list(range(3, 13))


def test_nothing_can_be_drawn_from_an_empty_ring():
    with pytest.raises(AssertionError, match="nothing to draw from"):
        ReplayBuffer(10, 1, "cpu").walk.draw(1)


def test_rollouts_enter_whole_until_full_then_a_subset():
    torch.manual_seed(0)
    ring = ReplayBuffer(20, 1, "cpu")
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
    ring = ReplayBuffer(10, 1, "cpu")
    for _ in range(2):
        ring.push_rollout(column(0, 99), count_when_full)
        values = ring.data[:, 0].tolist()
        assert all(0 <= v <= 99 for v in values) and max(values) > 40
    assert ring.full and ring.received == 10 + min(count_when_full, 10)


def test_continues_exactly_from_saved_tensors():
    torch.manual_seed(0)
    ring, other = ReplayBuffer(10, 2, "cpu"), ReplayBuffer(10, 2, "cpu")
    ring.push(torch.randn(7, 2))
    state = ring.state()
    assert state["data"].shape == (7, 2)  # what is there, no more
    other.load(state, "x")
    more = torch.randn(5, 2)
    ring.push(more)
    other.push(more)
    assert torch.equal(ring.data, other.data) and other.received == 12
    ring.push(torch.randn(8, 2))
    with pytest.raises(UserError, match=r"x: the discriminator's replay holds \(10, 2\).*after 20 samples.*\(15, 2\)"):
        ReplayBuffer(15, 2, "cpu").load(ring.state(), "x")
    with pytest.raises(UserError, match=r"x: the discriminator's replay lacks order, position"):
        other.load({name: ring.state()[name] for name in ("data", "received")}, "x")


@pytest.mark.parametrize("pushed", [7, 10, 23])
@pytest.mark.parametrize("taken", [0, 3, 7, 16])
def test_continues_with_the_same_draws(pushed, taken):
    torch.manual_seed(0)
    ring, other = ReplayBuffer(10, 1, "cpu"), ReplayBuffer(10, 1, "cpu")
    for number in range(pushed):
        ring.push(column(number, number))
    if taken:  # else the walk has not begun
        drawn(ring, taken)
    state = {name: tensor.clone() for name, tensor in ring.state().items()}
    other.load(state, "x")
    random = torch.get_rng_state()
    expected = drawn(ring, 4) + drawn(ring, 20)
    ring.push(column(50, 51))
    expected += drawn(ring, 15)
    torch.set_rng_state(random)
    found = drawn(other, 4) + drawn(other, 20)
    other.push(column(50, 51))
    assert found + drawn(other, 15) == expected


def test_an_empty_ring_can_be_saved():
    ring, other = ReplayBuffer(10, 1, "cpu"), ReplayBuffer(10, 1, "cpu")
    other.load(ring.state(), "x")
    other.push(column(1, 4))
    assert sorted(drawn(other, 4)) == [1, 2, 3, 4]
