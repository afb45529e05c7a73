"""Graphed functions on CPU; on CUDA the same checks run when a device is there."""

import pytest
import torch

from mimickit.util.graphs import Graphed, SideStreamGraph

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_has_the_effect_of_one(device):
    total, noise = torch.zeros(3, device=device), torch.zeros(3, device=device)

    def fn():
        noise.copy_(torch.rand_like(noise))
        total.add_(noise)

    torch.manual_seed(0)
    expected = [torch.rand(3, device=device) for _ in range(3)]
    torch.manual_seed(0)
    graphed = Graphed(fn, device, state=[total])
    for k in range(3):
        graphed()
        torch.testing.assert_close(noise, expected[k])
        torch.testing.assert_close(total, sum(expected[:k + 1]))
    assert graphed.captured == (device == "cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_that_share_memory_do_not_disturb_each_other(device):
    x, results = torch.arange(4096.0, device=device), [torch.zeros(4096, device=device) for _ in range(3)]

    def make(k):
        def fn():
            y = x + k
            results[k].copy_(y.square().cumsum(0) + y)
        return Graphed(fn, device)

    graphs = [make(k) for k in range(3)]
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0, 2)):
        x.add_(1.0)
        for k in order:
            graphs[k]()
        for k in range(3):
            torch.testing.assert_close(results[k], (x + k).square().cumsum(0) + x + k)


def test_warmup_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        Graphed(lambda: None, "cpu", warmup=0)


@pytest.mark.parametrize("device", DEVICES)
def test_what_runs_beside_sees_what_came_before_and_is_seen_after(device):
    x, step = torch.zeros(1 << 20, device=device), torch.zeros((), device=device)

    def fn():
        return (x * 2.0 + step, torch.rand(3, device=device))

    torch.manual_seed(0)
    expected = [torch.rand(3, device=device) for _ in range(4)]
    torch.manual_seed(0)
    beside = SideStreamGraph(fn, device)
    meanwhile = torch.ones(1 << 20, device=device)
    for k in range(4):
        x.fill_(float(k))
        step.add_(1.0)
        beside.begin()
        for _ in range(20):
            meanwhile.mul_(1.5).sub_(0.5)  # stays 1
        beside.wait()
        doubled, noise = beside.result
        torch.testing.assert_close(doubled, torch.full_like(doubled, 2.0 * k + k + 1.0))
        torch.testing.assert_close(noise, expected[k])
        assert meanwhile.unique().tolist() == [1.0]
