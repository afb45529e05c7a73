"""A toy environment behind the contract of mimickit/envs/base.py: points in the plane that should go to the origin."""

from __future__ import annotations

import torch

from mimickit.envs.base import DoneFlag, EnvMode

AGENT_CONFIG = {
    "agent_name": "PPO",
    "model": {
        "actor_net": "fc_2layers_128units", "critic_net": "fc_2layers_128units", "actor_init_output_scale": "0.01",
        "actor_std_type": "FIXED", "action_std": 0.2,
    },
    "actor_optimizer": {"type": "Adam", "learning_rate": "1e-3"},
    "critic_optimizer": {"type": "SGD", "learning_rate": "1e-3"},
    "discount": 0.95, "steps_per_iter": 16, "iters_per_output": 100, "test_episodes": 64, "normalizer_samples": "1e5",
    "actor_epochs": 3, "actor_batch_size": 4, "critic_epochs": 2, "critic_batch_size": 2, "td_lambda": 0.9,
    "ppo_clip_ratio": 0.2, "norm_adv_clip": 4.0, "action_bound_weight": 10.0, "action_entropy_weight": 0.0,
    "action_reg_weight": 0.0,
}


class ToyEnv:
    """Velocity-controlled points: reward exp(-2 |x|^2), TIME after 20 steps, FAIL beyond |x| = 3.

    ``shuffle`` hands every environment the reward of another one, so that there is nothing to learn.
    ``nan_at`` makes the reward of environment 0 infinite at that step, counted as the contract demands.
    """

    dt = 0.1
    episode_steps = 20
    fail_reward = 0.0
    succ_reward = 0.0
    measures_uninterrupted = False

    def __init__(self, num_envs: int = 64, shuffle: bool = False, nan_at: int | None = None) -> None:
        self.device = torch.device("cpu")
        self.num_envs = num_envs
        self.action_low, self.action_high = torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 3.0])
        self.obs, self.next_obs = torch.zeros(num_envs, 4), torch.zeros(num_envs, 4)
        self.reward, self.done = torch.zeros(num_envs), torch.zeros(num_envs, dtype=torch.int32)
        self.info: dict[str, torch.Tensor] = {}
        self.mode = EnvMode.TRAIN
        self.steps_made = 0
        self._position = torch.zeros(num_envs, 2)
        self._age = torch.zeros(num_envs, dtype=torch.int64)
        self._distance = torch.zeros(2, dtype=torch.float64)
        self._nonfinite = torch.zeros((), dtype=torch.int64)
        self._shuffle, self._nan_at = shuffle, nan_at

    def step(self, action: torch.Tensor) -> None:
        self._position += self.dt * torch.clamp(action, self.action_low, self.action_high)
        self._age += 1
        self.next_obs.copy_(self._observe())
        square = self._position.square().sum(-1)
        self.reward.copy_(torch.exp(-2.0 * square))
        if self._shuffle:
            self.reward.copy_(self.reward[torch.randperm(self.num_envs)])
        time_out = torch.where(self._age >= self.episode_steps, int(DoneFlag.TIME), int(DoneFlag.NULL))
        self.done.copy_(torch.where(square > 9.0, int(DoneFlag.FAIL), time_out))
        self._distance += torch.stack([square.sqrt().mean().double(), torch.ones((), dtype=torch.float64)])
        if self.steps_made == self._nan_at:
            self._nonfinite += 1
        self.steps_made += 1
        self._reset(self.done != DoneFlag.NULL)

    def reset(self, first: int | None = None) -> None:
        mask = torch.arange(self.num_envs) < (self.num_envs if first is None else first)
        self._reset(mask)
        self.done.masked_fill_(mask, 0)

    def set_mode(self, mode: EnvMode) -> None:
        if mode is EnvMode.TEST and self.mode is not EnvMode.TEST:
            self._distance.zero_()
        self.mode = mode

    def metrics(self) -> dict[str, torch.Tensor]:
        return {"distance_err": self._distance[0] / self._distance[1].clamp(min=1.0)}

    def metric_sums(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def pooled_metrics(self, dist) -> dict[str, torch.Tensor]:
        return {}

    def health(self) -> dict[str, torch.Tensor]:
        zero = torch.zeros((), dtype=torch.int64)
        return {"nonfinite": self._nonfinite, "contact_overflow": zero, "constraint_overflow": zero}

    def clear_health(self) -> None:
        self._nonfinite.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"position": self._position, "age": self._age, "obs": self.obs}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def close(self) -> None:
        pass

    def _observe(self) -> torch.Tensor:
        return torch.cat([self._position, self._position.abs()], dim=-1)

    def _reset(self, mask: torch.Tensor) -> None:
        start = 2.0 * torch.rand(self.num_envs, 2) - 1.0
        self._position.copy_(torch.where(mask.unsqueeze(-1), start, self._position))
        self._age.copy_(torch.where(mask, 0, self._age))
        self.obs.copy_(self._observe())
