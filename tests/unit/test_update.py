"""Which networks learn together."""

import pytest

from mimickit.learning.update import in_pairs


@pytest.mark.parametrize("counts, rounds",
                         [([8, 20, 4, 4], 20), ([8, 20], 20), ([3], 3), ([4, 4, 4], 6), ([1, 1, 5], 5)])
def test_pairs_make_every_step_once_in_few_rounds(counts, rounds):
    found = list(in_pairs(counts))
    assert len(found) == rounds
    assert max(map(len, found)) <= 2
    for k, count in enumerate(counts):
        assert [steps[k] for steps in found if k in steps] == list(range(count))


def test_a_pair_is_always_in_the_same_order():
    assert all(list(steps) == sorted(steps) for steps in in_pairs([8, 20, 4, 4]))
