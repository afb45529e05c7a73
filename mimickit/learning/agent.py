"""What the trainer sees of an agent, and the configuration that all agents share."""

from __future__ import annotations

from typing import Protocol

import torch
from pydantic import Field

from mimickit.config import Config
from mimickit.learning.normalizer import ActionNormalizer, MeanStdNormalizer
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed


class AgentConfig(Config):
    """Keys that the training loop reads."""

    discount: float = Field(ge=0.0, lt=1.0, description="per control step")
    steps_per_iter: int = Field(ge=1, description="control steps per environment and iteration")
    iters_per_output: int = Field(ge=1, description="iterations between evaluations")
    test_episodes: int = Field(ge=0, description="episodes of an evaluation, over all processes")
    normalizer_samples: float = Field(
        float("inf"), ge=0.0, allow_inf_nan=True, description="total samples after which normalisers freeze")


class Agent(Protocol):
    """Acts on an environment's observations and learns from what comes of it.

    An iteration is ``start_iteration``, then ``steps_per_iter`` times (``act``, environment step, ``observe``), then
    ``update``. A test is ``start_test``, then repeatedly (``act_test``, environment step, ``observe_test``), all the
    while summed up in ``measure_sums``. None of them waits for the device.
    """

    config: AgentConfig
    action: torch.Tensor  # [N, A] static buffer in simulator units, what the environment is to execute

    def start_iteration(self, samples: int) -> None:
        """Prepare a rollout; ``samples`` were collected before it, over all processes."""

    def act(self, t: int) -> None:
        """Set ``action`` from the environment's observation and record what is known before step ``t``."""

    def observe(self, t: int) -> None:
        """Record what the environment returned for step ``t``."""

    def start_test(self) -> None:
        """Forget the measures of earlier tests."""

    def act_test(self) -> None:
        """Set ``action`` without randomness; nothing is recorded."""

    def observe_test(self) -> None:
        """Measure the step that the environment just made."""

    def freeze(self, count: int) -> None:
        """From now on act in the first ``count`` environments without randomness by the policy as it is now. The actor
        does not learn from them; critic, discriminator and normalisers see them like all others. ``count`` is the same
        in every call, the first comes before the first ``act``."""

    def frozen_tensors(self) -> dict[str, torch.Tensor]:
        """The frozen policy by the names of ``model_tensors``, live; empty without :meth:`freeze`."""

    def measure_sums(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The method's own measures by names like ``test_disc_reward``: sum and number of samples (steps) of each
        environment since ``start_test``, [N] float64. Live buffers that ``observe_test`` adds to."""

    def update(self, samples: int) -> dict[str, Stat]:
        """Learn from the rollout; ``samples`` as in ``start_iteration``. Returns the method's log columns."""

    def info(self, samples: int) -> dict[str, Stat]:
        """Closing log columns (normaliser, schedule) after ``samples`` samples."""

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the model file by name, live."""

    def model_loaded(self) -> None:
        """The tensors of ``model_tensors`` were overwritten from a model file."""

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, live, that are equal on all processes and make a continued run exact (model included)."""

    def local_state(self) -> dict[str, torch.Tensor]:
        """What an exact continuation needs besides and every process has its own of (replay, latents)."""

    def load_local_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        """Continue from :meth:`local_state`, read from ``where``. Raises UserError when it does not fit."""


def normalizer_tensors(obs_norm: MeanStdNormalizer, action_norm: ActionNormalizer) -> dict[str, torch.Tensor]:
    """Entries of the model file that every agent has."""
    return {**prefixed("_obs_norm.", obs_norm.model_tensors()), **prefixed("_a_norm.", action_norm.model_tensors())}


def normalizer_info(obs_norm: MeanStdNormalizer) -> dict[str, Stat]:
    """Log columns about the observation normaliser: mean over features of |mean| and of the deviation."""
    return {"Obs_Norm_Mean": Stat(obs_norm.mean.abs().mean()), "Obs_Norm_Std": Stat(obs_norm.std.mean())}


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``{name: tensor}`` -> ``{prefix + name: tensor}``."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def check_same_sizes(sizes: dict[str, int], dist: Distributed) -> None:
    """All processes must take the same number of equal steps, or their collectives would wait for ever."""
    every = dist.all_gather_object(sizes)
    assert all(other == every[0] for other in every), f"processes differ in size: {every}"
