"""Proximal policy optimisation (Schulman et al. 2017), the base of the imitation methods."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mimickit.envs.base import VecEnv
from mimickit.learning import ppo
from mimickit.learning.agent import AgentConfig, check_same_sizes, normalizer_info, normalizer_tensors, prefixed
from mimickit.learning.buffer import MinibatchSampler, Rollout, minibatch_plan
from mimickit.learning.normalizer import ActionNormalizer, MeanStdNormalizer
from mimickit.learning.optimizers import FlatOptimizer, OptimizerConfig
from mimickit.learning.policy import ActorCritic, ModelConfig, gaussian_entropy, gaussian_log_prob, mean_regularizer
from mimickit.learning.stats import Stat
from mimickit.learning.update import BatchLoss, NetworkUpdate
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.graphs import Graphed

OBS_CLIP = 10.0


class PPOConfig(AgentConfig):
    """``agent_name: PPO``."""

    agent_name: Literal["PPO"]
    model: ModelConfig
    actor_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    actor_epochs: int = Field(ge=1, description="passes over the rollout")
    critic_epochs: int = Field(ge=1, description="passes over the rollout")
    actor_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    critic_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    td_lambda: float = Field(ge=0.0, le=1.0)
    ppo_clip_ratio: float = Field(gt=0.0)
    norm_adv_clip: float = Field(gt=0.0, description="deviations")
    action_bound_weight: float = Field(ge=0.0)
    action_entropy_weight: float
    action_reg_weight: float = Field(ge=0.0)
    critic_eval_batch_size: int = Field(0, ge=0, description="rollout steps per value pass, 0 = all; saves memory")
    exp_anneal_samples: float = Field(float("inf"), gt=0.0, description="total samples")
    exp_prob_beg: float = Field(1.0, ge=0.0, le=1.0, description="probability of a random action at the start")
    exp_prob_end: float = Field(1.0, ge=0.0, le=1.0, description="and after exp_anneal_samples")
    tf32: bool = Field(True, description="TensorFloat-32 matrix products on CUDA (ours; 10 bits of mantissa, faster)")
    cuda_graphs: bool = Field(True, description="capture acting and learning as CUDA graphs (ours; off to debug)")


class PPOAgent:
    """Implements :class:`mimickit.learning.agent.Agent`."""

    def __init__(self, env: VecEnv, config: PPOConfig, dist: Distributed) -> None:
        device, num_envs, steps = env.device, env.num_envs, config.steps_per_iter
        obs_size, action_size = env.obs.shape[-1], env.action_low.shape[0]
        for key in ("actor_batch_size", "critic_batch_size"):
            if getattr(config, key) > steps:
                raise UserError(f"{key} = {getattr(config, key)} exceeds steps_per_iter = {steps}: a minibatch cannot "
                                f"hold more samples per environment than the rollout")
        check_same_sizes({"num_envs": num_envs, "steps_per_iter": steps, "obs": obs_size, "action": action_size}, dist)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")

        self.config = config
        self._env = env
        self._dist = dist
        self._obs_norm = MeanStdNormalizer(obs_size, device, OBS_CLIP)
        self._action_norm = ActionNormalizer(env.action_low, env.action_high)
        self._model = ActorCritic(obs_size, action_size, config.model).to(device)

        self._rollout = Rollout(steps, num_envs, {
            "obs": (obs_size,), "next_obs": (obs_size,), "action": (action_size,), "log_prob": (), "flag": (),
            "reward": (), "done": (), "target": (), "advantage": (),
        }, device, dtypes={"done": torch.int32})
        self._sampler = MinibatchSampler(self._rollout.num_samples, device)

        self.action = torch.zeros(num_envs, action_size, device=device)
        self._norm_action = torch.zeros_like(self.action)
        self._log_prob = torch.zeros(num_envs, device=device)
        self._flag = torch.ones(num_envs, device=device)
        self._exp_prob = torch.ones((), device=device)
        self._act_train = Graphed(self._act_randomly, device, enabled=config.cuda_graphs)
        self._act_test = Graphed(self._act_mode, device, enabled=config.cuda_graphs)

        actor = FlatOptimizer(self._model.actor_parameters(), config.actor_optimizer, dist)
        critic = FlatOptimizer(self._model.critic_parameters(), config.critic_optimizer, dist)
        actor_plan = minibatch_plan(steps, num_envs, config.actor_batch_size, config.actor_epochs)
        critic_plan = minibatch_plan(steps, num_envs, config.critic_batch_size, config.critic_epochs)
        self._actor = NetworkUpdate(
            self._actor_loss, self._actor_columns(), actor, *actor_plan, dist, config.cuda_graphs)
        self._critic = NetworkUpdate(
            self._critic_loss, ("Critic_Loss",), critic, *critic_plan, dist, config.cuda_graphs)

    # --- acting

    def start_iteration(self, samples: int) -> None:
        self._exp_prob.fill_(self._exploration(samples))
        self._sampler.restart()

    def act(self, t: int) -> None:
        self._act_train()
        self._rollout.record(
            t, obs=self._env.obs, action=self._norm_action, log_prob=self._log_prob, flag=self._flag)

    def observe(self, t: int) -> None:
        env = self._env
        self._rollout.record(t, next_obs=env.next_obs, reward=env.reward, done=env.done)

    def act_test(self) -> None:
        self._act_test()

    @torch.no_grad()
    def _act_randomly(self) -> None:
        mean, log_std = self._model.policy(self._obs_norm.normalize(self._env.obs))
        flag = (torch.rand_like(self._flag) < self._exp_prob).to(mean.dtype)
        action = mean + flag.unsqueeze(-1) * torch.exp(log_std) * torch.randn_like(mean)
        self._norm_action.copy_(action)
        self._log_prob.copy_(gaussian_log_prob(action, mean, log_std))
        self._flag.copy_(flag)
        self.action.copy_(self._action_norm.to_env(action))

    @torch.no_grad()
    def _act_mode(self) -> None:
        mean, _ = self._model.policy(self._obs_norm.normalize(self._env.obs))
        self.action.copy_(self._action_norm.to_env(mean))

    def _exploration(self, samples: int) -> float:
        c = self.config
        return ppo.exploration_probability(samples, c.exp_prob_beg, c.exp_prob_end, c.exp_anneal_samples)

    # --- learning

    def update(self, samples: int) -> dict[str, Stat]:
        data_stats = self._build_targets()
        stats = {**self._critic.run(self._sampler), **self._actor.run(self._sampler), **data_stats}
        if samples < self.config.normalizer_samples:
            for obs in self._rollout["obs"]:
                self._obs_norm.record(obs)
            self._obs_norm.update(self._dist)
        return stats

    @torch.no_grad()
    def _build_targets(self) -> dict[str, Stat]:
        """Fill ``target`` and ``advantage`` of the rollout from its rewards."""
        rollout, config, env = self._rollout, self.config, self._env
        next_value = ppo.overwrite_terminal_values(
            self._values(rollout["next_obs"]), rollout["done"], config.discount, env.fail_reward, env.succ_reward)
        target = ppo.lambda_return(
            rollout["reward"], next_value, rollout["done"], config.discount, config.td_lambda)
        advantage = target - self._values(rollout["obs"])
        mean, std = ppo.mean_and_std(self._dist.sum_(ppo.advantage_sums(advantage, rollout["flag"])))
        rollout["target"].copy_(target)
        rollout["advantage"].copy_(ppo.normalize_advantage(advantage, mean, std, config.norm_adv_clip))
        return {"Adv_Mean": Stat(mean), "Adv_Std": Stat(std)}

    def _values(self, obs: torch.Tensor) -> torch.Tensor:
        """Critic's values [T, N] of observations [T, N, O], a few rollout steps at a time."""
        chunks = obs.split(self.config.critic_eval_batch_size or obs.shape[0])
        return torch.cat([self._model.value(self._obs_norm.normalize(chunk)) for chunk in chunks])

    def _critic_loss(self, index: torch.Tensor) -> BatchLoss:
        value = self._model.value(self._obs_norm.normalize(self._rollout.take("obs", index)))
        loss = ppo.critic_loss(value, self._rollout.take("target", index))
        return BatchLoss(loss, torch.full_like(loss, index.shape[0]), (loss,))

    def _actor_loss(self, index: torch.Tensor) -> BatchLoss:
        config, take = self.config, self._rollout.take
        flag = take("flag", index)
        mean, log_std = self._model.policy(self._obs_norm.normalize(take("obs", index)))
        log_prob = gaussian_log_prob(take("action", index), mean, log_std)
        surrogate = ppo.surrogate_loss(
            log_prob, take("log_prob", index), take("advantage", index), flag, config.ppo_clip_ratio)
        loss, terms = surrogate.loss, []
        if config.action_bound_weight != 0.0:
            terms.append(ppo.flagged_mean(ppo.action_bound_loss(mean), flag))
            loss = loss + config.action_bound_weight * terms[-1]
        if config.action_entropy_weight != 0.0:
            terms.append(ppo.flagged_mean(gaussian_entropy(log_std), flag))
            loss = loss - config.action_entropy_weight * terms[-1]
        if config.action_reg_weight != 0.0:
            terms.append(ppo.flagged_mean(mean_regularizer(mean), flag))
            loss = loss + config.action_reg_weight * terms[-1]
        return BatchLoss(loss, flag.sum(), (loss, surrogate.clip_frac, surrogate.imp_ratio, *terms))

    def _actor_columns(self) -> list[str]:
        """Names of the actor's statistics, in the order of :meth:`_actor_loss`."""
        optional = {
            "Action_Bound_Loss": self.config.action_bound_weight,
            "Action_Entropy": self.config.action_entropy_weight,
            "Action_Reg_Loss": self.config.action_reg_weight,
        }
        return ["Actor_Loss", "Clip_Frac", "Imp_Ratio", *(name for name, weight in optional.items() if weight != 0.0)]

    def info(self, samples: int) -> dict[str, Stat]:
        probability = torch.full_like(self._exp_prob, self._exploration(samples))
        return {**normalizer_info(self._obs_norm), "Exp_Prob": Stat(probability)}

    # --- saving

    def model_tensors(self) -> dict[str, torch.Tensor]:
        model = prefixed("_model.", dict(self._model.named_parameters()))
        return {**normalizer_tensors(self._obs_norm, self._action_norm), **model}

    def model_loaded(self) -> None:
        self._obs_norm.restore_moments()
        self._actor.optimizer.broadcast()
        self._critic.optimizer.broadcast()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {
            **self.model_tensors(),
            **prefixed("obs_norm.", self._obs_norm.state_tensors()),
            **prefixed("actor_optimizer.", self._actor.optimizer.state_tensors()),
            **prefixed("critic_optimizer.", self._critic.optimizer.state_tensors()),
        }
