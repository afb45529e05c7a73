"""Every key of an agent file, and the options of a training.

Classes build on each other as the methods do: what every agent has, actor and critic, PPO, LCP, the discriminator of
AMP and ADD, the skills of ASE. Nothing here loads torch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from mimickit.config import AssetPath, Config, build, load_layered, nearest
from mimickit.learning import older_layout
from mimickit.util.failures import UserError
from mimickit.util.files import write_text
from mimickit.util.logging import LoggerKind
from mimickit.util.options import OPTIONS, UNLIMITED

NetName = Literal[
    "fc_2layers_1024units", "fc_2layers_512units", "fc_2layers_256units", "fc_2layers_128units", "fc_3layers_1024units"
]


# --- networks and optimizers ------------------------------------------------------------------------------------------


class ModelConfig(Config):
    """Mapping ``model``: networks of actor and critic."""

    actor_net: NetName
    critic_net: NetName
    actor_init_output_scale: float = Field(ge=0.0, description="weights of the action mean start uniform in +- this")
    actor_std_type: Literal["FIXED", "CONSTANT", "VARIABLE"]
    action_std: float = Field(gt=0.0, description="initial standard deviation, as a fraction of half the action range")


class DiscModelConfig(ModelConfig):
    """Mapping ``model`` of AMP and ADD."""

    disc_net: NetName


class ASEModelConfig(DiscModelConfig):
    """Mapping ``model`` of ASE."""

    enc_net: NetName
    latent_dim: int = Field(ge=1, description="size of a latent")


class OptimizerConfig(Config):
    """Mapping ``actor_optimizer`` and its like."""

    type: Literal["SGD", "Adam"]
    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0, description="SGD: added to the gradient; Adam: decoupled (AdamW)")
    grad_clip: float = Field(0.0, ge=0.0, description="largest global gradient norm, 0 = off")


# --- agents -----------------------------------------------------------------------------------------------------------


class AgentConfig(Config):
    """Keys that the training loop reads."""

    discount: float = Field(ge=0.0, lt=1.0, description="per control step")
    steps_per_iter: int = Field(ge=1, description="control steps per environment and iteration")
    iters_per_output: int = Field(ge=1, description="iterations between evaluations")
    test_episodes: int = Field(ge=0, description="episodes of an evaluation, over all processes")
    normalizer_samples: float = Field(
        float("inf"), ge=0.0, allow_inf_nan=True, description="total samples after which normalizers freeze")


class DummyConfig(AgentConfig):
    """``agent_name: Dummy``, also what runs without an agent file."""

    agent_name: Literal["Dummy"] = "Dummy"
    discount: float = 0.99
    steps_per_iter: int = 32
    iters_per_output: int = 100
    test_episodes: int = 10
    normalizer_samples: float = 10000.0


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
    lcp_weight: float = Field(0.0, ge=0.0, description="of the squared gradient of the action's log-probability by the "
                                                       "observation: a smoother policy; 0 = off (ours but for LCP)")
    critic_eval_batch_size: int = Field(0, ge=0, description="rollout steps per value pass, 0 = chosen for speed")
    kl_target: float = Field(0.0, ge=0.0, description="mean KL divergence of an update that the actor's learning rate "
                                                      "is adapted to; 0 = fixed rate (ours)")
    exp_anneal_samples: float = Field(float("inf"), gt=0.0, allow_inf_nan=True, description="total samples")
    exp_prob_beg: float = Field(1.0, ge=0.0, le=1.0, description="probability of a random action at the start")
    exp_prob_end: float = Field(1.0, ge=0.0, le=1.0, description="and after exp_anneal_samples")
    action_std_end: float | None = Field(None, gt=0.0, description="to which model.action_std falls, evenly in its "
                                                                   "logarithm; null = it stays (ours)")
    std_anneal_samples: float | None = Field(None, gt=0.0, description="total samples after which it is reached (ours)")
    critic_ema_decay: float = Field(0.0, ge=0.0, lt=1.0, description="values come from a critic averaged over "
                                    "iterations with this decay; 0 = from the critic itself (ours)")
    tf32: bool = Field(True, description="TensorFloat-32 matrix products on CUDA (ours; 10 bits of mantissa, faster)")
    bf16: bool = Field(False, description="hidden layers in bfloat16 where a GPU has it (ours; 8 bits of mantissa, "
                                          "faster still)")
    cuda_graphs: bool = Field(True, description="capture acting and learning as CUDA graphs (ours; off to debug)")

    @model_validator(mode="after")
    def _minibatches_fit(self) -> PolicyConfig:
        networks = [key.removesuffix("_epochs") for key in type(self).model_fields if key.endswith("_epochs")]
        for key in (f"{network}_batch_size" for network in networks):
            if getattr(self, key) > self.steps_per_iter:
                raise ValueError(f"{key} = {getattr(self, key)} exceeds steps_per_iter = {self.steps_per_iter}: a "
                                 f"minibatch cannot hold more samples per environment than the rollout")
        return self

    @model_validator(mode="after")
    def _noise_can_fall(self) -> PolicyConfig:
        if (self.action_std_end is None) != (self.std_anneal_samples is None):
            raise ValueError("action_std_end and std_anneal_samples belong together: give both or neither")
        if self.action_std_end is not None and self.model.actor_std_type != "FIXED":
            raise ValueError(f"action_std_end needs model.actor_std_type FIXED; {self.model.actor_std_type} is learned")
        return self


class PPOConfig(PolicyConfig):
    """``agent_name: PPO``."""

    agent_name: Literal["PPO"]
    ppo_clip_ratio: float = Field(gt=0.0)
    norm_adv_clip: float = Field(gt=0.0, description="standard deviations")


class LCPConfig(PPOConfig):
    """``agent_name: LCP``: PPO of a smooth policy."""

    agent_name: Literal["LCP"]
    lcp_weight: float = Field(ge=0.0, description="of the squared gradient of the action's log-probability by the "
                                                  "observation")


class SMPConfig(PPOConfig):
    """``agent_name: SMP``: PPO with the reward of a motion prior."""

    agent_name: Literal["SMP"]
    task_reward_weight: float = Field(description="of the environment's reward")
    smp_prior_cfg: AssetPath = Field(description="the prior's file: network and diffusion")
    smp_prior_model: AssetPath = Field(description="the prior's weights (mimickit prior); not needed with a model file "
                                                   "of the policy, which holds them")
    smp_eval_batch_size: int = Field(ge=1, description="samples per reward pass")
    sds_loss_scale: float = Field(ge=0.0, description="of the denoising error in the reward's exponent")
    smp_reward_scale: float = Field(1.0, ge=0.0)
    smp_reward_weight: float
    diffusion_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="at which errors are "
                                                                                               "looked at")
    sds_normalizer_samples: float = Field(float("inf"), ge=0.0, allow_inf_nan=True, description="total samples after "
                                          "which the usual error stays")
    enable_gsi: bool = Field(False, description="episodes start from windows that the prior generates")
    gsi_iters: int = Field(50, ge=1, description="iterations from one generation to the next")
    gsi_sampler: Literal["ddpm", "ddim"] = "ddpm"
    gsi_inference_steps: int = Field(10, ge=1, description="of ddim")
    gsi_buffer_size: int = Field(4096, ge=1, description="windows")
    gsi_regen_num_motions: int = Field(1024, ge=1, description="windows of a generation")
    gsi_batch_size: int = Field(256, ge=1, description="windows at once")

    @model_validator(mode="after")
    def _buffer_holds_them(self) -> SMPConfig:
        sizes = self.gsi_buffer_size, self.gsi_regen_num_motions, self.gsi_batch_size
        if self.enable_gsi and sizes != tuple(sorted(sizes, reverse=True)):
            raise ValueError(f"gsi_buffer_size = {sizes[0]}, gsi_regen_num_motions = {sizes[1]}, gsi_batch_size = "
                             f"{sizes[2]}: none may exceed the one before")
        return self


class AWRConfig(PolicyConfig):
    """``agent_name: AWR``."""

    agent_name: Literal["AWR"]
    awr_temp: float = Field(gt=0.0, description="temperature: smaller prefers good actions more strongly")
    a_weight_clip: float = Field(gt=0.0, description="largest weight of a sample")


class AdversarialConfig(PPOConfig):
    """``agent_name: AMP`` or ``ADD``: PPO with a discriminator's reward."""

    agent_name: Literal["AMP", "ADD"]
    model: DiscModelConfig
    task_reward_weight: float = Field(description="of the environment's reward")
    disc_optimizer: OptimizerConfig
    disc_epochs: int = Field(ge=1, description="passes over the rollout")
    disc_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    disc_eval_batch_size: int = Field(0, ge=0, description="samples per reward pass, 0 = chosen for speed")
    disc_buffer_size: int = Field(ge=1, description="samples in the replay buffer of a process")
    disc_replay_samples: int = Field(ge=0, description="samples of a rollout that enter the buffer once it is full")
    disc_logit_reg: float = Field(ge=0.0, description="of the squared weights of the last layer")
    disc_grad_penalty: float = Field(ge=0.0, description="of the squared gradient of the logit at all samples")
    disc_reward_scale: float = Field(ge=0.0)
    disc_reward_weight: float


class ASEConfig(AdversarialConfig):
    """``agent_name: ASE``: AMP with skills."""

    agent_name: Literal["ASE"]
    model: ASEModelConfig
    enc_optimizer: OptimizerConfig
    enc_epochs: int = Field(ge=1, description="passes over the rollout")
    enc_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    enc_eval_batch_size: int = Field(0, ge=0, description="samples per reward pass, 0 = chosen for speed")
    enc_reward_weight: float
    diversity_weight: float = Field(ge=0.0)
    diversity_tar: float = Field(description="target of the action's change, relative to the change of the latent")
    latent_time_min: float = Field(ge=0.0, description="s, shortest time before a new latent")
    latent_time_max: float = Field(ge=0.0, description="s, longest time before a new latent")

    @model_validator(mode="after")
    def _times_in_order(self) -> ASEConfig:
        if self.latent_time_min > self.latent_time_max:
            raise ValueError(f"latent_time_min = {self.latent_time_min} exceeds latent_time_max = "
                             f"{self.latent_time_max}")
        return self


CONFIGS: dict[str, type[AgentConfig]] = {
    "PPO": PPOConfig, "LCP": LCPConfig, "AWR": AWRConfig, "AMP": AdversarialConfig, "ADD": AdversarialConfig,
    "ASE": ASEConfig, "SMP": SMPConfig, "Dummy": DummyConfig,
}


def minibatch_plan(num_steps: int, num_envs: int, batch_size: float, epochs: int) -> tuple[int, int]:
    """Samples of a minibatch and number of optimizer steps of an iteration.

    Args:
        batch_size: samples per environment, may be fractional.
    """
    samples = math.ceil(batch_size * num_envs)
    return samples, math.ceil(num_steps * num_envs / samples) * epochs


def check_replay(config: AdversarialConfig, num_envs: int) -> None:
    """Raises UserError where a minibatch of the discriminator is larger than its replay buffer."""
    batch, _ = minibatch_plan(config.steps_per_iter, num_envs, config.disc_batch_size, config.disc_epochs)
    if batch > config.disc_buffer_size:
        raise UserError(f"disc_batch_size = {config.disc_batch_size} times num_envs = {num_envs} gives minibatches of "
                        f"{batch} samples, more than disc_buffer_size = {config.disc_buffer_size} holds")


def check_eval_envs(count: int, num_envs: int) -> None:
    """Raises UserError where evaluation beside training would leave no environment to train in."""
    if count >= num_envs:
        raise UserError(f"--eval_envs {count} leaves none of the {num_envs} environments of a process to train in: "
                        f"give less, or 0 to pause training for evaluations")


# --- agent files ------------------------------------------------------------------------------------------------------


def parse_agent_config(data: Mapping[str, Any] | None, where: str = "agent config") -> AgentConfig:
    """Validate the content of an agent file; None is the dummy agent.

    Args:
        where: the file's path, for messages.

    Raises:
        UserError: unknown ``agent_name``; unknown, missing or wrong keys.
    """
    if data is None:
        return DummyConfig()
    present, _ = present_layout(data, where)
    return build(_config_class(present, where), present, where)


def present_layout(data: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str | None]:
    """An agent file's content in the present layout, and a sentence that says what was mapped if it was an older one.

    Raises:
        UserError: unknown ``agent_name``, or an older key's value that cannot be mapped.
    """
    cls = _config_class(data, where)
    if not older_layout.is_older(data):
        return data, None
    networks = [name.removesuffix("_optimizer") for name in cls.model_fields if name.endswith("_optimizer")]
    present, told = older_layout.to_present(data, networks, where)
    return present, f"{where} has the layout before February 2026 and is read as: {'; '.join(told)}"


def convert_agent_file(old: Path, new: Path) -> str:
    """Write an agent file of the older layout in the present one; returns the sentence that says what was mapped.

    Raises:
        AssetMissingError, UserError: ``old`` is missing, wrong, or has the present layout; ``new`` exists.
    """
    if new.exists():
        raise UserError(f"{new} exists: name another file, or remove it")
    data, mapped = present_layout(load_layered(old), str(old))
    if mapped is None:
        raise UserError(f"{old} has the present layout: nothing to convert")
    parse_agent_config(data, str(old))
    header = textwrap.fill(mapped, 118, initial_indent="# ", subsequent_indent="# ")
    write_text(new, f"{header}\n{yaml.safe_dump(dict(data), sort_keys=False)}")
    return mapped


def _config_class(data: Mapping[str, Any], where: str) -> type[AgentConfig]:
    name = data.get("agent_name")
    if name in CONFIGS:
        return CONFIGS[name]
    given = f"agent_name '{name}' is not supported" if "agent_name" in data else "missing key 'agent_name'"
    raise UserError(f"{where}: {given}{nearest(str(name), CONFIGS)}; supported: {', '.join(CONFIGS)}")


# --- a training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainOptions:
    """How long to train and what to leave behind; docs/run_folder.md describes the files."""

    out_dir: Path
    max_samples: int = UNLIMITED  # over all processes, earlier runs included
    max_iters: int | None = None  # of this process
    time_budget_s: float | None = None  # of this process
    output_samples: int | None = None  # evaluate and save at least so often, besides the agent's iters_per_output
    output_seconds: float | None = None
    eval_envs: int = 0  # evaluate in so many environments of every process beside training; 0: training pauses for it
    max_episode_steps: int = OPTIONS["max_episode_steps"].default  # evaluations count an episode as ended after these
    save_int_models: bool = False
    resume: Path | None = None  # run folder or checkpoint folder
    run: str = ""  # name of the run, kept with its checkpoints
    logger: LoggerKind = "txt"
    log_env_metrics: bool = True  # log what evaluations measure of the environment
    configuration: Mapping[str, Any] = field(default_factory=dict)  # kept with checkpoints, compared on resume
    agent_config: Mapping[str, Any] = field(default_factory=dict)  # for W&B
    started: float | None = None  # time.monotonic() when the process started
