"""What an exported policy observes, and the clip that it follows, in NumPy: the part of the loop that robots share.

Written to be copied: it needs NumPy and MuJoCo alone. ``policy`` is the content of ``policy.json``
(:mod:`mimickit.deploy.policy_file`), names as attributes. Quaternions are MuJoCo's here, (w, x, y, z).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np


class State(NamedTuple):
    """Pose and velocity of the character, or of its reference. ``J`` joints, ``D`` dofs, ``B`` bodies."""

    root_pos: np.ndarray  # [3] m
    root_mat: np.ndarray  # [3, 3]
    root_vel: np.ndarray  # [3] m/s, of the root's origin, world axes
    root_ang_vel: np.ndarray  # [3] rad/s, world axes
    joint_mat: np.ndarray  # [J, 3, 3] relative to the parent at rest
    dof_vel: np.ndarray  # [D] rad/s
    body_pos: np.ndarray  # [B, 3] m, origins
    body_mat: np.ndarray  # [B, 3, 3]


class Character:
    """Reads the state of the character out of MuJoCo's data.

    Args:
        model: MuJoCo's model of ``policy.xml``; the root's free joint comes first.
    """

    def __init__(self, model: mujoco.MjModel, policy: Any) -> None:
        self.bodies = np.array([model.body(body.name).id for body in policy.bodies])
        self.key_bodies = np.array([model.body(name).id for name in policy.key_bodies], int)
        first = model.body_jntadr[self.bodies]
        hinges = [i for i, body in enumerate(policy.bodies) if body.joint == "hinge"]
        balls = [i for i, body in enumerate(policy.bodies) if body.joint == "ball"]
        self._hinges, self._balls = np.array(hinges, int) - 1, np.array(balls, int) - 1  # among the joints
        self._angles, self._axes = model.jnt_qposadr[first[hinges]], model.jnt_axis[first[hinges]]
        self._quats = model.jnt_qposadr[first[balls]][:, None] + np.arange(4)
        self._dofs = 6 + len(policy.dofs)
        self.all_quats = np.concatenate([np.arange(3, 7)[None], self._quats])  # in qpos, the root's first
        self.size = 7 + len(hinges) + 4 * len(balls)

    def state(self, data: mujoco.MjData) -> State:
        """The state now; ``mj_kinematics`` must have been called for the present ``qpos``."""
        qpos, qvel = data.qpos, data.qvel
        joints = np.tile(np.eye(3), (len(self.bodies) - 1, 1, 1))
        half = 0.5 * qpos[self._angles][:, None]
        joints[self._hinges] = matrices(np.hstack([np.cos(half), np.sin(half) * self._axes]))
        joints[self._balls] = matrices(qpos[self._quats])
        root = matrices(qpos[3:7])
        return State(qpos[:3].copy(), root, qvel[:3].copy(), root @ qvel[3:6], joints, qvel[6:self._dofs].copy(),
                     data.xpos[self.bodies], data.xmat[self.bodies].reshape(-1, 3, 3))

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, velocity: np.ndarray) -> State:
        """Put the character into a pose with velocities [6 + D], the root's in world axes."""
        data.qpos[:self.size] = qpos
        data.qvel[:3], data.qvel[6:self._dofs] = velocity[:3], velocity[6:]
        data.qvel[3:6] = matrices(qpos[3:7]).T @ velocity[3:6]  # MuJoCo keeps it in the root's own axes
        mujoco.mj_kinematics(model, data)
        return self.state(data)


class Reference:
    """The clips of ``reference.npz``; how they are looked up is told in ``policy.json``'s schema.

    Args:
        arrays: ``qpos`` and ``velocity`` of all frames.
        quats: [n, 4] where quaternions stand in ``qpos``, the root's first.
    """

    def __init__(self, policy: Any, arrays: Any, quats: np.ndarray) -> None:
        self.clips, self._quats = policy.reference.clips, quats
        self._qpos, self._velocity = arrays["qpos"], arrays["velocity"]
        self._frequencies = 2.0 * np.pi * 2.0 ** np.arange(policy.reference.phase_frequencies)

    def at(self, number: int, time: float) -> tuple[np.ndarray, np.ndarray]:
        """``qpos`` and velocity of a clip at a time (s)."""
        clip = self.clips[number]
        phase, period = self._phase(clip, time)
        place = phase * (clip.frames - 1)
        row, blend = clip.first + int(place), place % 1.0
        after = min(row + 1, clip.first + clip.frames - 1)
        qpos = (1.0 - blend) * self._qpos[row] + blend * self._qpos[after]
        qpos[self._quats] = slerp(self._qpos[row][self._quats], self._qpos[after][self._quats], blend)
        velocity = self._velocity[row] * float(clip.loops or 0.0 <= time <= clip.length)
        cos, sin = np.cos(period * clip.yaw), np.sin(period * clip.yaw)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        pivot = np.array([*clip.pivot, 0.0])
        qpos[:3] = pivot + turn @ (qpos[:3] - pivot) + period * np.array(clip.drift)
        half, mine = 0.5 * period * clip.yaw, qpos[3:7].copy()
        mujoco.mju_mulQuat(qpos[3:7], np.array([np.cos(half), 0.0, 0.0, np.sin(half)]), mine)
        return qpos, np.concatenate([turn @ velocity[:3], turn @ velocity[3:6], velocity[6:]])

    def phase(self, number: int, time: float) -> np.ndarray:
        """The phase and its encoding."""
        phase, _ = self._phase(self.clips[number], time)
        return np.concatenate([[phase], np.sin(self._frequencies * phase), np.cos(self._frequencies * phase)])

    def over(self, number: int, time: float) -> bool:
        """Whether a clip that does not loop has ended."""
        clip = self.clips[number]
        return not clip.loops and time >= clip.length

    @staticmethod
    def _phase(clip: Any, time: float) -> tuple[float, float]:
        cycles = time / clip.length if clip.length > 0.0 else 0.0
        period = np.floor(cycles) if clip.loops else 0.0
        return float(np.clip(cycles - period, 0.0, 1.0)), float(period)


def observe(
    policy: Any, now: State, targets: list[State], phase: np.ndarray, goal: dict[str, np.ndarray]
) -> np.ndarray:
    """The observation, float32.

    Args:
        targets: the reference ahead, in the order of the targets' ``steps_ahead``.
        phase: of the clip, with its encoding.
        goal: directions and places of a task in world axes: ``offset``, ``direction``, ``face`` [2], ``speed`` [1].
    """
    names = [body.name for body in policy.bodies]
    keys = [names.index(name) for name in policy.key_bodies]
    ahead = sorted({term.steps_ahead for term in policy.observation if term.steps_ahead is not None})
    terms = []
    for term in policy.observation:
        of = now if term.steps_ahead is None else targets[ahead.index(term.steps_ahead)]
        axes = {"heading": heading(now.root_mat), "first target's heading": heading(targets[0].root_mat) if targets
                else None}.get(term.frame, np.eye(3))
        anchor = now.root_pos if term.relative_to == "root" else targets[0].root_pos if targets else None
        match term.name:
            case "root_height":
                value = of.root_pos[2:]
            case "root_rotation" | "target_root_rotation":
                value = tangent_normal(axes.T @ of.root_mat)
            case "root_velocity":
                value = of.root_vel @ axes
            case "root_angular_velocity":
                value = of.root_ang_vel @ axes
            case "joint_rotations" | "target_joint_rotations":
                value = tangent_normal(of.joint_mat)
            case "joint_velocities":
                value = of.dof_vel
            case "key_body_positions" | "target_key_body_positions":
                value = (of.body_pos[keys] - of.root_pos) @ axes
            case "target_root_position":  # across relative to the anchor, the height absolute
                value = np.append(((of.root_pos - anchor) @ axes)[:2], of.root_pos[2])[:term.size]
            case "phase":
                value = phase
            case "goal_speed":
                value = goal["speed"]
            case _:
                value = goal[term.name.removeprefix("goal_")] @ axes[:2, :2]
        terms.append(value.ravel())
    return np.concatenate(terms).astype(np.float32)


def heading(mat: np.ndarray) -> np.ndarray:
    """Matrix [3, 3] of the turn about Z that takes X to where the X axis of ``mat`` points, seen from above. A vector v
    of the world is v @ heading in those axes."""
    angle = np.arctan2(mat[1, 0], mat[0, 0])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def tangent_normal(mat: np.ndarray) -> np.ndarray:
    """First and third column of matrices [..., 3, 3], as [..., 6]."""
    return np.concatenate([mat[..., 0], mat[..., 2]], axis=-1)


def matrices(quat: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]."""
    w, x, y, z = np.moveaxis(quat, -1, 0)
    return np.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ], axis=-1).reshape(*quat.shape[:-1], 3, 3)


def slerp(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Unit quaternions [n, 4] between a and b along the shorter arc."""
    dot = np.sum(a * b, axis=-1, keepdims=True)
    half = np.arccos(np.clip(np.abs(dot), 0.0, 1.0 - 5e-7))
    mixed = np.sin((1.0 - blend) * half) * a + np.copysign(np.sin(blend * half), dot) * b
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
