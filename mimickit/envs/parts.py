"""What an environment is made of: the data that flows through a step, and the shape of a part.

``N`` environments, ``B`` bodies, ``J = B - 1`` joints, ``D`` dofs, ``S`` future and ``P`` past reference frames. Units
SI, quaternions (x, y, z, w), positions and velocities in world axes unless said otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mimickit.engines.engine import Engine
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
    body_rot: Tensor  # [..., B, 4]


class Reference(NamedTuple):
    """What the characters are compared with and start from."""

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


class Snapshot(NamedTuple):
    """One moment of all environments. Valid only inside the step that made it."""

    time: Tensor  # [N] s since the environment's reset
    char: CharState  # the simulated characters
    ref: Reference


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


class Source(Protocol):
    """Where characters start, and what they are compared with."""

    def look(self, time: Tensor) -> tuple[Reference, Reference]:
        """The reference at environment times [N] (s), and one at which an episode may begin, drawn anew in each call.

        Both come from one call so that they share one lookup: a reset only selects between them.
        """

    def begin(self, mask: Tensor, fresh: Reference) -> None:
        """From now on follow ``fresh``, one of :meth:`look`'s beginnings, where mask [N]."""

    def pose_of(self, env: int, time: Tensor) -> tuple[Tensor, Tensor] | None:
        """For pictures: body positions [B, 3] and rotations [B, 4] of what environment ``env`` follows, if anything."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that must survive from step to step."""

    def describe(self) -> str:
        """One line for people."""


class Part:
    """One aspect of an environment; a subclass implements what it has to say.

    The environment calls, in every step: ``act`` before physics; ``look`` beside physics; after physics ``update``,
    ``observe``, ``reward``, ``done``, ``measure``; then ``reset`` and ``observe`` again for the beginnings of new
    episodes; at last ``finish``. All between ``act`` and ``finish`` is captured in CUDA graphs: fixed shapes, in-place
    writes to buffers, no host synchronisation, no other side effects.
    """

    def act(self) -> None:
        """Before physics; state is that after the last reset. May overwrite the engine's command."""

    def look(self, ref: Reference, fresh: Reference) -> None:
        """Fill buffers that the clips alone determine, for after the physics that runs meanwhile.

        Args:
            ref: the reference after physics; fresh: where episodes may begin then.
        """

    def update(self, now: Snapshot) -> None:
        """Advance the part's own buffers by one step."""

    def observe(self, now: Snapshot) -> Tensor | None:
        """The part's block [N, n] of the observation."""

    def reward(self, now: Snapshot) -> Tensor | None:
        """The part's share [N] of the reward."""

    def done(self, now: Snapshot, flags: Tensor) -> Tensor:
        """Flags [N] int32 (see ``DoneFlag``) with the part's verdict written over those of the parts before it."""
        return flags

    def discard(self, valid: Tensor) -> None:
        """Environments with valid [N] False hold garbage: let none of it reach ``info``."""

    def measure(self, now: Snapshot, flags: Tensor, valid: Tensor) -> None:
        """In a test: add to the diagnostics; flags [N] of this step, valid as in :meth:`discard`."""

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        """Start anew where mask [N], from ``start``; its other rows are beginnings that were drawn but are not used.

        ``start.time`` is everybody's after the reset.
        """

    def finish(self) -> None:
        """After everything else of the step."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Measures since ``clear_diagnostics``, 0-d tensors."""
        return {}

    def measure_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For those diagnostics that are means over samples: sum and number of samples [N] float64, live buffers."""
        return {}

    def pooled_diagnostics(self, dist: Distributed) -> dict[str, Tensor]:
        """All other diagnostics, as they are of the characters of all processes; reduces copies of the buffers."""
        return {}

    def clear_diagnostics(self) -> None:
        """Forget all measures."""

    def info(self) -> dict[str, Tensor]:
        """Static buffers for the learning method."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that must survive from step to step: saved in checkpoints, put back after a graph's warm-up."""
        return {}

    def markers(self) -> list[Marker]:
        """What to draw for environment 0 beside the character. For pictures: not part of the step."""
        return []

    def lines(self) -> list[Lines]:
        """Lines to draw for environment 0, as :meth:`markers`."""
        return []

    def describe(self) -> str:
        """One line for people."""
        return type(self).__name__


class ConstantReward(Part):
    """The same reward in every step."""

    def __init__(self, value: float, num_envs: int, device: torch.device) -> None:
        self._reward = torch.full((num_envs,), value, device=device)

    def reward(self, now: Snapshot) -> Tensor:
        return self._reward

    def describe(self) -> str:
        return "constant reward"


class MeasuringPart(Part):
    """A part whose diagnostics are means over samples; ``measure`` adds to ``self._means``."""

    def __init__(self, names: tuple[str, ...], num_envs: int, device: torch.device) -> None:
        self._means = Means(names, num_envs, device)

    def diagnostics(self) -> dict[str, Tensor]:
        return self._means.means()

    def measure_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self._means.per_env()

    def clear_diagnostics(self) -> None:
        self._means.clear()

    def buffers(self) -> dict[str, Tensor]:
        return self._means.buffers()


def overwrite(mask: Tensor, new: Tensor, buffer: Tensor) -> None:
    """Write rows of new [N, ...] into buffer [N, ...] where mask [N], in place and without synchronisation."""
    torch.where(_rows(mask, buffer), new, buffer, out=buffer)


def select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of new where mask [N] or [N, T], else of old [N, ...] or [N, T, ...]."""
    return torch.where(_rows(mask, old), new, old)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.dim() - mask.dim()))


def read_character(engine: Engine, joint_rot: Tensor) -> CharState:
    """The engine's characters [N, ...] as they are in its buffers; joint rotations [N, J, 4] are those of its dofs."""
    return CharState(
        root_pos=engine.root_pos, root_rot=engine.root_rot, root_vel=engine.root_vel, root_ang_vel=engine.root_ang_vel,
        joint_rot=joint_rot, dof_vel=engine.dof_vel, body_pos=engine.body_pos, body_rot=engine.body_rot,
    )
