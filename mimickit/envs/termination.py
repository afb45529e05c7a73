"""Why an episode ends: the clip is over, the character fell, or it lost its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.engines.engine import Engine
from mimickit.envs.base import DoneFlag
from mimickit.envs.parts import CharState, MeasuringPart, Part, Snapshot
from mimickit.util.rotations import quat_conj, quat_rotate

CONTACT_FORCE_LIMIT = 0.1  # N, per component


def contact_failure(ground_force: Tensor, forbidden: Tensor) -> Tensor:
    """Whether [N] a forbidden body touches the ground.

    Args:
        ground_force: [N, B, 3] N, ground contact force on each body; any component above 0.1 N is a contact.
        forbidden: [B] bool, bodies that must not touch the ground.
    """
    touching = (ground_force.abs() > CONTACT_FORCE_LIMIT).any(dim=-1)
    return (touching & forbidden).any(dim=-1)


def pose_failure(char: CharState, ref: CharState, distance: float, track_root: bool, global_obs: bool) -> Tensor:
    """Whether [N] some body is farther than ``distance`` (m) from where the reference has it.

    ``track_root``: positions in the world, root included. Otherwise bodies relative to their own root, in world axes
    with ``global_obs``, else in the axes of their own root (its full rotation).
    """
    if track_root:
        offset = char.body_pos - ref.body_pos
    else:
        pos, ref_pos = (_from_root(c, rotate=not global_obs) for c in (char, ref))
        offset = pos - ref_pos
    return (offset.square().sum(dim=-1) > distance * distance).any(dim=-1)


def _from_root(char: CharState, rotate: bool) -> Tensor:
    offset = char.body_pos[..., 1:, :] - char.root_pos.unsqueeze(-2)
    return quat_rotate(quat_conj(char.root_rot).unsqueeze(-2), offset) if rotate else offset


def set_flag(flags: Tensor, mask: Tensor, flag: DoneFlag) -> Tensor:
    """Flags [N] with ``flag`` where mask [N]."""
    return flags.masked_fill(mask, int(flag))


class MotionEnd(Part):
    """A clip that does not loop and is over ends the episode with success."""

    def done(self, now: Snapshot, flags: Tensor) -> Tensor:
        return set_flag(flags, now.ref.ended, DoneFlag.SUCC)

    def describe(self) -> str:
        return "ends with the clip"


class Fall(Part):
    """Ground contact of a body that must not touch the ground ends the episode with failure.

    Args:
        forbidden: [B] bool.
    """

    def __init__(self, engine: Engine, forbidden: Tensor) -> None:
        self._engine = engine
        self._forbidden = forbidden

    def done(self, now: Snapshot, flags: Tensor) -> Tensor:
        failed = contact_failure(self._engine.ground_contact_force, self._forbidden)
        return set_flag(flags, failed, DoneFlag.FAIL)

    def describe(self) -> str:
        return "fails on ground contact of other bodies than contact_bodies"


class PoseLost(Part):
    """Losing the reference pose ends the episode with failure."""

    def __init__(self, distance: float, track_root: bool, global_obs: bool) -> None:
        self._distance = distance
        self._track_root = track_root
        self._global_obs = global_obs

    def done(self, now: Snapshot, flags: Tensor) -> Tensor:
        failed = pose_failure(now.char, now.ref.now, self._distance, self._track_root, self._global_obs)
        return set_flag(flags, failed, DoneFlag.FAIL)

    def describe(self) -> str:
        return f"fails when a body is {self._distance:g} m from the reference"


class SuccessRate(MeasuringPart):
    """``success_rate``: share of finished episodes that did not fail."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        super().__init__(("success_rate",), num_envs, device)

    def measure(self, now: Snapshot, flags: Tensor, valid: Tensor) -> None:
        kept = (flags != DoneFlag.FAIL).to(now.time.dtype)
        self._means.add(kept.unsqueeze(-1), flags != DoneFlag.NULL)

    def describe(self) -> str:
        return "success rate"
