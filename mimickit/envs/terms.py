"""What an environment is made of: the state that flows through a step, and the contracts of what looks at it.

``N`` environments, ``B`` bodies, ``J = B - 1`` joints, ``D`` dofs, ``S`` future and ``P`` past reference frames. Units
SI, quaternions (x, y, z, w), positions and velocities in world axes unless said otherwise.

A :data:`Term` is a function of the state: an observation, a reward, a reason to end. What must be remembered from step
to step is a :class:`Memory`, whose methods may serve as terms. A :class:`Metric` is measured in tests. Whatever needs
another of these takes it as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mimickit.envs.base import DoneFlag, StartBuffer
from mimickit.util.distributed import Distributed
from mimickit.util.means import Means


class CharState(NamedTuple):
    """Pose and velocity of characters, any leading shape ``...``."""

    root_pos: Tensor  # [..., 3] m
    root_rot: Tensor  # [..., 4]
    root_vel: Tensor  # [..., 3] m/s, of the root body's origin
    root_ang_vel: Tensor  # [..., 3] rad/s
    joint_rot: Tensor  # [..., J, 4] relative to the parent at rest
    dof_vel: Tensor  # [..., D] rad/s
    body_pos: Tensor  # [..., B, 3] m, body origins
    body_rot: Tensor | None = None  # [..., B, 4]; None in a history, which does not keep it


class RefState(NamedTuple):
    """What the characters are compared with, or start from, at one moment."""

    frames: CharState  # [N, 1 + S, ...]: now, then the future frames
    ids: Tensor  # [N] int64 clip of each environment
    time: Tensor  # [N] s, time within the clip
    ended: Tensor  # [N] bool: a clip that does not loop is over
    window: CharState | None = None  # [N, P + 1, ...]: the clip's past and now, oldest first; None where none is kept

    @property
    def now(self) -> CharState:
        """The reference at the current time, [N, ...]."""
        return CharState(*(x[:, 0] for x in self.frames))

    @property
    def future(self) -> CharState:
        """The reference ahead of time, [N, S, ...]."""
        return CharState(*(x[:, 1:] for x in self.frames))


class StepState(NamedTuple):
    """One moment of all environments. Valid only inside the step that made it."""

    time: Tensor  # [N] s since the environment's reset
    char: CharState  # the simulated characters
    ref: RefState


Term = Callable[[StepState], Tensor]
"""A function of the state: an observation [N, n], a reward [N], or whether an episode ends [N] bool.

Terms run inside CUDA graphs: fixed shapes, no host synchronisation, no tensors made from host data, no side effects.
"""
Termination = tuple[DoneFlag, Term]
"""How an episode ends where the term is True."""


class Reference:
    """Where characters start, and what they are compared with. A subclass implements what it needs, and ``lookup``."""

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        """The reference at environment times [N] (s), and a state from which an episode may start, drawn anew.

        Both come from one call so that they share one lookup: a reset only selects between them.
        """
        raise NotImplementedError

    def reset(self, mask: Tensor, reset_state: RefState) -> None:
        """From now on follow ``reset_state``, of the last :meth:`lookup`, where mask [N]."""

    def pose_of(self, env: int, time: Tensor) -> tuple[Tensor, Tensor] | None:
        """For pictures: body positions [B, 3] and rotations [B, 4] of what environment ``env`` follows, if anything."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that must survive from step to step."""
        return {}

    def describe(self) -> str:
        """One line for people."""
        return type(self).__name__


class Memory:
    """What is remembered from step to step; a subclass implements the moments it needs.

    Each method writes the memory's own buffers and reads no other memory, so that their order carries no meaning. All
    but :meth:`before_physics` and :meth:`after_step` run inside CUDA graphs, see :data:`Term`.
    """

    def before_physics(self) -> None:
        """Before physics; the state is that after the last reset. May overwrite the engine's command."""

    def lookup(self, ref: RefState, reset_state: RefState) -> None:
        """Fill buffers that the clips alone determine, while physics runs.

        Args:
            ref: the reference after physics; reset_state: where episodes may start then.
        """

    def update(self, now: StepState) -> None:
        """Advance by one step. Terms and metrics are evaluated after all updates."""

    def reset(self, mask: Tensor, start: StepState) -> None:
        """Start anew where mask [N], from ``start``; its other rows were drawn but are not used.

        ``start.time`` is everybody's after the reset.
        """

    def after_step(self) -> None:
        """After everything else of the step."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that must survive from step to step: saved in checkpoints, put back after a graph's warm-up."""
        return {}


class Metric:
    """Means over samples of each environment; a subclass adds samples in :meth:`measure`.

    Args:
        names: what the means are called in logs.
    """

    def __init__(self, names: Sequence[str], num_envs: int, device: torch.device) -> None:
        self.means = Means(tuple(names), num_envs, device)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        """Add a step to the means. Runs inside a CUDA graph, before the environments that ended are reset.

        Args:
            done: [N] int32, the step's ``DoneFlag``.
            valid: [N] bool; False where the state holds a NaN or infinity.
        """

    def pooled(self, dist: Distributed) -> dict[str, Tensor]:
        """Metrics that are no means over samples, of all processes; reduces copies of the buffers. Collective."""
        return {}

    def clear(self) -> None:
        """Forget all samples."""
        self.means.clear()

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that must survive from step to step."""
        return self.means.buffers()


class Marker(NamedTuple):
    """Something that is only drawn."""

    file: Path  # MJCF of one body
    pos: Tensor  # [3] m
    rot: Tensor  # [4]
    color: tuple[float, float, float]  # RGB in [0, 1]


class Lines(NamedTuple):
    """Straight lines that are only drawn."""

    begin: Tensor  # [k, 3] m
    end: Tensor  # [k, 3] m
    color: tuple[float, float, float]  # RGB in [0, 1]


Drawing = Callable[[], list[Marker | Lines]]
"""What to draw for environment 0, now; markers always in the same number and order. For pictures: no part of a step."""


@dataclass
class EnvTerms:
    """What an environment is made of, besides its scene. A recipe makes it; another recipe may take and change it.

    Names are keys of ``info``, of checkpoints (memory, metrics) and of what ``Env.describe`` says.

    Attributes:
        reference: where episodes start and what the character is compared with.
        observations: blocks of the observation, side by side in this order.
        rewards: are added up.
        terminations: of several, failure counts before success, success before time.
        metrics: measured in TEST mode.
        uninterrupted: measured in UNINTERRUPTED mode, where episodes go on when the character falls or is lost.
        info: further data for the learning method, of the state before resets: a term, or a buffer that a memory fills.
        memory: all memories that terms and metrics use.
        drawings: what pictures show in addition.
        episode_length: s, rounded up to whole control steps; ``inf`` for none; None: the settings'.
        starts: takes generated start states, if anything does.
        kinematic: the reference's pose replaces the simulated one in every step (viewing clips).
    """

    reference: Reference
    observations: dict[str, Term]
    rewards: dict[str, Term]
    terminations: dict[str, Termination] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    uninterrupted: dict[str, Metric] = field(default_factory=dict)
    info: dict[str, Term | Tensor] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)
    episode_length: float | None = None
    starts: StartBuffer | None = None
    kinematic: bool = False


class LookedUp(Memory):
    """A buffer that a function of the clips fills while physics runs.

    Args:
        function: of reference and reset state, as :meth:`Memory.lookup` gets them.
        like: the function's result has its shape and type.
    """

    def __init__(self, function: Callable[[RefState, RefState], Tensor], like: Tensor) -> None:
        self._function = function
        self.buffer = torch.zeros_like(like)

    def lookup(self, ref: RefState, reset_state: RefState) -> None:
        self.buffer.copy_(self._function(ref, reset_state))


def overwrite(mask: Tensor, new: Tensor, buffer: Tensor) -> None:
    """Write rows of new [N, ...] into buffer [N, ...] where mask [N], in place and without synchronisation."""
    torch.where(_rows(mask, buffer), new, buffer, out=buffer)


def select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of new where mask [N] or [N, T], else of old [N, ...] or [N, T, ...]."""
    return torch.where(_rows(mask, old), new, old)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.dim() - mask.dim()))
