"""Actor and critic learning on-policy: the frame that PPO, AWR and the imitation methods fill in.

An agent is composed of an *objective* (how the actor uses advantages), *reward sources* (rewards that are computed
here rather than by the environment, each with networks of its own), an optional *latent* (a further input of actor and
critic), and *actor terms* (further losses of the actor). Who composes what: ``agents.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from mimickit.envs.base import VecEnv
from mimickit.learning import ppo
from mimickit.learning.agent import AgentConfig, check_same_sizes, normalizer_info, normalizer_tensors, prefixed
from mimickit.learning.buffer import MinibatchSampler, Rollout, SampleTable, minibatch_plan
from mimickit.learning.measures import TestMeasures
from mimickit.learning.normalizer import ActionNormalizer, MeanStdNormalizer
from mimickit.learning.optimizers import FlatOptimizer, OptimizerConfig
from mimickit.learning.policy import ActorCritic, ModelConfig, gaussian_entropy, gaussian_log_prob, mean_regularizer
from mimickit.learning.stats import Stat
from mimickit.learning.update import BatchLoss, NetworkUpdate, take_turns
from mimickit.util.checkpoint import fill_tensors
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.graphs import Graphed

OBS_CLIP = 10.0
PASS_SAMPLES = 8192  # of a rollout that networks look at in one pass without gradient: enough to be fast, little memory


class PolicyConfig(AgentConfig):
    """Keys of every agent with an actor and a critic."""

    model: ModelConfig
    actor_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    actor_epochs: int = Field(ge=1, description="passes over the rollout")
    critic_epochs: int = Field(ge=1, description="passes over the rollout")
    actor_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    critic_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    td_lambda: float = Field(ge=0.0, le=1.0)
    action_bound_weight: float = Field(ge=0.0)
    action_entropy_weight: float
    action_reg_weight: float = Field(ge=0.0)
    critic_eval_batch_size: int = Field(0, ge=0, description="rollout steps per value pass, 0 = as is fast")
    kl_target: float = Field(0.0, ge=0.0, description="mean KL divergence over an update's steps to which the actor's "
                                                      "learning rate is adapted; 0 = fixed rate (ours)")
    exp_anneal_samples: float = Field(float("inf"), gt=0.0, allow_inf_nan=True, description="total samples")
    exp_prob_beg: float = Field(1.0, ge=0.0, le=1.0, description="probability of a random action at the start")
    exp_prob_end: float = Field(1.0, ge=0.0, le=1.0, description="and after exp_anneal_samples")
    tf32: bool = Field(True, description="TensorFloat-32 matrix products on CUDA (ours; 10 bits of mantissa, faster)")
    bf16: bool = Field(False, description="hidden layers in bfloat16 where a GPU has it (ours; 8 bits of mantissa, "
                                          "faster still)")
    cuda_graphs: bool = Field(True, description="capture acting and learning as CUDA graphs (ours; off to debug)")

    def hidden_dtype(self, device: torch.device) -> torch.dtype:
        """What hidden layers compute in on a device."""
        with_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if self.bf16 and with_bf16 else torch.float32


class Objective(Protocol):
    """How the actor uses advantages."""

    columns: tuple[str, ...]  # log columns of :meth:`loss`'s results; the first is the actor's total loss

    def weigh(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Stat]]:
        """What is kept of advantages [T, N], given mean and deviation (0-d, over all processes); log columns."""

    def loss(self, log_prob: Tensor, log_ratio: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Loss, then further figures, of each sample, [B]. ``log_ratio``: log probability less that of the rollout,
        0 where the action was not random; ``weight``: see weigh."""


class RewardSource(Protocol):
    """A reward computed by the learner: records along with the rollout, rewards it, then learns from it.

    An iteration is ``record`` in every step, ``record_norm`` while normalisers learn, ``reward``, ``steps``, and
    ``fold`` while they learn. Nothing waits for the device.
    """

    measures: TestMeasures

    def record(self, t: int) -> None:
        """Record what the environment says about step ``t``."""

    def record_norm(self) -> None:
        """Add the rollout to the source's normaliser's pending sums."""

    def reward(self) -> tuple[Tensor, dict[str, Stat]]:
        """Weighted reward [T, N] of the rollout, and log columns."""

    def steps(self, sampler: MinibatchSampler) -> Iterator[None]:
        """Learn from the rollout, see :meth:`NetworkUpdate.steps`."""

    def stats(self) -> dict[str, Stat]:
        """Log columns of what was learned last."""

    def fold(self) -> None:
        """Fold what was recorded into the source's normaliser."""

    def model_tensors(self) -> dict[str, Tensor]: ...
    def model_loaded(self) -> None: ...
    def state_tensors(self) -> dict[str, Tensor]: ...
    def local_state(self) -> dict[str, Tensor]: ...
    def load_local_state(self, state: dict[str, Tensor], where: str) -> None: ...


class Latent(Protocol):
    """A further input of actor and critic."""

    size: int  # L
    values: Tensor  # [N, L] static buffer: what the next action is computed from

    def refresh(self) -> None:
        """Before every action, captured: draw new values where they are due."""

    def record(self, t: int) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class FrozenPolicy:
    """A copy of the policy that does not learn."""

    count: int  # environments in which it acts
    model: ActorCritic
    obs_norm: MeanStdNormalizer

    def act(self, obs: Tensor, latent: Tensor | None) -> Tensor:
        """Mean action [count, A], normalised, for observations [count, O] and latents [count, L]."""
        return self.model.policy(join(self.obs_norm.normalize(obs), latent))[0]


class ActorTerm(Protocol):
    """A further loss of the actor, which compares its actions with those for varied inputs; captured on CUDA."""

    column: str  # log column of the unweighted loss
    weight: float

    def variant(self, x: Tensor) -> Tensor:
        """Varied inputs [B, O + L] of a minibatch's ``x`` [B, O + L]."""

    def loss(self, x: Tensor, mean: Tensor, variant: Tensor, variant_mean: Tensor) -> Tensor:
        """Loss of each sample, [B]; means [B, A] of the normalised action."""


class PolicyAgent:
    """Implements :class:`mimickit.learning.agent.Agent`.

    Args:
        sources: rewards that are added to the environment's.
        task_weight: factor of the environment's own reward; used only with ``sources``.
        latent: further input of actor and critic.
        terms: further losses of the actor.

    Raises:
        UserError: a minibatch is larger than the rollout, or the action box is not finite.
    """

    def __init__(
        self, env: VecEnv, config: PolicyConfig, dist: Distributed, objective: Objective,
        sources: Sequence[RewardSource] = (), task_weight: float = 1.0, latent: Latent | None = None,
        terms: Sequence[ActorTerm] = (),
    ) -> None:
        device, num_envs, steps = env.device, env.num_envs, config.steps_per_iter
        obs_size, action_size = env.obs.shape[-1], env.action_low.shape[0]
        check_batch_sizes(config, "actor", "critic")
        check_same_sizes({"num_envs": num_envs, "steps_per_iter": steps, "obs": obs_size, "action": action_size}, dist)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")

        self.config = config
        self._env = env
        self._dist = dist
        self._objective = objective
        self._sources = tuple(sources)
        self._task_weight = task_weight
        self._latent = latent
        self._terms = tuple(term for term in terms if term.weight != 0.0)
        self._obs_norm = MeanStdNormalizer(obs_size, device, OBS_CLIP)
        self._action_norm = ActionNormalizer(env.action_low, env.action_high)
        input_size = obs_size + (latent.size if latent is not None else 0)
        self._model = ActorCritic(input_size, action_size, config.model, config.hidden_dtype(device)).to(device)

        self._rollout = SampleTable(steps, num_envs, {
            "input": (input_size,), "action": (action_size,), "log_prob": (), "flag": (), "target": (), "weight": (),
        }, device)
        self._outcome = Rollout(steps, num_envs, {"next_obs": (obs_size,), "reward": (), "done": ()}, device,
                                dtypes={"done": torch.int32})
        self._sampler = MinibatchSampler(self._rollout.num_samples, device)

        self.action = torch.zeros(num_envs, action_size, device=device)
        self._input = torch.zeros(num_envs, input_size, device=device)
        self._norm_action = torch.zeros_like(self.action)
        self._log_prob = torch.zeros(num_envs, device=device)
        self._flag = torch.ones(num_envs, device=device)
        self._exp_prob = torch.ones((), device=device)
        self._obs_norm_learns = True
        drawn = list(latent.state_tensors().values()) if latent is not None else []
        self._frozen: FrozenPolicy | None = None
        self._act_train = Graphed(self._act_randomly, device, state=drawn, enabled=config.cuda_graphs)
        self._act_test = Graphed(self._act_mode, device, state=drawn, enabled=config.cuda_graphs)

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
        self._obs_norm_learns = samples < self.config.normalizer_samples

    def act(self, t: int) -> None:
        self._act_train()
        self._rollout.record(
            t, input=self._input, action=self._norm_action, log_prob=self._log_prob, flag=self._flag)
        if self._obs_norm_learns:
            self._obs_norm.record(self._env.obs)
        if self._latent is not None:
            self._latent.record(t)

    def observe(self, t: int) -> None:
        env = self._env
        self._outcome.record(t, next_obs=env.next_obs, reward=env.reward, done=env.done)
        for source in self._sources:
            source.record(t)

    def start_test(self) -> None:
        for source in self._sources:
            source.measures.start()

    def act_test(self) -> None:
        self._act_test()

    def observe_test(self) -> None:
        for source in self._sources:
            source.measures.observe()

    def measure_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: pair for source in self._sources for name, pair in source.measures.sums().items()}

    def freeze(self, count: int) -> None:
        if self._frozen is None:
            assert not self._act_train.captured, "what acts is captured already"
            self._frozen = FrozenPolicy(count, copy.deepcopy(self._model), copy.deepcopy(self._obs_norm))
        assert count == self._frozen.count
        present = self.model_tensors()
        with torch.no_grad():
            for name, tensor in self.frozen_tensors().items():
                tensor.copy_(present[name])

    def frozen_tensors(self) -> dict[str, Tensor]:
        if self._frozen is None:
            return {}
        return {
            **normalizer_tensors(self._frozen.obs_norm, self._action_norm),
            **prefixed("_model.", dict(self._frozen.model.named_parameters())),
        }

    @torch.no_grad()
    def _act_randomly(self) -> None:
        mean, log_std = self._policy_now()
        flag = (torch.rand_like(self._flag) < self._exp_prob).to(mean.dtype)
        action = mean + flag.unsqueeze(-1) * torch.exp(log_std) * torch.randn_like(mean)
        if self._frozen is not None:
            count = self._frozen.count
            latent = self._latent.values[:count] if self._latent is not None else None
            action = torch.cat([self._frozen.act(self._env.obs[:count], latent), action[count:]])
            flag = torch.cat([torch.zeros_like(flag[:count]), flag[count:]])
        self._norm_action.copy_(action)
        self._log_prob.copy_(gaussian_log_prob(action, mean, log_std))
        self._flag.copy_(flag)
        self.action.copy_(self._action_norm.to_env(action))

    @torch.no_grad()
    def _act_mode(self) -> None:
        mean, _ = self._policy_now()
        self.action.copy_(self._action_norm.to_env(mean))

    def _policy_now(self) -> tuple[Tensor, Tensor]:
        latent = None
        if self._latent is not None:
            self._latent.refresh()
            latent = self._latent.values
        self._input.copy_(join(self._obs_norm.normalize(self._env.obs), latent))
        return self._model.policy(self._input)

    def _exploration(self, samples: int) -> float:
        c = self.config
        return ppo.exploration_probability(samples, c.exp_prob_beg, c.exp_prob_end, c.exp_anneal_samples)

    # --- learning

    def update(self, samples: int) -> dict[str, Stat]:
        data_stats = self._build_targets()
        learners = (self._critic, self._actor, *self._sources)
        take_turns(learner.steps(self._sampler) for learner in learners)
        stats = {**self._critic.stats(), **self._actor.stats()}
        if self.config.kl_target > 0.0:
            stats |= self._adapt_rate(stats["Kl_Div"])
        for source in self._sources:
            stats |= source.stats()
        if samples < self.config.normalizer_samples:
            self._obs_norm.update(self._dist)
            for source in self._sources:
                source.fold()
        return stats | data_stats

    def _adapt_rate(self, change: Stat) -> dict[str, Stat]:
        """Change the actor's learning rate, equally on all processes."""
        optimizer, kl, weight = self._actor.optimizer, change.value, change.weight
        if self._dist.world_size > 1:
            total = self._dist.sum_(torch.stack([kl * weight, weight.to(kl.dtype)]))
            kl, weight = total[0] / total[1].clamp(min=1.0), total[1]
        target = self.config.kl_target
        optimizer.adapt_rate(torch.where(weight > 0.0, kl, target), target)  # no random action: nothing to go by
        return {"Actor_Rate": Stat(optimizer.rate)}

    @torch.no_grad()
    def _build_targets(self) -> dict[str, Stat]:
        """Fill ``target`` and ``weight`` of the rollout from its rewards."""
        rollout, config, env = self._rollout, self.config, self._env
        reward, done = self._outcome["reward"], self._outcome["done"]
        reward_stats = self._add_rewards() if self._sources else {}
        value, next_value = self._values()
        next_value = ppo.overwrite_terminal_values(next_value, done, config.discount, env.fail_reward, env.succ_reward)
        target = ppo.lambda_return(reward, next_value, done, config.discount, config.td_lambda)
        advantage = target - value
        mean, std = ppo.mean_and_std(self._dist.sum_(ppo.advantage_sums(advantage, rollout["flag"])))
        weight, weight_stats = self._objective.weigh(advantage, mean, std)
        rollout["target"].copy_(target)
        rollout["weight"].copy_(weight)
        advantage_stats = {"Adv_Mean": Stat(mean), "Adv_Std": Stat(std), **weight_stats}
        if self._latent is not None:  # ASE names its rewards first
            return reward_stats | advantage_stats
        return advantage_stats | reward_stats

    def _add_rewards(self) -> dict[str, Stat]:
        """Replace the rollout's rewards by the weighted sum of all rewards."""
        reward = self._outcome["reward"]
        task = Stat(reward.mean())
        reward.mul_(self._task_weight)
        stats: dict[str, Stat] = {}
        for source in self._sources:
            if self._obs_norm_learns:
                source.record_norm()
            share, columns = source.reward()
            reward.add_(share)
            stats |= columns
        return {**stats, "Task_Reward_Mean": task}

    def _values(self) -> tuple[Tensor, Tensor]:
        """Critic's values [T, N] of the rollout's observations and of the next ones (with the latents of the same
        steps), some steps at a time."""
        inputs, next_obs = self._rollout["input"], self._outcome["next_obs"]
        steps, num_envs, obs_size = next_obs.shape
        size = num_envs * (self.config.critic_eval_batch_size or max(1, PASS_SAMPLES // num_envs))
        value, next_value = [], []
        for x, obs in zip(inputs.flatten(0, 1).split(size), next_obs.flatten(0, 1).split(size), strict=True):
            latent = x[:, obs_size:] if self._latent is not None else None
            value.append(self._model.value(x))
            next_value.append(self._model.value(join(self._obs_norm.normalize(obs), latent)))
        return torch.cat(value).view(steps, num_envs), torch.cat(next_value).view(steps, num_envs)

    def _critic_loss(self, index: Tensor) -> BatchLoss:
        batch = self._rollout.minibatch(index)
        loss = ppo.critic_loss(self._model.value(batch["input"]), batch["target"])
        return BatchLoss(loss, float(index.shape[0]), loss.detach().view(1))

    def _actor_loss(self, index: Tensor) -> BatchLoss:
        config, batch = self.config, self._rollout.minibatch(index)
        x, flag = batch["input"], batch["flag"]
        variants = [term.variant(x) for term in self._terms]
        mean, log_std = self._model.policy(torch.cat([x, *variants]) if variants else x)
        mean, *variant_means = mean.split(len(x)) if variants else (mean,)
        log_std = log_std[:len(x)]
        log_prob = gaussian_log_prob(batch["action"], mean, log_std)
        log_ratio = ppo.log_ratio(log_prob, batch["log_prob"], flag)
        loss, *figures = self._objective.loss(log_prob, log_ratio, batch["weight"])
        further: list[tuple[float, Tensor]] = []
        if config.action_bound_weight != 0.0:
            further.append((config.action_bound_weight, ppo.action_bound_loss(mean)))
        if config.action_entropy_weight != 0.0:
            further.append((-config.action_entropy_weight, gaussian_entropy(log_std)))
        if config.action_reg_weight != 0.0:
            further.append((config.action_reg_weight, mean_regularizer(mean)))
        for term, variant, variant_mean in zip(self._terms, variants, variant_means, strict=True):
            further.append((term.weight, term.loss(x, mean, variant, variant_mean)))
        for weight, figure in further:
            loss = torch.add(loss, figure, alpha=weight)
            figures.append(figure.detach())
        if config.kl_target > 0.0:
            figures.append(ppo.policy_change(log_ratio))
        means = ppo.flagged_mean(torch.stack([loss, *figures]), flag)
        return BatchLoss(means[0], flag.sum(), means.detach())

    def _actor_columns(self) -> list[str]:
        """Names of the actor's statistics, in the order of :meth:`_actor_loss`."""
        optional = {
            "Action_Bound_Loss": self.config.action_bound_weight,
            "Action_Entropy": self.config.action_entropy_weight,
            "Action_Reg_Loss": self.config.action_reg_weight,
        }
        shown = [name for name, weight in optional.items() if weight != 0.0]
        change = ["Kl_Div"] if self.config.kl_target > 0.0 else []
        return [*self._objective.columns, *shown, *(term.column for term in self._terms), *change]

    def info(self, samples: int) -> dict[str, Stat]:
        probability = torch.full_like(self._exp_prob, self._exploration(samples))
        return {**normalizer_info(self._obs_norm), "Exp_Prob": Stat(probability)}

    # --- saving

    def model_tensors(self) -> dict[str, Tensor]:
        tensors = normalizer_tensors(self._obs_norm, self._action_norm)
        tensors |= prefixed("_model.", dict(self._model.named_parameters()))
        for source in self._sources:
            tensors |= source.model_tensors()
        return tensors

    def model_loaded(self) -> None:
        self._obs_norm.restore_moments()
        self._actor.optimizer.broadcast()
        self._critic.optimizer.broadcast()
        for source in self._sources:
            source.model_loaded()

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = {
            **self.model_tensors(),
            **prefixed("obs_norm.", self._obs_norm.state_tensors()),
            **prefixed("actor_optimizer.", self._actor.optimizer.state_tensors()),
            **prefixed("critic_optimizer.", self._critic.optimizer.state_tensors()),
        }
        for source in self._sources:
            tensors |= source.state_tensors()
        return tensors

    def local_state(self) -> dict[str, Tensor]:
        state = self._latent_tensors()
        for source in self._sources:
            state |= source.local_state()
        return state

    def load_local_state(self, state: dict[str, Tensor], where: str) -> None:
        latent = self._latent_tensors()
        fill_tensors(latent, {name: state[name] for name in latent if name in state}, where)
        for source in self._sources:
            source.load_local_state(state, where)

    def _latent_tensors(self) -> dict[str, Tensor]:
        return prefixed("latent.", self._latent.state_tensors()) if self._latent is not None else {}


def join(obs: Tensor, latent: Tensor | None) -> Tensor:
    """Input [..., O + L] of actor and critic: normalised observation [..., O], then the latent [..., L] if any."""
    return obs if latent is None else torch.cat([obs, latent], dim=-1)


def check_batch_sizes(config: AgentConfig, *networks: str) -> None:
    """Raises UserError where ``<network>_batch_size`` exceeds the rollout."""
    for key in (f"{network}_batch_size" for network in networks):
        if getattr(config, key) > config.steps_per_iter:
            raise UserError(f"{key} = {getattr(config, key)} exceeds steps_per_iter = {config.steps_per_iter}: a "
                            f"minibatch cannot hold more samples per environment than the rollout")
