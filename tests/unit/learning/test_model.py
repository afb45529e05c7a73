"""Policy distributions and heads."""

import math

import pytest
import torch

from mimickit.config import build
from mimickit.learning import rl_math
from mimickit.learning.config import ModelConfig
from mimickit.learning.model import ActorCritic, GaussianHead
from mimickit.util.failures import UserError

MODEL = {
    "actor_net": "fc_2layers_128units", "critic_net": "fc_3layers_1024units", "actor_init_output_scale": 0.01,
    "actor_std_type": "FIXED", "action_std": 0.05,
}
MEAN, STD = torch.tensor([0.1, -0.2]), torch.tensor([0.05, 0.2])


def test_gaussian_formulas():
    action, log_std = torch.tensor([0.15, 0.0]), STD.log()
    assert rl_math.gaussian_log_prob(action, MEAN, log_std).item() == pytest.approx(1.767293, rel=1e-5)
    assert rl_math.gaussian_entropy(log_std).item() == pytest.approx(-1.767293, rel=1e-5)
    assert rl_math.action_reg_loss(MEAN).item() == pytest.approx(0.05, rel=1e-5)


def test_log_prob_agrees_with_torch():
    torch.manual_seed(0)
    mean, log_std, action = torch.randn(7, 3), torch.randn(7, 3), torch.randn(7, 3)
    reference = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(rl_math.gaussian_log_prob(action, mean, log_std), reference)


@pytest.mark.parametrize(("kind", "trained"), [("FIXED", False), ("CONSTANT", True), ("VARIABLE", True)])
def test_heads_start_near_zero_with_the_given_deviation(kind, trained):
    torch.manual_seed(0)
    head = GaussianHead(6, 3, build(ModelConfig, {**MODEL, "actor_std_type": kind}, "test"))
    mean, log_std = head(torch.ones(5, 6))
    assert mean.abs().max() <= 6 * 0.01
    assert head._mean_net.weight.abs().max() <= 0.01
    torch.testing.assert_close(log_std, torch.full((5, 3), math.log(0.05)), atol=6 * 0.01, rtol=0.0)
    names = {name for name, p in head.named_parameters() if name.startswith("_logstd") and p.requires_grad}
    assert bool(names) == trained


def test_parameter_names_and_shapes_are_those_of_the_model_file():
    model = ActorCritic(10, 3, build(ModelConfig, MODEL, "test"))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "_actor_layers.0.weight": (128, 10), "_actor_layers.0.bias": (128,),
        "_actor_layers.2.weight": (64, 128), "_actor_layers.2.bias": (64,),
        "_action_dist._mean_net.weight": (3, 64), "_action_dist._mean_net.bias": (3,),
        "_action_dist._logstd_net": (3,),
        "_critic_layers.0.weight": (1024, 10), "_critic_layers.0.bias": (1024,),
        "_critic_layers.2.weight": (1024, 1024), "_critic_layers.2.bias": (1024,),
        "_critic_layers.4.weight": (512, 1024), "_critic_layers.4.bias": (512,),
        "_critic_out.weight": (1, 512), "_critic_out.bias": (1,),
    }
    assert set(model.actor_parameters()).isdisjoint(model.critic_parameters())
    assert "_action_dist._logstd_net" not in model.actor_parameters()  # FIXED
    assert model.value(torch.zeros(4, 10)).shape == (4,)


def test_variable_deviation_uses_the_file_names_of_a_linear_layer():
    model = ActorCritic(10, 3, build(ModelConfig, {**MODEL, "actor_std_type": "VARIABLE"}, "test"))
    assert {"_action_dist._logstd_net.weight", "_action_dist._logstd_net.bias"} <= set(model.actor_parameters())


def test_unknown_net_lists_the_known_ones():
    with pytest.raises(UserError, match=r"agent\.yaml.*actor_net.*fc_2layers_1024units"):
        build(ModelConfig, {**MODEL, "actor_net": "fc_2layers_1024unit"}, "agent.yaml")
