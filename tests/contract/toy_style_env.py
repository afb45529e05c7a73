"""A toy environment with something to imitate: points in the plane that are judged by where they are."""

from __future__ import annotations

import torch

from mimickit.learning.config import TrainOptions, parse_agent_config
from mimickit.learning.evaluation import run_test
from mimickit.learning.methods import build_agent
from mimickit.learning.trainer import train
from mimickit.util.distributed import Distributed, seed_process
from tests.contract.toy_env import AGENT_CONFIG, ToyEnv

ALONE = Distributed.single()

DISC_KEYS = {
    "disc_optimizer": {"type": "Adam", "learning_rate": "1e-3", "weight_decay": 1e-4}, "disc_epochs": 2,
    "disc_batch_size": 2, "disc_buffer_size": 4000, "disc_replay_samples": 200, "disc_logit_reg": 0.01,
    "disc_grad_penalty": 0.5, "disc_reward_scale": 2, "task_reward_weight": 0.0, "disc_reward_weight": 1.0,
}
SKILL_KEYS = {
    "enc_optimizer": {"type": "Adam", "learning_rate": "1e-3"}, "enc_epochs": 2, "enc_batch_size": 2,
    "enc_reward_weight": 0.5, "diversity_weight": 0.01, "diversity_tar": 1.0, "latent_time_min": 0.5,
    "latent_time_max": 2.0,
}
PRIOR_KEYS = {
    "smp_eval_batch_size": 512, "sds_loss_scale": 6.0, "smp_reward_weight": 1.0, "diffusion_steps": [22, 15, 8],
    "task_reward_weight": 0.0, "smp_prior_cfg": "prior.yaml", "smp_prior_model": "prior.pt",
}
NET = "fc_2layers_128units"


def agent_config(method: str, **changes) -> dict:
    """A small agent of the method, for the toy."""
    model = {**AGENT_CONFIG["model"]}
    keys = {**AGENT_CONFIG, "agent_name": method}
    if method in ("AMP", "ADD", "ASE"):
        model["disc_net"] = NET
        keys |= DISC_KEYS
    if method == "ASE":
        model |= {"enc_net": NET, "latent_dim": 2}
        keys |= SKILL_KEYS | {"disc_reward_weight": 0.5}
    if method == "SMP":
        keys |= PRIOR_KEYS
    if method == "AWR":
        for key in ("ppo_clip_ratio", "norm_adv_clip"):
            keys.pop(key)
        keys |= {"awr_temp": 1.0, "a_weight_clip": 20.0}
    return {**keys, "model": model, **changes}


class StyleEnv(ToyEnv):
    """Info as AMP's and ADD's environments give it.

    ``disc_obs``: position. ``disc_demo``: positions around ``centre`` with deviation ``spread``. ``disc_obs_demo``: a
    reference position of every environment, drawn at its reset and observed by the policy.
    """

    def __init__(
        self, num_envs: int = 64, centre: tuple[float, float] = (1.2, -0.8), spread: float = 0.15, paired: bool = False,
        **keys,
    ) -> None:
        super().__init__(num_envs, **keys)
        self.centre, self.spread = torch.tensor(centre), spread
        self.obs, self.next_obs = torch.zeros(num_envs, 6), torch.zeros(num_envs, 6)
        self.steps = self._age
        self.reference = torch.zeros(num_envs, 2)
        self.info = {"disc_obs": torch.zeros(num_envs, 2)}
        self.info["disc_obs_demo" if paired else "disc_demo"] = torch.zeros(num_envs, 2)
        self._paired = paired
        self._miss = torch.zeros(2, dtype=torch.float64)

    def step(self, action: torch.Tensor) -> None:
        position = self._position + self.dt * torch.clamp(action, self.action_low, self.action_high)
        self.info["disc_obs"].copy_(position)
        if self._paired:
            self.info["disc_obs_demo"].copy_(self.reference)
        else:
            self.info["disc_demo"].copy_(self.centre + self.spread * torch.randn(self.num_envs, 2))
        goal = self.reference if self._paired else self.centre
        self._miss += torch.stack([(position - goal).norm(dim=-1).mean().double(), torch.ones((), dtype=torch.float64)])
        super().step(action)

    def set_mode(self, mode) -> None:
        self._miss.zero_()
        super().set_mode(mode)

    def metrics(self) -> dict[str, torch.Tensor]:
        return {"miss": self._miss[0] / self._miss[1].clamp(min=1.0)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return super().state_dict() | {"reference": self.reference}

    def _observe(self) -> torch.Tensor:
        return torch.cat([super()._observe(), self.reference], dim=-1)

    def _reset(self, mask: torch.Tensor) -> None:
        self.reference.copy_(torch.where(mask.unsqueeze(-1), 2.0 * torch.rand(self.num_envs, 2) - 1.0, self.reference))
        super()._reset(mask)


def build(method, num_envs=64, seed=0, env_keys=None, **keys):
    """The toy, and an agent of the method for it."""
    seed_process(seed, 0)
    env = StyleEnv(num_envs, paired=method == "ADD", **(env_keys or {}))
    return env, build_agent(env, parse_agent_config(agent_config(method, **keys)), ALONE)


def learn(folder, method, iterations=80, **keys):
    """Test results before and after training."""
    env, agent = build(method, **keys)
    before = run_test(env, agent, ALONE, 64)
    train(env, agent, ALONE, TrainOptions(folder, max_iters=iterations))
    return before, run_test(env, agent, ALONE, 64)
