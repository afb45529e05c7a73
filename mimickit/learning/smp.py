"""Score-matching reward (SMP): a frozen motion prior is asked about the policy's motion; what it denoises well earns
reward. The prior may also generate the states that episodes start from.

``T`` steps, ``N`` environments, ``K`` diffusion steps at which the prior is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.config import load_layered
from mimickit.envs.base import VecEnv
from mimickit.learning.adversarial import require_info, reward_metrics
from mimickit.learning.config import SMPConfig
from mimickit.learning.diffusion import MotionPrior, load_prior_config, score_matching_reward
from mimickit.learning.metrics import Metric, TestMetrics
from mimickit.learning.normalizer import MeanAbsNormalizer
from mimickit.learning.ppo import RewardSource
from mimickit.learning.rollout import Rollout
from mimickit.util.distributed import Distributed
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.graphs import Graphed


def load_prior(config: SMPConfig, window_size: int, device: torch.device) -> tuple[MotionPrior, int]:
    """The frozen prior of an agent, and how many frames its windows have. Without a file of weights they are to come
    from the policy's model file.

    Raises:
        AssetMissingError, UserError: a file is missing, wrong, or of another window.
    """
    prior_config = load_prior_config(config.smp_prior_cfg)
    frames = load_layered(prior_config.env_config).get("num_disc_obs_steps")
    if not isinstance(frames, int) or frames < 1 or window_size % frames:
        raise UserError(f"{prior_config.env_config}: num_disc_obs_steps {frames} does not fit windows of {window_size} "
                        "numbers, which the environment makes")
    if wrong := [step for step in config.diffusion_steps if step >= prior_config.T]:
        raise UserError(f"diffusion_steps {wrong}: the prior of {config.smp_prior_cfg} has steps 0 to "
                        f"{prior_config.T - 1} (T = {prior_config.T})")
    prior = MotionPrior(prior_config, frames, window_size // frames, device)
    if config.smp_prior_model.is_file():
        prior.load(config.smp_prior_model)
    return prior.freeze(), frames


class ScoreMatching(RewardSource):
    """Rewards what the prior denoises well: noise is added to a window, and the closer the prior's idea of that noise
    the higher the reward. Errors count in units of their usual size at their diffusion step.

    Nothing here learns but those sizes. With ``enable_gsi`` the prior fills the environment's start states before the
    first iteration and renews some of them every ``gsi_iters`` iterations.

    Raises:
        UserError: agent, prior and environment do not fit together.
    """

    def __init__(self, env: VecEnv, config: SMPConfig, dist: Distributed) -> None:
        self._obs, = require_info(env, "disc_obs")
        size, device = self._obs.shape[-1], env.device
        self._env, self._config, self._dist = env, config, dist
        self.prior, frames = load_prior(config, size, device)
        self.norm = MeanAbsNormalizer(len(config.diffusion_steps), device)
        self.modules = {"_prior_model": self.prior, "_sds_normalizer": self.norm}
        self._steps = torch.tensor(config.diffusion_steps, device=device)
        self._rollout = Rollout(config.steps_per_iter, env.num_envs, {"window": (size,)}, device)
        self._samples_per_iter = self._rollout.num_samples * dist.world_size
        self._is_ready = False
        self._norm_learns = True
        # static buffers of one captured pass
        chunk = min(config.smp_eval_batch_size, self._rollout.num_samples)
        self._windows = torch.zeros(chunk, size, device=device)
        self._errors = torch.zeros(chunk, len(config.diffusion_steps), device=device)
        self._look = Graphed(self._look_now, device, enabled=config.cuda_graphs)
        if config.enable_gsi:
            if env.starts is None:
                raise UserError("enable_gsi: episodes of this environment cannot start from generated states: it needs "
                                "enable_tar_obs and pose_termination false, root_height_obs true")
            env.starts.open(config.gsi_buffer_size, frames)
        self.test_metrics = TestMetrics(
            ("test_smp_reward", "test_sds_loss"), self._test_values, env.num_envs, device, config.cuda_graphs)

    def start_iteration(self, samples: int) -> None:
        self._require_weights()
        self._norm_learns = samples < self._config.sds_normalizer_samples
        if self._config.enable_gsi and samples == 0:
            self._generate(self._config.gsi_buffer_size)

    def record(self, t: int) -> None:
        self._rollout.record(t, window=self._obs)

    @torch.no_grad()
    def reward(self) -> tuple[Tensor, dict[str, Metric]]:
        windows, chunk = self._rollout["window"], len(self._windows)
        rows = windows.flatten(0, 1)
        errors = rows.new_zeros(len(rows), len(self._steps))
        for begin in range(0, len(rows), chunk):
            begin = min(begin, len(rows) - chunk)  # passes are of one size: the last may look at some once more
            self._windows.copy_(rows[begin:begin + chunk])
            self._look()
            errors[begin:begin + chunk] = self._errors
        if self._norm_learns:
            self.norm.record(errors)
        reward = self._reward(errors).view(windows.shape[:2])
        loss = errors.mean(-1).view_as(reward)
        metrics = reward_metrics("Smp_Reward", reward, self._dist) | reward_metrics("Sds_Loss", loss, self._dist)
        return self._config.smp_reward_weight * reward, metrics

    def finish_iteration(self, samples: int) -> None:
        self.norm.update(self._dist)
        iteration = samples // self._samples_per_iter
        if self._config.enable_gsi and iteration % self._config.gsi_iters == 0:
            self._generate(self._config.gsi_regen_num_motions)

    def _look_now(self) -> None:
        self._errors.copy_(self.prior.denoising_errors(self.prior.obs_normalizer.normalize(self._windows), self._steps))

    def _reward(self, errors: Tensor) -> Tensor:
        """Reward [B] of denoising errors [B, K]."""
        return score_matching_reward(self.norm.normalize(errors), self._config.smp_reward_scale,
                                     self._config.sds_loss_scale)

    def _generate(self, count: int) -> None:
        """Put so many generated windows into the environment's start states."""
        config = self._config
        for begin in range(0, count, config.gsi_batch_size):
            self._env.starts.add(self.prior.sample(
                min(config.gsi_batch_size, count - begin), config.gsi_sampler, config.gsi_inference_steps))

    def _require_weights(self) -> None:
        """Raises AssetMissingError where neither a prior's nor a policy's file gave weights. Waits once."""
        if not self._is_ready:
            if int(self.prior.obs_normalizer._count) == 0:
                raise AssetMissingError(f"smp_prior_model {self._config.smp_prior_model}: no such prior; mimickit "
                                        f"prior {self._config.smp_prior_cfg} trains it")
            self._is_ready = True

    def _test_values(self) -> tuple[Tensor, ...]:
        """Reward and denoising error of the environments' present windows, [N] each."""
        errors = self.prior.denoising_errors(self.prior.obs_normalizer.normalize(self._obs), self._steps)
        return self._reward(errors), errors.mean(-1)
