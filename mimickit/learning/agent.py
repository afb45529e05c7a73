"""What the trainer sees of an agent. This base alone is the agent that learns nothing (``agent_name: Dummy``)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimickit.envs.base import VecEnv
from mimickit.learning.config import AgentConfig
from mimickit.learning.metrics import Metric
from mimickit.learning.model import join
from mimickit.learning.normalizer import ActionNormalizer, MeanAbsNormalizer, MeanStdNormalizer
from mimickit.learning.optim import FlatOptimizer
from mimickit.util.checkpoint import load_model
from mimickit.util.distributed import Distributed

OBS_CLIP = 10.0
_MODEL_BUFFERS = ("count", "mean", "std", "mean_abs")  # of normalizers, in model files


class ProcessState(Protocol):
    """Something that every process has its own of, and that an exact continuation needs."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Continue from :meth:`state`, read from ``where``. Raises UserError when it does not fit."""


@dataclass(frozen=True)
class FrozenPolicy:
    """A copy of everything in the model file, which acts but does not learn."""

    count: int  # environments in which it acts
    modules: nn.ModuleDict

    def act(self, obs: Tensor, latent: Tensor | None) -> Tensor:
        """Mean action [count, A], normalized, for observations [count, O] and latents [count, L]."""
        return self.modules["_model"].policy(join(self.modules["_obs_norm"].normalize(obs), latent))[0]


class Agent(nn.Module):
    """Acts on an environment's observations and learns from what comes of it. Methods override what they do more than
    action 0 and a normalizer of observations.

    An iteration is ``start_iteration``, then ``steps_per_iter`` times (``act``, environment step, ``observe``), then
    ``update``. A test is ``start_test``, then repeatedly (``act_test``, environment step, ``observe_test``), all the
    while summed up in ``metric_sums``. None of them waits for the device.

    Networks, normalizers and optimizers are registered modules, so ``state_dict()`` is everything that all processes
    share, live. Modules whose names begin with an underscore are MimicKit's and make up the model file. What each
    process has its own of (replay, latents) is in ``per_process``.

    Attributes:
        action: [N, A] static buffer in simulator units, what the environment is to execute.
        per_process: by the names of their entries in checkpoints.
    """

    def __init__(self, env: VecEnv, config: AgentConfig, dist: Distributed) -> None:
        super().__init__()
        self.config, self._env, self._dist = config, env, dist
        self._obs_norm = MeanStdNormalizer(env.obs.shape[-1], env.device, OBS_CLIP)
        self._a_norm = ActionNormalizer(env.action_low, env.action_high)
        self._norm_learns = True
        self._frozen: FrozenPolicy | None = None
        self.action = torch.zeros(env.num_envs, env.action_low.shape[0], device=env.device)
        self.per_process: dict[str, ProcessState] = {}

    # --- training

    def start_iteration(self, samples: int) -> None:
        """Prepare a rollout; ``samples`` were collected before it, over all processes."""
        self._norm_learns = samples < self.config.normalizer_samples

    def act(self, t: int) -> None:
        """Set ``action`` from the environment's observation and record what is known before step ``t``."""
        if self._norm_learns:
            self._obs_norm.record(self._env.obs)

    def observe(self, t: int) -> None:
        """Record what the environment returned for step ``t``."""

    def update(self, samples: int) -> dict[str, Metric]:
        """Learn from the rollout; ``samples`` as in ``start_iteration``. Returns the method's metrics."""
        if self._norm_learns:
            self._obs_norm.update(self._dist)
        return {}

    def info(self, samples: int) -> dict[str, Metric]:
        """Metrics that end the log row (normalizer, schedule), after ``samples`` samples."""
        return {"Obs_Norm_Mean": Metric(self._obs_norm.mean.abs().mean()),
                "Obs_Norm_Std": Metric(self._obs_norm.std.mean())}

    # --- testing

    def start_test(self) -> None:
        """Forget the metrics of earlier tests."""

    def act_test(self) -> None:
        """Set ``action`` without randomness; nothing is recorded."""

    def observe_test(self) -> None:
        """Add the step that the environment just made to the test's metrics."""

    def metric_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The method's own metrics of a test by names like ``test_disc_reward``: sum and number of samples (steps) of
        each environment since ``start_test``, [N] float64. Live buffers that ``observe_test`` adds to."""
        return {}

    def freeze(self, count: int) -> None:
        """From now on act in the first ``count`` environments without randomness by the policy as it is now. The actor
        does not learn from them; critic, discriminator and normalizers see them like all others. ``count`` is the same
        in every call, the first comes before the first ``act``."""
        if self._frozen is None:
            modules = {name: copy.deepcopy(child) for name, child in self.named_children() if name.startswith("_")}
            self._frozen = FrozenPolicy(count, nn.ModuleDict(modules))
        assert count == self._frozen.count
        present = self.model_tensors()
        for name, tensor in self.frozen_tensors().items():
            tensor.copy_(present[name])

    # --- saving

    def model_tensors(self) -> dict[str, Tensor]:
        """The tensors of the model file by MimicKit's names, live."""
        return _model_file(self)

    def frozen_tensors(self) -> dict[str, Tensor]:
        """The same of the frozen policy; empty without :meth:`freeze`."""
        return {} if self._frozen is None else _model_file(self._frozen.modules)

    def load_model(self, path: Path | str) -> None:
        """Warm start: fill networks and normalizers from a model file; counters and optimizers stay as they are.

        Raises:
            AssetMissingError, UserError: no such file, or it belongs to another agent or environment.
        """
        load_model(Path(path), self.model_tensors())
        self.model_loaded()

    def model_loaded(self) -> None:
        """The tensors of ``model_tensors`` were overwritten: all processes go on with the root's."""
        for module in self.modules():
            if isinstance(module, MeanStdNormalizer | MeanAbsNormalizer):
                module.restore_moments()
            elif isinstance(module, FlatOptimizer):
                module.broadcast()

    def process_state(self) -> dict[str, Any]:
        """What an exact continuation needs besides ``state_dict()`` and every process has its own of."""
        return {name: part.state() for name, part in self.per_process.items()}

    def load_process_state(self, state: dict[str, Any], where: str) -> None:
        """Continue from :meth:`process_state`, read from ``where``. Raises UserError when it does not fit."""
        for name, part in self.per_process.items():
            part.load(state.get(name, {}), where)


def _model_file(modules: nn.Module) -> dict[str, Tensor]:
    """What of a state dictionary the model file holds: all of ``_model`` and ``_prior_model``, and of ``_obs_norm`` and
    its like the buffer ``mean`` as ``_obs_norm._mean``."""
    found: dict[str, Tensor] = {}
    for name, tensor in modules.state_dict().items():
        module, _, rest = name.partition(".")
        if module in ("_model", "_prior_model"):
            found[name] = tensor
        elif module.startswith("_") and rest in _MODEL_BUFFERS:
            found[f"{module}._{rest}"] = tensor
    return found
