"""Latents, encoder and diversity of ASE against hand-computed numbers."""

from types import SimpleNamespace

import pytest
import torch

from mimickit.learning import rl_math
from mimickit.learning.ase import (
    DiversityTerm,
    Encoder,
    Latents,
    SkillReward,
    diversity_loss,
    encoder_error,
    encoder_reward,
    random_unit_like,
)
from mimickit.learning.model import ActorCritic
from tests.unit.method_case import StillEnv, config

Z = torch.tensor([[1.0, 0.0], [0.6, 0.8]])


def test_encoder_error_and_reward():
    guess = torch.tensor([[0.8, 0.6], [-1.0, 0.0]])
    torch.testing.assert_close(encoder_error(Z, guess), torch.tensor([-0.8, 0.6]))
    torch.testing.assert_close(encoder_reward(Z, guess), torch.tensor([0.8, 0.0]))


def test_similarity_of_a_test_is_not_cut_off_at_zero():
    """0.8 and -0.6, of which the reward keeps 0.8 and 0."""
    source = SkillReward.__new__(SkillReward)
    source._latents, source._disc = SimpleNamespace(values=Z), SimpleNamespace(input_now=lambda: None)
    source.net = lambda x: torch.tensor([[0.8, 0.6], [-1.0, 0.0]])
    reward, similarity = source._test_values()
    assert (reward.mean().item(), similarity.mean().item()) == (pytest.approx(0.4), pytest.approx(0.1))


def test_diversity():
    other = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    found = diversity_loss(0.5 * Z, 0.5 * other, Z, other, 1.0)
    torch.testing.assert_close(found, torch.tensor([0.250010, 1.0]), rtol=1e-5, atol=0.0)


def test_diversity_term_counts_masked_samples_and_reaches_the_policy():
    torch.manual_seed(0)
    settings = config("ASE")
    model = ActorCritic(5, 2, settings.model)
    x = torch.cat([torch.randn(6, 3), random_unit_like(torch.zeros(6, 2))], dim=-1)
    term = DiversityTerm(settings)
    other = term.variant(x)
    assert torch.equal(other[:, :3], x[:, :3]) and (other[:, 3:] != x[:, 3:]).all()
    mask = torch.tensor([1.0, 1, 0, 0, 1, 1])
    losses = term.loss(x, model.policy(x)[0], other, model.policy(other)[0])
    loss = rl_math.masked_mean(losses, mask)
    assert 0.8 < loss.item() <= 1.0  # the fresh policy hardly reacts to the latent
    gradients = torch.autograd.grad(loss, list(model.actor_parameters().values()))
    assert sum(g.abs().sum() for g in gradients) > 0
    assert rl_math.masked_mean(losses, torch.zeros(6)).item() == 0.0


def test_encoder_gives_unit_vectors():
    torch.manual_seed(0)
    guess = Encoder(4, "fc_2layers_128units", 8)(torch.randn(20, 4))
    torch.testing.assert_close(guess.norm(dim=-1), torch.ones(20))


def test_latents_are_uniform_on_the_sphere():
    torch.manual_seed(0)
    z = random_unit_like(torch.zeros(20_000, 3))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(20_000))
    assert z.mean(dim=0).abs().max() < 0.02
    torch.testing.assert_close(z.square().mean(dim=0), torch.full((3,), 1 / 3), atol=0.01, rtol=0)


@pytest.fixture
def latents():
    torch.manual_seed(0)
    env = StillEnv(3)
    return env, Latents(env, config("ASE", latent_time_min=0.25, latent_time_max=0.25))


def changed(latents) -> list[bool]:
    before = latents.values.clone()
    latents.refresh()
    return (latents.values != before).any(dim=-1).tolist()


def test_latents_last_their_time_and_restart_with_episodes(latents):
    env, latents = latents  # steps of 0.1 s; a latent lasts 0.25 s, so three steps
    assert changed(latents) == [True, True, True]  # everything has just been reset
    history = []
    for steps in ([1, 1, 1], [2, 2, 2], [3, 0, 3], [4, 1, 4], [5, 2, 5], [6, 3, 0], [0, 0, 0]):
        env.steps.copy_(torch.tensor(steps))
        history.append(changed(latents))
    assert history == [
        [False] * 3, [False] * 3, [True] * 3, [False] * 3, [False] * 3, [True] * 3, [True] * 3]
    env.steps.copy_(torch.tensor([1, 2, 3]))
    assert changed(latents) == [False, False, True]


def test_recorded_latent_is_that_of_the_action(latents):
    env, latents = latents
    latents.refresh()
    latents.record(0)
    first = latents.values.clone()
    env.steps.copy_(torch.tensor([0, 1, 1]))
    latents.refresh()
    latents.record(1)
    assert torch.equal(latents.recorded()[0], first)
    assert torch.equal(latents.take(torch.tensor([1, 3])), torch.stack([first[1], latents.values[0]]))
