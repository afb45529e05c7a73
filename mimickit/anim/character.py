"""Kinematics of a character, batched: dofs <-> joint rotations -> body poses.

``B`` bodies in depth-first order, ``J = B - 1`` joints (joint j moves body j + 1; fixed joints included), ``D`` dofs.
Everything works on any leading shape (written ``...``), allocates only by fixed shape and can be captured in a CUDA
graph.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mimickit.anim.mjcf import CharacterModel, JointKind, load_character_model
from mimickit.util import rotations as rot


class Character:
    """Kinematic model on a device.

    Attributes:
        model: what the file states.
        body_names: B names; num_bodies, num_joints, num_dofs: B, J, D.
    """

    def __init__(self, model: CharacterModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.model = model
        self.device = torch.device(device)
        self.body_names = model.body_names
        self.num_bodies, self.num_joints, self.num_dofs = model.num_bodies, model.num_joints, model.num_dofs

        def tensor(values, kind=dtype) -> Tensor:
            return torch.as_tensor(values, dtype=kind).to(self.device)

        self._local_pos = tensor(model.local_pos[1:].copy())  # [J, 3]
        self._local_rot = tensor(model.local_rot[1:].copy())  # [J, 4]
        self._aligned = bool((model.local_rot[1:] == (0.0, 0.0, 0.0, 1.0)).all())  # with their parents, at rest
        self._axis = tensor(model.joint_axis[1:].copy())  # [J, 3], zero unless hinge
        self._root_rot = tensor([[0.0, 0.0, 0.0, 1.0]])
        self._links = torch.cat([tensor([[0.0, 0.0, 0.0]]), self._local_pos])  # [B, 3], the root's in itself
        self._ancestors = [tensor(a, torch.int64) for a in _ancestor_tables(model.parents)]

        # dofs -> exponential maps: which dof feeds each of the 3 J numbers, and times what
        source, factor = [], []
        # (exponential maps [3 J], hinge angles [J]) -> dofs: which of the 4 J numbers is each dof
        pick = []
        for j in range(self.num_joints):
            kind, dofs = model.joint_kinds[j + 1], model.dof_slices[j + 1]
            if kind is JointKind.SPHERICAL:
                source += [dofs.start, dofs.start + 1, dofs.start + 2]
                factor += [1.0, 1.0, 1.0]
                pick += [3 * j, 3 * j + 1, 3 * j + 2]
            elif kind is JointKind.HINGE:
                source += [dofs.start] * 3
                factor += model.joint_axis[j + 1].tolist()
                pick += [3 * self.num_joints + j]
            else:
                source += [0, 0, 0]
                factor += [0.0, 0.0, 0.0]
        self._dof_source = tensor(source, torch.int64)
        self._dof_factor = tensor(factor)
        self._dof_pick = tensor(pick, torch.int64)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Character:
        """Read an MJCF file; errors as :func:`mimickit.anim.mjcf.load_character_model`."""
        return cls(load_character_model(path), device)

    def forward_kinematics(self, root_pos: Tensor, root_rot: Tensor, joint_rot: Tensor) -> tuple[Tensor, Tensor]:
        """Body poses in the world.

        Args:
            root_pos: [..., 3] m; root_rot: [..., 4]; joint_rot: [..., J, 4] relative to rest, in the parent's frame.

        Returns:
            body_pos [..., B, 3] (origins) and body_rot [..., B, 4].

        With l, r a body's rest pose in its parent and q its joint rotation: position = parent position + parent
        rotation applied to l; rotation = parent rotation * r * q. The chain is multiplied out by pointer jumping:
        each round joins every body's transform with that of the ancestor it ends at, so the depth covered doubles
        and log2(depth) rounds over all bodies at once suffice.
        """
        shape = joint_rot.shape[:-2]
        pos = self._links.expand(*shape, -1, -1)
        link_rot = joint_rot if self._aligned else rot.quat_mul(self._local_rot, joint_rot)
        turn = torch.cat([self._root_rot.expand(*shape, -1, -1), link_rot], dim=-2)
        for ancestor in self._ancestors:  # after it, pos and turn are relative to the root for ever deeper bodies
            base_pos, base_rot = pos.index_select(-2, ancestor), turn.index_select(-2, ancestor)
            pos = base_pos + rot.quat_rotate(base_rot, pos)
            turn = rot.quat_mul(base_rot, turn)
        base_rot = root_rot.unsqueeze(-2)
        return root_pos.unsqueeze(-2) + rot.quat_rotate(base_rot, pos), rot.quat_mul(base_rot, turn)

    def dof_to_rot(self, dof: Tensor) -> Tensor:
        """Joint rotations [..., J, 4] of dof values [..., D] (hinge: rad about its axis; spherical: exp. map)."""
        if self.num_dofs == 0:
            return self._root_rot.expand(*dof.shape[:-1], self.num_joints, 4)
        exp_map = dof.index_select(-1, self._dof_source) * self._dof_factor
        return rot.exp_map_to_quat(exp_map.unflatten(-1, (self.num_joints, 3)))

    def rot_to_dof(self, joint_rot: Tensor) -> Tensor:
        """Dof values [..., D] of joint rotations [..., J, 4]; a hinge takes the twist about its axis, in [-pi, pi]."""
        twist = rot.quat_twist_angle(joint_rot, self._axis)
        return self._pick_dofs(rot.quat_to_exp_map(joint_rot), twist)

    def dof_velocity(self, joint_rot0: Tensor, joint_rot1: Tensor, dt: float) -> Tensor:
        """Dof velocities [..., D] (rad/s, child's frame) that turn joint rotations 0 into 1 [..., J, 4] in dt s."""
        delta = rot.quat_normalize(rot.quat_mul(rot.quat_conj(joint_rot0), joint_rot1))
        velocity = rot.quat_to_exp_map(delta) / dt
        return self._pick_dofs(velocity, (velocity * self._axis).sum(dim=-1))

    def _pick_dofs(self, per_axis: Tensor, hinge: Tensor) -> Tensor:
        return torch.cat([per_axis.flatten(-2), hinge], dim=-1).index_select(-1, self._dof_pick)


def _ancestor_tables(parents: tuple[int, ...]) -> list[list[int]]:
    """For each round of pointer jumping the ancestor of every body; the root is its own. Ends when all reach it."""
    ancestor = [max(p, 0) for p in parents]
    tables = []
    while any(ancestor):
        tables.append(ancestor)
        ancestor = [ancestor[a] for a in ancestor]
    return tables
