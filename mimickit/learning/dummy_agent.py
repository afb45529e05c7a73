"""An agent that learns nothing: zero actions in simulator units. For viewing clips and testing joints."""

from __future__ import annotations

from typing import Literal

import torch

from mimickit.envs.base import VecEnv
from mimickit.learning.agent import AgentConfig, normalizer_info, normalizer_tensors, prefixed
from mimickit.learning.normalizer import ActionNormalizer, MeanStdNormalizer
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed

OBS_CLIP = 10.0


class DummyConfig(AgentConfig):
    """``agent_name: Dummy``, also what runs without an agent file."""

    agent_name: Literal["Dummy"] = "Dummy"
    discount: float = 0.99
    steps_per_iter: int = 32
    iters_per_output: int = 100
    test_episodes: int = 10
    normalizer_samples: float = 10000.0


class DummyAgent:
    """Implements :class:`mimickit.learning.agent.Agent`."""

    def __init__(self, env: VecEnv, config: DummyConfig, dist: Distributed) -> None:
        self.config = config
        self._env = env
        self._dist = dist
        self._obs_norm = MeanStdNormalizer(env.obs.shape[-1], env.device, OBS_CLIP)
        self._action_norm = ActionNormalizer(env.action_low, env.action_high)
        self.action = torch.zeros(env.num_envs, env.action_low.shape[0], device=env.device)
        self._recording = False

    def start_iteration(self, samples: int) -> None:
        self._recording = samples < self.config.normalizer_samples

    def act(self, t: int) -> None:
        if self._recording:
            self._obs_norm.record(self._env.obs)

    def observe(self, t: int) -> None:
        pass

    def start_test(self) -> None:
        pass

    def act_test(self) -> None:
        pass

    def observe_test(self) -> None:
        pass

    def freeze(self, count: int) -> None:
        pass

    def frozen_tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def measure_sums(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def update(self, samples: int) -> dict[str, Stat]:
        if self._recording:
            self._obs_norm.update(self._dist)
        return {}

    def info(self, samples: int) -> dict[str, Stat]:
        return normalizer_info(self._obs_norm)

    def model_tensors(self) -> dict[str, torch.Tensor]:
        return normalizer_tensors(self._obs_norm, self._action_norm)

    def model_loaded(self) -> None:
        self._obs_norm.restore_moments()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {**self.model_tensors(), **prefixed("obs_norm.", self._obs_norm.state_tensors())}

    def local_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_local_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        pass
