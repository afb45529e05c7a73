"""PPO (Schulman et al. 2017), and what the other methods share with it: an iteration in the order of this file.

1. Collect: ``steps_per_iter`` steps of the policy in all environments, :meth:`PolicyAgent.act` and ``observe``.
2. Targets: rewards, values, returns, advantages.
3. Minibatches: losses of critic and actor; networks of reward sources take their own steps in between.

An agent is composed of an :class:`Objective` (what the actor makes of advantages), reward sources
(:class:`RewardSource`: rewards that the learner computes, each with networks of its own), latents (a further input of
actor and critic), and actor terms (:class:`ActorTerm`: further losses of the actor). ``methods.py`` says which method
has which.

``T`` steps, ``N`` environments, ``B`` samples of a minibatch, ``O`` observation, ``L`` latent, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from mimickit.envs.base import VecEnv
from mimickit.learning import rl_math
from mimickit.learning.agent import Agent, ProcessState
from mimickit.learning.config import AWRConfig, PolicyConfig, PPOConfig, minibatch_plan
from mimickit.learning.metrics import Metric, TestMetrics
from mimickit.learning.model import PASS_SAMPLES, ActorCritic, AveragedCritic, hidden_dtype, join
from mimickit.learning.optim import BatchLoss, FlatOptimizer, NetworkUpdate, interleave
from mimickit.learning.rollout import MinibatchSampler, Rollout, SampleTable
from mimickit.util.distributed import Distributed
from mimickit.util.graphs import Graphed

# --- what an agent is composed of -------------------------------------------------------------------------------------


class Objective(Protocol):
    """What the actor makes of advantages."""

    def prepare(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        """What the rollout keeps of advantages [T, N], given mean and deviation (0-d, over all processes), and
        metrics."""

    def terms(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        """The loss ``Actor_Loss`` and further metrics, of each sample, [B].

        Args:
            log_ratio: log probability less that of the rollout, 0 where the action was not random.
            advantage: of :meth:`prepare`.
        """


class ClippedSurrogate:
    """PPO's objective (eq. 7) on normalized, clipped advantages."""

    def __init__(self, config: PPOConfig) -> None:
        self._clip_ratio = config.ppo_clip_ratio
        self._adv_clip = config.norm_adv_clip

    def prepare(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        return rl_math.normalize_advantage(advantage, mean, std, self._adv_clip), {}

    def terms(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        found = rl_math.surrogate_loss(log_ratio, advantage, self._clip_ratio)
        return {"Actor_Loss": found.loss, "Clip_Frac": found.clipped, "Imp_Ratio": found.ratio}


class WeightedRegression:
    """Advantage-weighted regression (Peng et al. 2019), here on-policy: every iteration learns from its own rollout,
    without the paper's replay."""

    def __init__(self, config: AWRConfig) -> None:
        self._temperature = config.awr_temp
        self._clip = config.a_weight_clip

    def prepare(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        weight = rl_math.regression_weights(advantage, mean, std, self._temperature, self._clip)
        low, high = torch.aminmax(weight)
        return weight, {
            "A_Weight_Mean": Metric(weight.mean()), "A_Weight_Min": Metric(low, "min"),
            "A_Weight_Max": Metric(high, "max"),
        }

    def terms(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        return {"Actor_Loss": rl_math.regression_loss(log_prob, advantage)}


class RewardSource:
    """A reward computed by the learner: records along with the rollout, rewards it, then learns from it.

    An iteration is ``start_iteration``, ``record`` in every step, ``record_norm`` while normalizers learn, ``reward``,
    ``steps``, ``update_norm`` while they learn, and ``finish_iteration``. Nothing waits for the device.

    Attributes:
        net: its children, named as in the model file, become part of the agent's model; None: nothing to learn.
        update: the minibatch steps of ``net``.
        modules: normalizers and optimizers, by the names under which the agent registers them.
        per_process: as of :class:`Agent`.
    """

    net: nn.Module | None = None
    update: NetworkUpdate | None = None
    modules: dict[str, nn.Module]
    per_process: Mapping[str, ProcessState] = MappingProxyType({})
    test_metrics: TestMetrics

    def start_iteration(self, samples: int) -> None:
        """Prepare a rollout; ``samples`` were collected before it, over all processes."""

    def record(self, t: int) -> None:
        """Record what the environment says about step ``t``."""

    def record_norm(self) -> None:
        """Add the rollout to the pending sums of the source's normalizer."""

    def reward(self) -> tuple[Tensor, dict[str, Metric]]:
        """Weighted reward [T, N] of the rollout, and metrics."""
        raise NotImplementedError

    def steps(self, sampler: MinibatchSampler) -> Iterator[None]:
        """Learn from the rollout, see :meth:`NetworkUpdate.steps`."""
        return iter(()) if self.update is None else self.update.steps(sampler)

    def update_norm(self) -> None:
        """Fold what was recorded into the source's normalizer."""

    def finish_iteration(self, samples: int) -> None:
        """Everything has learned from the rollout; ``samples`` as in ``start_iteration``."""


class LatentInput(ProcessState, Protocol):
    """A further input of actor and critic."""

    size: int  # L
    values: Tensor  # [N, L] static buffer: what the next action is computed from

    def refresh(self) -> None:
        """Before every action, captured: draw new values where they are due."""

    def record(self, t: int) -> None:
        """Record the values of step ``t``."""


class ActorTerm(Protocol):
    """A further loss of the actor, which compares its actions with those for varied inputs; captured on CUDA."""

    name: str  # of the metric: the unweighted loss
    weight: float

    def variant(self, x: Tensor) -> Tensor:
        """Varied inputs [B, O + L] of a minibatch's ``x`` [B, O + L]."""

    def loss(self, x: Tensor, mean: Tensor, variant: Tensor, variant_mean: Tensor) -> Tensor:
        """Loss of each sample, [B]; means [B, A] of the normalized action."""


# --- the agent --------------------------------------------------------------------------------------------------------


class PolicyAgent(Agent):
    """Actor and critic that learn on-policy.

    Args:
        sources: rewards that are added to the environment's.
        task_weight: factor of the environment's own reward; used only with ``sources``.
        latents: further input of actor and critic.
        terms: further losses of the actor.

    Raises:
        UserError: the action box is not finite.
    """

    def __init__(
        self, env: VecEnv, config: PolicyConfig, dist: Distributed, objective: Objective,
        sources: Sequence[RewardSource] = (), task_weight: float = 1.0, latents: LatentInput | None = None,
        terms: Sequence[ActorTerm] = (),
    ) -> None:
        super().__init__(env, config, dist)
        device, num_envs, steps = env.device, env.num_envs, config.steps_per_iter
        obs_size, action_size = env.obs.shape[-1], env.action_low.shape[0]
        sizes = dist.all_gather_object((num_envs, steps, obs_size, action_size))
        assert len(set(sizes)) == 1, f"processes take unequal steps and would wait for ever: {sizes}"
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        self._objective = objective
        self._sources = tuple(sources)
        self._task_weight = task_weight
        self._latents = latents
        self._obs_size = obs_size
        self._terms = tuple(term for term in terms if term.weight != 0.0)

        input_size = obs_size + (latents.size if latents is not None else 0)
        self._model = ActorCritic(input_size, action_size, config.model, hidden_dtype(config, device)).to(device)
        self.averaged_critic = AveragedCritic(self._model, config.critic_ema_decay) if config.critic_ema_decay else None
        self.actor_optimizer = FlatOptimizer(self._model.actor_parameters(), config.actor_optimizer, dist)
        self.critic_optimizer = FlatOptimizer(self._model.critic_parameters(), config.critic_optimizer, dist)
        if latents is not None:
            self.per_process["latents"] = latents
        for source in self._sources:
            self._adopt(source)

        self._allocate(input_size)
        actor_plan = minibatch_plan(steps, num_envs, config.actor_batch_size, config.actor_epochs)
        critic_plan = minibatch_plan(steps, num_envs, config.critic_batch_size, config.critic_epochs)
        self._actor = NetworkUpdate(self._actor_loss, self.actor_optimizer, *actor_plan, dist, config.cuda_graphs)
        self._critic = NetworkUpdate(self._critic_loss, self.critic_optimizer, *critic_plan, dist, config.cuda_graphs)

    def _adopt(self, source: RewardSource) -> None:
        """Make the state of a reward source a part of this agent's."""
        for name, part in source.net.named_children() if source.net is not None else ():
            self._model.add_module(name, part)
        for name, module in source.modules.items():
            self.add_module(name, module)
        self.per_process |= source.per_process

    def _allocate(self, input_size: int) -> None:
        """Rollout, buffers and graphs of acting."""
        config, device, (num_envs, action_size) = self.config, self._env.device, self.action.shape
        steps, latents = config.steps_per_iter, self._latents
        # what minibatches are taken from, and what is needed of a rollout besides
        self._rollout = SampleTable(steps, num_envs, {
            "input": (input_size,), "action": (action_size,), "log_prob": (), "explore_mask": (), "returns": (),
            "advantage": (),
        }, device)
        self._outcome = Rollout(steps, num_envs, {"next_obs": (self._obs_size,), "reward": (), "done": ()}, device,
                                dtypes={"done": torch.int32})
        self._sampler = MinibatchSampler(self._rollout.num_samples, device)

        # static buffers of the captured step
        self._input = torch.zeros(num_envs, input_size, device=device)
        self._norm_action = torch.zeros_like(self.action)
        self._log_prob = torch.zeros(num_envs, device=device)
        self._explore_mask = torch.ones(num_envs, device=device)
        self._explore_prob = torch.ones((), device=device)
        drawn = list(latents.state().values()) if latents is not None else []
        self._act_train = Graphed(self._act_randomly, device, state=drawn, enabled=config.cuda_graphs)
        self._act_test = Graphed(self._act_mean, device, state=drawn, enabled=config.cuda_graphs)

    # --- 1. collect

    def start_iteration(self, samples: int) -> None:
        config = self.config
        self._norm_learns = samples < config.normalizer_samples
        self._explore_prob.fill_(self._exploration(samples))
        if config.action_std_end is not None:  # wide noise learns sooner, narrow noise follows better
            self._model.set_std(rl_math.annealed_std(
                samples, config.model.action_std, config.action_std_end, config.std_anneal_samples))
        for source in self._sources:
            source.start_iteration(samples)
        self._sampler.restart()

    def act(self, t: int) -> None:
        self._act_train()
        self._rollout.record(t, input=self._input, action=self._norm_action, log_prob=self._log_prob,
                             explore_mask=self._explore_mask)
        if self._norm_learns:
            self._obs_norm.record(self._env.obs)
        if self._latents is not None:
            self._latents.record(t)

    def observe(self, t: int) -> None:
        env = self._env
        self._outcome.record(t, next_obs=env.next_obs, reward=env.reward, done=env.done)
        for source in self._sources:
            source.record(t)

    @torch.no_grad()
    def _act_randomly(self) -> None:
        """Sample a ~ N(mean, std) with the exploration probability, else take the mean, in each environment."""
        mean, log_std = self._policy_now()
        explore = (torch.rand_like(self._explore_mask) < self._explore_prob).to(mean.dtype)
        action = mean + explore.unsqueeze(-1) * torch.exp(log_std) * torch.randn_like(mean)
        if self._frozen is not None:  # evaluated beside training: nothing random, and nothing to learn for the actor
            count = self._frozen.count
            latent = self._latents.values[:count] if self._latents is not None else None
            action = torch.cat([self._frozen.act(self._env.obs[:count], latent), action[count:]])
            explore = torch.cat([torch.zeros_like(explore[:count]), explore[count:]])
        self._norm_action.copy_(action)
        self._log_prob.copy_(rl_math.gaussian_log_prob(action, mean, log_std))
        self._explore_mask.copy_(explore)
        self.action.copy_(self._a_norm.to_env(action))

    @torch.no_grad()
    def _act_mean(self) -> None:
        mean, _ = self._policy_now()
        self.action.copy_(self._a_norm.to_env(mean))

    def _policy_now(self) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation [N, A] for what the environment shows now."""
        latent = None
        if self._latents is not None:
            self._latents.refresh()
            latent = self._latents.values
        self._input.copy_(join(self._obs_norm.normalize(self._env.obs), latent))
        return self._model.policy(self._input)

    def _exploration(self, samples: int) -> float:
        c = self.config
        return rl_math.exploration_probability(samples, c.exp_prob_beg, c.exp_prob_end, c.exp_anneal_samples)

    # --- learn: first targets, then minibatches

    def update(self, samples: int) -> dict[str, Metric]:
        """Learn from the rollout that was collected; see the module's description for the order."""
        target_metrics = self._compute_targets()
        # The networks share no parameters, so their minibatch steps may interleave: with several processes one network
        # computes while another's gradient travels. With one process it is critic, then actor, then reward sources.
        learners = (self._critic, self._actor, *self._sources)
        interleave(learner.steps(self._sampler) for learner in learners)
        metrics = {**self._critic.metrics(), **self._actor.metrics()}
        if self.config.kl_target > 0.0:
            metrics |= self._adapt_rate(metrics["Kl_Div"])
        for source in self._sources:
            metrics |= source.update.metrics() if source.update is not None else {}
        if self.averaged_critic is not None:
            self.averaged_critic.update(self._model)
        # Normalizers change last: the whole iteration sees observations as the policy that acted did.
        if self._norm_learns:
            self._obs_norm.update(self._dist)
            for source in self._sources:
                source.update_norm()
        for source in self._sources:
            source.finish_iteration(samples)
        return metrics | target_metrics

    # --- 2. targets: rewards, values, returns, advantages

    @torch.no_grad()
    def _compute_targets(self) -> dict[str, Metric]:
        """Fill ``returns`` and ``advantage`` of the rollout."""
        rollout, config, env = self._rollout, self.config, self._env
        reward, done = self._outcome["reward"], self._outcome["done"]
        reward_metrics = self._add_rewards() if self._sources else {}
        # The critic bootstraps where an episode was cut (rollout or time over), never beyond a true end.
        value, next_value = self._values()
        next_value = rl_math.overwrite_terminal_values(
            next_value, done, config.discount, env.fail_reward, env.succ_reward)
        returns = rl_math.lambda_return(reward, next_value, done, config.discount, config.td_lambda)
        # With TD(lambda) returns, return less value is the generalized advantage estimate. It is normalized over the
        # random actions of all processes, the only ones that the actor learns from.
        advantage = returns - value
        moments = self._dist.sum_(rl_math.masked_moments(advantage, rollout["explore_mask"]))
        mean, std = rl_math.mean_and_std(moments)
        advantage, metrics = self._objective.prepare(advantage, mean, std)
        rollout["returns"].copy_(returns)
        rollout["advantage"].copy_(advantage)
        metrics = {"Adv_Mean": Metric(mean), "Adv_Std": Metric(std), **metrics}
        # ASE logs its rewards first
        return metrics | reward_metrics if self._latents is None else reward_metrics | metrics

    def _add_rewards(self) -> dict[str, Metric]:
        """Replace the environment's rewards by the weighted sum of all rewards."""
        reward = self._outcome["reward"]
        task = Metric(reward.mean())
        reward.mul_(self._task_weight)
        metrics: dict[str, Metric] = {}
        for source in self._sources:
            if self._norm_learns:
                source.record_norm()
            share, found = source.reward()
            reward.add_(share)
            metrics |= found
        return {**metrics, "Task_Reward_Mean": task}

    def _values(self) -> tuple[Tensor, Tensor]:
        """Critic's values [T, N] of the rollout's observations and of the next ones (with the latents of the same
        steps), some steps at a time."""
        inputs, next_obs = self._rollout["input"], self._outcome["next_obs"]
        steps, num_envs, obs_size = next_obs.shape
        size = num_envs * (self.config.critic_eval_batch_size or max(1, PASS_SAMPLES // num_envs))
        critic = self.averaged_critic or self._model
        value, next_value = [], []
        for x, obs in zip(inputs.flatten(0, 1).split(size), next_obs.flatten(0, 1).split(size), strict=True):
            latent = x[:, obs_size:] if self._latents is not None else None
            value.append(critic.value(x))
            next_value.append(critic.value(join(self._obs_norm.normalize(obs), latent)))
        return torch.cat(value).view(steps, num_envs), torch.cat(next_value).view(steps, num_envs)

    # --- 3. losses of a minibatch

    def _critic_loss(self, index: Tensor) -> BatchLoss:
        """Squared error to the TD(lambda) returns, from all samples, random or not."""
        batch = self._rollout.minibatch(index)
        loss = rl_math.critic_loss(self._model.value(batch["input"]), batch["returns"])
        return BatchLoss(loss, float(index.shape[0]), ("Critic_Loss",), loss.detach().view(1))

    def _actor_loss(self, index: Tensor) -> BatchLoss:
        """The objective (PPO eq. 7, or AWR's) plus weighted terms: action bounds, entropy, length of the action,
        smoothness (Chen et al. 2024, "Learning Smooth Humanoid Locomotion through Lipschitz-Constrained Policies"), the
        method's own; means over the random actions, of smoothness over all."""
        config, batch = self.config, self._rollout.minibatch(index)
        x, mask = batch["input"], batch["explore_mask"]
        # One pass of the network for the minibatch and all its variants.
        variants = [term.variant(x) for term in self._terms]
        mean, log_std = self._model.policy(torch.cat([x, *variants]) if variants else x)
        mean, *variant_means = mean.split(len(x)) if variants else (mean,)
        log_std = log_std[:len(x)]
        log_prob = rl_math.gaussian_log_prob(batch["action"], mean, log_std)
        log_ratio = rl_math.log_ratio(log_prob, batch["log_prob"], mask)
        terms = self._objective.terms(log_prob, log_ratio, batch["advantage"])

        penalties: dict[str, tuple[float, Tensor]] = {}
        if config.action_bound_weight != 0.0:
            penalties["Action_Bound_Loss"] = config.action_bound_weight, rl_math.action_bound_loss(mean)
        if config.action_entropy_weight != 0.0:  # entropy is sought
            penalties["Action_Entropy"] = -config.action_entropy_weight, rl_math.gaussian_entropy(log_std)
        if config.action_reg_weight != 0.0:
            penalties["Action_Reg_Loss"] = config.action_reg_weight, rl_math.action_reg_loss(mean)
        if config.lcp_weight != 0.0:  # one number for all samples, which the mean over the random ones leaves as it is
            gradient = self._model.log_prob_gradient(x, batch["action"], mean, log_std)[:, :self._obs_size]
            penalties["Lcp_Loss"] = config.lcp_weight, gradient.square().sum(dim=-1).mean().expand_as(mask)
        for term, variant, variant_mean in zip(self._terms, variants, variant_means, strict=True):
            penalties[term.name] = term.weight, term.loss(x, mean, variant, variant_mean)
        for name, (weight, penalty) in penalties.items():
            terms["Actor_Loss"] = torch.add(terms["Actor_Loss"], penalty, alpha=weight)
            terms[name] = penalty.detach()
        if config.kl_target > 0.0:
            terms["Kl_Div"] = rl_math.kl_divergence(log_ratio)
        return BatchLoss.masked("Actor_Loss", terms, mask)

    def _adapt_rate(self, kl: Metric) -> dict[str, Metric]:
        """Change the actor's learning rate by how far the policy moved, equally on all processes."""
        change, weight = kl.value, kl.weight
        if self._dist.world_size > 1:
            total = self._dist.sum_(torch.stack([change * weight, weight.to(change.dtype)]))
            change, weight = total[0] / total[1].clamp(min=1.0), total[1]
        target = self.config.kl_target
        self.actor_optimizer.adapt_rate(torch.where(weight > 0.0, change, target), target)  # no random action: stay
        return {"Actor_Rate": Metric(self.actor_optimizer.rate)}

    # --- tests and what else the trainer asks for

    def start_test(self) -> None:
        for source in self._sources:
            source.test_metrics.start()

    def act_test(self) -> None:
        self._act_test()

    def observe_test(self) -> None:
        for source in self._sources:
            source.test_metrics.observe()

    def metric_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: pair for source in self._sources for name, pair in source.test_metrics.sums().items()}

    def model_loaded(self) -> None:
        super().model_loaded()
        if self.averaged_critic is not None:
            self.averaged_critic.reset(self._model)

    def freeze(self, count: int) -> None:
        assert self._frozen is not None or not self._act_train.captured, "acting is captured already"
        super().freeze(count)

    def info(self, samples: int) -> dict[str, Metric]:
        probability = torch.full_like(self._explore_prob, self._exploration(samples))
        return {**super().info(samples), "Exp_Prob": Metric(probability)}
