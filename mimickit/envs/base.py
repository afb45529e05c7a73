"""What learning sees of an environment. Nothing here knows characters, clips or physics.

One step for all ``N`` environments::

    env.step(action)
    env.next_obs, env.reward, env.done      # of the step just made; next_obs is the state *before* any reset
    env.obs                                 # what the next action is computed from; finished environments were reset

All outputs are static buffers on ``env.device`` that the next step overwrites: copy what you keep. ``step`` never
waits for the device and, on CUDA, runs as captured graphs.
"""

from __future__ import annotations

import enum
from typing import Protocol

import torch

from mimickit.util.distributed import Distributed


class DoneFlag(enum.IntEnum):
    """Why an episode ended. TIME is a time-out and bootstraps; FAIL and SUCC are terminal."""

    NULL = 0
    FAIL = 1
    SUCC = 2
    TIME = 3


class EnvMode(enum.Enum):
    TRAIN = "train"
    TEST = "test"
    UNINTERRUPTED = "uninterrupted"  # a test in which no failure ends an episode, but for a NaN or infinity


class StartBuffer(Protocol):
    """Windows of states from which episodes start, in place of the clips, once there are some."""

    def open(self, capacity: int, frames: int) -> None:
        """Keep the newest ``capacity`` windows of ``frames`` states each. Before the first step."""

    def add(self, windows: torch.Tensor) -> None:
        """Put windows [n, frames * C], like ``info["disc_obs"]``, over the oldest. Does not wait."""


class VecEnv(Protocol):
    """``N`` environments stepped together. ``O`` observation size, ``A`` action size."""

    device: torch.device
    num_envs: int
    dt: float  # s, one step
    action_low: torch.Tensor  # [A] action box, in simulator units
    action_high: torch.Tensor  # [A]
    fail_reward: float  # reward per step that stands for the value of a FAIL end (0 in all shipped environments)
    succ_reward: float  # the same for SUCC

    obs: torch.Tensor  # [N, O] float32, after resets
    next_obs: torch.Tensor  # [N, O] float32, before resets
    reward: torch.Tensor  # [N] float32, task reward of the last step
    done: torch.Tensor  # [N] int32, DoneFlag of the last step
    measures_uninterrupted: bool  # whether there is anything to measure in UNINTERRUPTED mode
    steps: torch.Tensor  # [N] int32, control steps since the last reset; those of ``obs``, so 0 right after a reset
    starts: StartBuffer | None  # where a learner may put generated start states; None: not in this environment
    info: dict[str, torch.Tensor]  # method-specific static buffers of the state before resets, e.g. disc_obs [N, .]

    def step(self, action: torch.Tensor) -> None:
        """Apply actions [N, A] (clamped to the box inside), simulate, observe, reset finished environments."""

    def reset(self, worlds: int | torch.Tensor | None = None) -> None:
        """Reset all environments, the first ones or those of a mask [N]; fills ``obs``; ``done`` becomes NULL there.
        The others go on."""

    def set_mode(self, mode: EnvMode) -> None:
        """Switch between training and testing. A test has metrics of its mode; entering it clears them."""

    def metrics(self) -> dict[str, torch.Tensor]:
        """Metrics of this process since the last test mode was entered, 0-d tensors with names like ``root_pos_err``.
        May wait for the device (eigenvalues do)."""

    def metric_sums(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The metrics that are means over samples, as (sum, number of samples) of each environment, [N] float64.

        Live buffers that every step adds to, cleared with the metrics. Other metrics, such as largest values, are left
        out."""

    def pooled_metrics(self, dist: Distributed) -> dict[str, torch.Tensor]:
        """The metrics that :meth:`metric_sums` leaves out, over the environments of all processes.

        Collective: all processes call it and get the same. It changes nothing. May wait for the device."""

    def health(self) -> dict[str, torch.Tensor]:
        """Counters since clear_health(), 0-d int64 tensors: ``nonfinite`` (environment steps with a NaN or infinity
        in observation or reward; those environments were failed and reset), ``contact_overflow``,
        ``constraint_overflow``. No sync."""

    def clear_health(self) -> None: ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue exactly, random state excepted (the trainer saves that)."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...

    def close(self) -> None: ...
