"""Normalisers against hand-computed numbers."""

import pytest
import torch

from mimickit.learning import normalizer
from mimickit.learning.normalizer import ActionNormalizer, MeanAbsNormalizer, MeanStdNormalizer
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

ALONE = Distributed.single()


def close(found, expected, rtol=1e-5):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=rtol, atol=1e-7)


def after_one_update():
    norm = MeanStdNormalizer(3, "cpu", clip=10.0)
    norm.record(torch.tensor([[1.0, 10.0, 5.0], [2.0, 20.0, 5.0]]))
    norm.record(torch.tensor([[3.0, 30.0, 5.0], [6.0, 40.0, 5.0]]))
    norm.update(ALONE)
    return norm


def after_two_updates():
    norm = after_one_update()
    norm.record(torch.tensor([[0.0, 0.0, 5.0], [4.0, 100.0, 5.0]]))
    norm.update(ALONE)
    return norm


def test_fresh_normalizer_only_clips_and_recording_changes_nothing():
    norm = MeanStdNormalizer(3, "cpu", clip=10.0)
    x = torch.tensor([5.0, -20.0, 3.0])
    close(norm.normalize(x), [5.0, -10.0, 3.0])
    norm.record(torch.tensor([[1.0, 10.0, 5.0]]))
    close(norm.normalize(x), [5.0, -10.0, 3.0])
    assert norm.count.item() == 0


def test_updates():
    norm = after_one_update()
    assert norm.count.item() == 4
    close(norm.mean, [3.0, 25.0, 5.0])
    close(norm.std, [1.8708287, 11.1803398, 0.0001])
    norm = after_two_updates()
    assert norm.count.item() == 6
    close(norm.mean, [2.6666667, 33.333333, 5.0])
    close(norm.std, [1.9720266, 32.489315, 0.0001])
    close(norm.normalize(torch.tensor([4.0, 100.0, 5.0])), [0.6761234, 2.0519567, 0.0])
    close(norm.normalize(torch.tensor([100.0, -1000.0, 5.0])), [10.0, -10.0, 0.0])


def test_moments_are_recomputed_after_loading_into_a_used_normalizer():
    saved, norm = after_two_updates(), after_one_update()
    for name in ("count", "mean", "std"):  # what a model file holds
        getattr(norm, name).copy_(getattr(saved, name))
    norm.restore_moments()
    norm.record(torch.tensor([[0.0, 0.0, 5.0], [4.0, 100.0, 5.0]]))
    norm.update(ALONE)
    assert norm.count.item() == 8
    close(norm.mean, [2.5, 37.5, 5.0])
    close(norm.std[:2], [2.0, 38.324274])


def test_update_without_samples_is_a_no_op():
    fresh = MeanStdNormalizer(2, "cpu")
    fresh.update(ALONE)
    close(fresh.std, [1.0, 1.0])
    norm = after_two_updates()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm.update(ALONE)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


def test_leading_dimensions_are_pooled():
    norm = MeanStdNormalizer(2, "cpu")
    norm.record(torch.arange(12.0).reshape(2, 3, 2))
    norm.update(ALONE)
    assert norm.count.item() == 6
    close(norm.mean, [5.0, 6.0])
    close(norm.std, [3.4156503, 3.4156503])


@pytest.mark.parametrize("parts", [1, 10])
def test_large_offsets_do_not_cancel(parts):
    norm = MeanStdNormalizer(1, "cpu")
    x = (1000.0 + 0.01 * torch.arange(100, dtype=torch.float64)).unsqueeze(1)
    for part in x[torch.randperm(100, generator=torch.Generator().manual_seed(0))].split(100 // parts):
        norm.record(part)
        norm.update(ALONE)
    assert norm.std.item() == pytest.approx(0.28866, rel=1e-4)


def test_merging_in_parts_equals_one_batch():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * 3.0 + 2.0
    parts, whole = MeanStdNormalizer(4, "cpu"), MeanStdNormalizer(4, "cpu")
    for part in x.split(7):
        parts.record(part)
        parts.update(ALONE)
    whole.record(x)
    whole.update(ALONE)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(whole.std, x.std(0, correction=0))
    torch.testing.assert_close(parts.std, whole.std)


def test_difference_normalizer():
    norm = MeanAbsNormalizer(3, "cpu")
    close(norm.normalize(torch.tensor([2.0, -3.0, 0.5])), [2.0, -3.0, 0.5])
    norm.record(torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]]))
    norm.update(ALONE)
    assert norm.count.item() == 2
    close(norm.mean_abs, [2.0, 3.0, 0.0])
    close(norm.normalize(torch.tensor([1.0, 1.0, 0.001])), [0.5, 0.3333333, 10.0])
    norm.record(torch.tensor([[8.0, 0.0, 0.0]]))
    norm.update(ALONE)
    assert norm.count.item() == 3
    close(norm.mean_abs, [4.0, 2.0, 0.0])
    norm.update(ALONE)
    close(norm.mean_abs, [4.0, 2.0, 0.0])


def test_action_normalizer():
    norm = ActionNormalizer(torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 4.0]))
    close(norm.mean, [0.0, 0.0, 2.0])
    close(norm.std, [1.0, 2.0, 2.0])
    close(norm.to_env(torch.tensor([0.5, -1.0, 0.0])), [0.5, -2.0, 2.0])
    assert norm.count.item() == 0


@pytest.mark.parametrize("high", [[1.0, float("inf")], [1.0, -1.0]])
def test_joints_without_range_are_refused(high):
    with pytest.raises(UserError, match=r"actions \[1\].*limits"):
        ActionNormalizer(torch.tensor([-1.0, -1.0]), torch.tensor(high))


@pytest.mark.parametrize("kind", [MeanStdNormalizer, MeanAbsNormalizer])
def test_many_samples_are_recorded_piece_by_piece(kind, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    whole, pieces = kind(3, "cpu"), kind(3, "cpu")
    whole.record(x)
    monkeypatch.setattr(normalizer, "RECORD_SAMPLES", 4)
    pieces.record(x)
    for norm in (whole, pieces):
        norm.update(ALONE)
    assert pieces.count.tolist() == [10]
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], expected)
