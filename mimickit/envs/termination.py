"""Why an episode fails: the character fell, or it lost its reference."""

from __future__ import annotations

from torch import Tensor

from mimickit.envs.terms import CharState
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
