"""Layers whose gradient is written out, against torch's own, in float64 and in bfloat16."""

import pytest
import torch
from torch import nn

from mimickit.learning.adversarial import Demonstrations, Differences, DiscriminatorNet, discriminator_loss
from mimickit.learning.model import build_net, hidden_dtype
from mimickit.learning.relu_layers import aligned, aligned_size
from mimickit.util.distributed import Distributed
from tests.unit.method_case import StillEnv, config

BF16 = torch.bfloat16
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def gradients(outputs, *inputs):
    factors = torch.linspace(-1.0, 1.0, outputs.numel(), device=outputs.device).view_as(outputs)
    return torch.autograd.grad((outputs * factors).sum(), inputs)


@pytest.mark.parametrize("name", ["fc_2layers_128units", "fc_3layers_1024units"])
def test_values_and_gradients_are_torchs(name):
    torch.manual_seed(0)
    net, _ = build_net(name, 5)
    net = net.double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    plain = nn.Sequential(*net)
    torch.testing.assert_close(net(x), plain(x))
    inputs = (x, *net.parameters())
    for ours, theirs in zip(gradients(net(x).float(), *inputs), gradients(plain(x).float(), *inputs), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_near_and_gives_float32(device):
    torch.manual_seed(0)
    wide, narrow = (build_net("fc_3layers_1024units", 13, dtype)[0].to(device) for dtype in (None, BF16))
    narrow.load_state_dict(wide.state_dict())
    x = torch.randn(512, 13, device=device, requires_grad=True)
    expected, found = wide(x), narrow(x)
    assert found.dtype == torch.float32 and 1e-5 < relative(found, expected) < 1e-2
    for ours, theirs in zip(gradients(found, x, *narrow.parameters()), gradients(expected, x, *wide.parameters()),
                            strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape and relative(ours, theirs) < 1e-1
    torch.testing.assert_close(narrow(aligned(x.detach(), BF16)), found, rtol=0, atol=0)


def test_alignment_fills_with_zeros():
    x = torch.randn(3, 13)
    wide = aligned(x, BF16)
    assert wide.shape == (3, 16) and aligned_size(13, BF16) == 16 and wide[:, 13:].abs().max() == 0
    torch.testing.assert_close(wide[:, :13], x.to(BF16))
    assert aligned(wide, BF16) is wide and aligned(x, torch.float32) is x and aligned_size(13, torch.float32) == 13


@pytest.mark.parametrize("device", DEVICES)
def test_discriminator_in_bfloat16_is_near(device):
    torch.manual_seed(0)
    net = DiscriminatorNet(13, "fc_2layers_256units").to(device)
    x = torch.randn(600, 13, device=device)
    expected = discriminator_loss(net, x, 400, 5.0, 0.01)
    found = discriminator_loss(net, aligned(x, BF16), 400, 5.0, 0.01)
    for name in ("loss", "grad_penalty", "neg_logit"):
        assert relative(found[name], expected[name]) < 2e-2, name
    for ours, theirs in zip(torch.autograd.grad(found["loss"], list(net.parameters())),
                            torch.autograd.grad(expected["loss"], list(net.parameters())), strict=True):
        assert ours.dtype == torch.float32 and relative(ours, theirs) < 5e-2


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_networks_look_at_the_rollout_normalised_once(dtype):
    torch.manual_seed(0)
    obs, demo = torch.randn(4, 3), torch.randn(4, 3)
    env = StillEnv(4, disc_obs=obs, disc_demo=demo, disc_obs_demo=demo)
    settings = config("AMP", steps_per_iter=2, actor_batch_size=2)
    for kind, agents, real in ((Demonstrations, obs, demo), (Differences, demo - obs, torch.zeros(1, 3))):
        data = kind(env, settings, dtype)
        data.buffer.norm.record(10.0 * torch.randn(50, 3) + 1.0)
        data.record(0)
        data.record(1)
        data.buffer.norm.update(Distributed.single())
        torch.testing.assert_close(data.buffer.samples(), agents.expand(2, -1, -1))
        data.buffer.normalize()
        normalized = aligned(data.buffer.norm.normalize(agents), dtype)
        torch.testing.assert_close(data.buffer.normalized(), normalized.repeat(2, 1), rtol=0, atol=0)
        index = torch.tensor([6, 1])
        torch.testing.assert_close(data.buffer.take("agent", index), normalized[[2, 1]], rtol=0, atol=0)
        expected = data.buffer.norm.normalize(real[[2, 1]] if len(real) > 1 else real)
        torch.testing.assert_close(data.real(index), aligned(expected, dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("asked", "kind", "able", "expected"), [
    (True, "cuda", True, BF16), (True, "cuda", False, torch.float32), (True, "cpu", True, torch.float32),
    (False, "cuda", True, torch.float32),
])
def test_bfloat16_is_for_gpus_that_have_it(monkeypatch, asked, kind, able, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert hidden_dtype(config("AMP", bf16=asked), torch.device(kind)) == expected
