"""A diffusion model of motion windows: the prior that scores a policy's motion (SMP) and generates start states.

The process is that of Ho et al. 2020 ("Denoising Diffusion Probabilistic Models") with the cosine schedule of Nichol
and Dhariwal 2021; sampling is theirs, or deterministic in fewer steps (Song et al. 2021, "DDIM"). The network is a
transformer over frames whose layers the time modulates (Peebles and Xie 2023, "DiT"), with the time's modulation shared
by all blocks (Chen et al. 2023, "PixArt-alpha").

Module and parameter names are the keys of MimicKit's prior files: a prior trained there loads here and the other way
round. ``B`` windows of ``S`` frames with ``C`` channels each, flattened to [B, S C], oldest first; ``T`` diffusion
steps, 0 is the least noisy; ``D`` width of the network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mimickit.config import AssetPath, Config, build, load_layered, merge
from mimickit.learning.normalizer import MeanStdNormalizer
from mimickit.util.checkpoint import fill_tensors, read_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

MAX_FRAMES = 32  # rows of the position table
TIME_FEATURES = 256
MIN_VARIANCE = 1e-20
MAX_BETA = 0.999
Schedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
Estimate = Literal["epsilon", "sample", "v_prediction"]
Sampler = Literal["ddpm", "ddim"]


class PriorConfig(Config):
    """A prior's file: network, diffusion and training. The keys are MimicKit's."""

    model_name: str = Field("tiny_mdm", description="not used")
    arch_name: Literal["DiT"] = "DiT"
    T: int = Field(ge=2, description="diffusion steps")
    loss_type: Literal["l1", "l2"]
    estimate_mode: Estimate
    noise_schedule_mode: Schedule
    num_layers: int = Field(ge=1)
    num_attention_heads: int = Field(4, ge=1)
    attention_head_dim: int = Field(64, ge=2, multiple_of=2)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    model_ema: bool = Field(False, description="score and sample with an average of the weights")
    model_ema_decay: float = Field(0.995, ge=0.0, lt=1.0)
    model_ema_steps: int = Field(10, ge=1, description="iterations from one averaging to the next")
    model_ema_update_after: int = Field(5000, ge=0, description="iterations during which the weights are just copied")
    normalizer_std_clip: float = Field(0.0, ge=0.0, description="least deviation of a channel")
    device: str = Field("cuda", description="not used: the program's device counts")
    batch_size: int = Field(512, ge=1)
    lr: float = Field(1e-4, gt=0.0)
    num_iterations: int = Field(ge=1)
    num_samples_stat: int = Field(10000, ge=2, description="windows from which the normalizer is filled")
    output_iter: int = Field(2000, ge=1, description="iterations between outputs")
    grad_clip_norm: float = Field(1.0, ge=0.0)
    env_config: AssetPath = Field(description="environment whose observation the windows are")
    motion_file: AssetPath = Field(description="clip (.pkl) or dataset (.yaml)")
    control_freq: int = Field(gt=0, description="Hz, of the frames of a window")
    master_port: str = Field("", description="not used", coerce_numbers_to_str=True)

    @model_validator(mode="after")
    def _enough_samples(self) -> PriorConfig:
        if self.num_samples_stat < self.batch_size:
            raise ValueError(f"num_samples_stat = {self.num_samples_stat} is less than batch_size = {self.batch_size}")
        return self


def load_prior_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> PriorConfig:
    """Read a prior's file; ``overrides``: keys that replace those of the file. Raises AssetMissingError, UserError."""
    data = merge(load_layered(path), overrides or {})
    if data.get("num_class") or data.get("cfg_dropout"):
        raise UserError(f"{path}: num_class, cfg_dropout: priors of several classes are not supported; a prior here is "
                        "of all its clips")
    data = {key: value for key, value in data.items() if key not in ("num_class", "cfg_dropout")}
    if data.get("arch_name") == "CondDiT":  # without classes the same network
        data["arch_name"] = "DiT"
    return build(PriorConfig, data, str(path))


# --- the process ------------------------------------------------------------------------------------------------------


def noise_schedule(mode: Schedule, steps: int) -> Tensor:
    """Share of the signal's variance that is left at each diffusion step, alpha-bar [T], float64, falling."""
    if mode == "squaredcos_cap_v2":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((time + 0.008) / 1.008 * (math.pi / 2.0)).square()
        beta = (1.0 - signal[1:] / signal[:-1]).clamp(max=MAX_BETA)
    elif mode == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    else:
        beta = torch.linspace(1e-4**0.5, 0.02**0.5, steps, dtype=torch.float64).square()
    return (1.0 - beta).cumprod(0)


class Diffusion:
    """Noising, and the steps back.

    Args:
        estimate: what the network says: the noise, the clean window, or v (Salimans and Ho 2022).

    Attributes:
        alpha_bar: [T].
    """

    def __init__(self, mode: Schedule, steps: int, estimate: Estimate, device: torch.device | str = "cpu") -> None:
        self.steps, self.estimate = steps, estimate
        wide = noise_schedule(mode, steps)
        before = torch.cat([wide.new_ones(1), wide[:-1]])  # of the step before; nothing is left to remove at step 0
        beta = 1.0 - wide / before
        self.alpha_bar = wide.float().to(device)
        self._signal, self._noise = (x.sqrt().float().to(device) for x in (wide, 1.0 - wide))
        # x_{t-1} = clean * clean_share + x_t * noisy_share + deviation * noise (Ho et al. 2020, eq. 7)
        self._clean_share = (before.sqrt() * beta / (1.0 - wide)).float().to(device)
        self._noisy_share = ((wide / before).sqrt() * (1.0 - before) / (1.0 - wide)).float().to(device)
        variance = ((1.0 - before) / (1.0 - wide) * beta).clamp(min=MIN_VARIANCE)
        self.deviation = torch.cat([variance.new_zeros(1), variance[1:].sqrt()]).float().to(device)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Windows [B, n] at diffusion steps t [B]."""
        return self._signal[t].unsqueeze(-1) * x + self._noise[t].unsqueeze(-1) * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say [B, n] about windows x noised by ``noise`` at steps t [B]."""
        if self.estimate == "v_prediction":
            return self._signal[t].unsqueeze(-1) * noise - self._noise[t].unsqueeze(-1) * x
        return noise if self.estimate == "epsilon" else x

    def clean_and_noise(self, noisy: Tensor, said: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates [B, n] of the clean window and of the noise, from what the network said of ``noisy`` at t [B]."""
        signal, noise = self._signal[t].unsqueeze(-1), self._noise[t].unsqueeze(-1)
        if self.estimate == "epsilon":
            return (noisy - noise * said) / signal, said
        if self.estimate == "sample":
            return said, (noisy - signal * said) / noise
        return signal * noisy - noise * said, signal * said + noise * noisy

    def ddpm_step(self, noisy: Tensor, clean: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        """One step of diffusion back from t [B], with noise ``draw`` [B, n]; t = 0 ends at the clean estimate."""
        mean = self._clean_share[t].unsqueeze(-1) * clean + self._noisy_share[t].unsqueeze(-1) * noisy
        return mean + self.deviation[t].unsqueeze(-1) * draw

    def ddim_step(self, clean: Tensor, noise: Tensor, t: Tensor, stride: int) -> Tensor:
        """``stride`` steps back from t [B], without randomness; below 0 is the clean estimate."""
        to = t - stride
        signal = torch.where(to >= 0, self._signal[to.clamp(min=0)], 1.0).unsqueeze(-1)
        share = torch.where(to >= 0, self._noise[to.clamp(min=0)], 0.0).unsqueeze(-1)
        return signal * clean + share * noise

    def ddim_steps(self, count: int) -> tuple[list[int], int]:
        """The steps that ``count`` steps of DDIM visit, and their distance."""
        stride = self.steps // count
        return [index * stride for index in reversed(range(count))], stride


# --- the network ------------------------------------------------------------------------------------------------------


def time_features(t: Tensor) -> Tensor:
    """Features [B, 256] of diffusion steps t [B]: cosines, then sines, of frequencies from 1 down to 1e-4."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device))
    angle = t.unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def position_table(width: int) -> Tensor:
    """[32, D]: sines at even, cosines at odd features of the frame's number (Vaswani et al. 2017)."""
    frequency = torch.exp(-math.log(10000.0) / width * torch.arange(0, width, 2))
    angle = torch.arange(MAX_FRAMES).unsqueeze(-1) * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Self-attention over all frames."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        query, key, value = (layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
                             for layer in (self.to_q, self.to_k, self.to_v))
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(found.transpose(1, 2).flatten(-2))


class GatedLinear(nn.Module):
    """A linear layer, half of whose output gates the other half (Shazeer 2020, "SwiGLU")."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.silu(gate)


class FeedForward(nn.Module):
    """Each frame by itself."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return self.net(x)


class Block(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the time."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        self.attn1 = Attention(width, heads, dropout)
        self.ff = FeedForward(width, dropout)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [B, S, D], modulation [B, 1, 6, D] -> [B, S, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation).unbind(dim=-2)
        x = x + gate1 * self.attn1(functional.layer_norm(x, x.shape[-1:]) * (1.0 + scale1) + shift1)
        return x + gate2 * self.ff(functional.layer_norm(x, x.shape[-1:]) * (1.0 + scale2) + shift2)


class TimeEmbedding(nn.Module):
    """The time as D numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.Module()
        self.timestep_embedder.linear_1 = nn.Linear(TIME_FEATURES, width)
        self.timestep_embedder.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """[B] -> [B, D]."""
        layers = self.timestep_embedder
        return layers.linear_2(functional.silu(layers.linear_1(time_features(t))))


class TimeModulation(nn.Module):
    """What the time does to all blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimeEmbedding(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, t: Tensor) -> Tensor:
        """[B] -> [B, 1, 6, D]."""
        return self.linear(functional.silu(self.emb(t))).unflatten(-1, (1, 6, -1))


class PositionTable(nn.Module):
    """Sinusoids that tell the frames apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", position_table(width).unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, :x.shape[1]]


class DiT(nn.Module):
    """What a noisy window says about its noise (or about the clean one, see :class:`Diffusion`).

    Raises:
        UserError: more than 32 frames.
    """

    def __init__(self, frames: int, channels: int, config: PriorConfig) -> None:
        super().__init__()
        if frames > MAX_FRAMES:
            raise UserError(f"a prior's windows have at most {MAX_FRAMES} frames; num_disc_obs_steps is {frames}")
        width = config.num_attention_heads * config.attention_head_dim
        self._frames = frames
        # never used, but MimicKit's files have it
        self.scale_shift_table = nn.Parameter(torch.randn(1, 1, 2, width) / width**0.5, requires_grad=False)
        self.transformer_blocks = nn.ModuleList(
            Block(width, config.num_attention_heads, config.dropout) for _ in range(config.num_layers))
        self.adaln_single = TimeModulation(width)
        self.preprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.proj_in = nn.Linear(channels, width, bias=False)
        self.proj_out = nn.Linear(width, channels, bias=False)
        self.postprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.sequence_pos_encoder = PositionTable(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, S C] and diffusion steps t [B] -> [B, S C]."""
        x = x.unflatten(-1, (self._frames, -1))
        x = x + functional.linear(x, self.preprocess_conv.weight.squeeze(-1))
        x = self.sequence_pos_encoder(self.proj_in(x))
        modulation = self.adaln_single(t)
        for block in self.transformer_blocks:
            x = block(x, modulation)
        y = self.proj_out(x)
        return (y + functional.linear(y, self.postprocess_conv.weight.squeeze(-1))).flatten(-2)


class AveragedNet(nn.Module):
    """Exponential moving average of a network's weights: first a copy, then an average.

    Args:
        steps: calls of :meth:`update` from one averaging to the next.
        update_after: calls during which the weights are copied.
    """

    def __init__(self, model: nn.Module, decay: float, steps: int, update_after: int) -> None:
        super().__init__()
        self.model = model
        self.ema_model = copy.deepcopy(model).requires_grad_(False)
        self._decay, self._steps, self._update_after = decay, steps, update_after
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def update(self, call: int) -> None:
        """The weights have changed; ``call`` counts from 0."""
        if call % self._steps == 0:
            weight = 1.0 if call <= self._update_after else 1.0 - self._decay
            torch._foreach_lerp_(list(self.ema_model.parameters()), [p.detach() for p in self.model.parameters()],
                                 weight)
        self.step.fill_(call + 1)


class ChannelNormalizer(nn.Module):
    """(x - mean) / std of each channel, all frames pooled; what a prior's file keeps of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("_count", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("_mean", torch.zeros(channels))
        self.register_buffer("_std", torch.ones(channels))

    def fill(self, frames: Tensor, min_std: float) -> None:
        """Take mean and deviation (``min_std`` at least) from frames [..., C]."""
        found = MeanStdNormalizer(frames.shape[-1], frames.device)
        found.record(frames)
        found.update(Distributed.single(frames.device))
        self._count.copy_(found.count)
        self._mean.copy_(found.mean)
        self._std.copy_(found.std.clamp(min=min_std))

    def normalize(self, x: Tensor) -> Tensor:
        """Windows [..., S C]."""
        channels = len(self._mean)
        return ((x.unflatten(-1, (-1, channels)) - self._mean) / self._std).flatten(-2)

    def denormalize(self, x: Tensor) -> Tensor:
        """Windows [..., S C]."""
        channels = len(self._mean)
        return (x.unflatten(-1, (-1, channels)) * self._std + self._mean).flatten(-2)


class MotionPrior(nn.Module):
    """A diffusion model of windows, with its normalizer; its state dictionary is a prior's file.

    Args:
        frames: S; channels: C.
    """

    def __init__(self, config: PriorConfig, frames: int, channels: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.size = frames * channels
        self.dmodel = DiT(frames, channels, config)
        self.ema_dmodel = AveragedNet(self.dmodel, config.model_ema_decay, config.model_ema_steps,
                                      config.model_ema_update_after) if config.model_ema else None
        self.obs_normalizer = ChannelNormalizer(channels)
        self.diffusion = Diffusion(config.noise_schedule_mode, config.T, config.estimate_mode, device)
        self.to(device)

    @property
    def net(self) -> DiT:
        """The network that scores and samples."""
        return self.dmodel if self.ema_dmodel is None else self.ema_dmodel.ema_model

    def freeze(self) -> MotionPrior:
        """From now on only score and sample."""
        return self.requires_grad_(False).eval()

    def load(self, path: str | Path) -> None:
        """Read a prior's file.

        Raises:
            AssetMissingError, UserError: no such file, or it is of another network, window or observation.
        """
        fill_tensors(self.state_dict(), read_model(Path(path)), str(path))

    def loss(self, x: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
        """Training loss, 0-d, of normalized windows [B, S C]: random steps and noise."""
        t = torch.randint(self.diffusion.steps, x.shape[:1], device=x.device)
        noise = torch.randn_like(x)
        said = self.dmodel(self.diffusion.add_noise(x, noise, t), t)
        error = functional.l1_loss if kind == "l1" else functional.mse_loss
        return error(said, self.diffusion.target(x, noise, t))

    def denoising_errors(self, x: Tensor, steps: Tensor) -> Tensor:
        """Mean squared error [B, K] of the noise that is seen in normalized windows [B, S C] at diffusion steps [K]."""
        count, kinds = len(x), len(steps)
        t, clean = steps.repeat(count), x.repeat_interleave(kinds, dim=0)
        noise = torch.randn_like(clean)
        noisy = self.diffusion.add_noise(clean, noise, t)
        _, seen = self.diffusion.clean_and_noise(noisy, self.net(noisy, t), t)
        return (seen - noise).square().mean(-1).view(count, kinds)

    @torch.no_grad()
    def sample(self, count: int, sampler: Sampler = "ddpm", inference_steps: int = 10) -> Tensor:
        """Generated windows [count, S C], not normalized: as the environment observes them."""
        device, diffusion = self.obs_normalizer._mean.device, self.diffusion
        x = torch.randn(count, self.size, device=device)
        visited, stride = ((list(reversed(range(diffusion.steps))), 1) if sampler == "ddpm"
                           else diffusion.ddim_steps(inference_steps))
        clean = x
        for step in visited:
            t = torch.full((count,), step, device=device)
            clean, noise = diffusion.clean_and_noise(x, self.net(x, t), t)
            x = (diffusion.ddpm_step(x, clean, t, torch.randn_like(x)) if sampler == "ddpm"
                 else diffusion.ddim_step(clean, noise, t, stride))
        return self.obs_normalizer.denormalize(clean)


# --- the reward -------------------------------------------------------------------------------------------------------


def score_matching_reward(normalized: Tensor, scale: float, loss_scale: float) -> Tensor:
    """Reward [B] for motion that the prior denoises well, scale exp(-loss_scale mean of ``normalized``): denoising
    errors [B, K] in units of their usual size."""
    return scale * torch.exp(-loss_scale * normalized.mean(-1))
