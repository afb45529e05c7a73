"""Trajectory optimisation: bends a whole clip until it keeps its contacts, gravity, joint ranges and obstacles.

After Witkin and Kass, "Spacetime constraints" (1988): a reference motion, roughly right, is changed as little and as
smoothly as possible so that chosen points rest where they should; that nothing enters the ground or a box; that the
centre of mass falls freely and angular momentum stays while nothing is touched, and is otherwise accelerated no more
than legs, hands and friction can; and that joints stay within their ranges, speeds and accelerations. The change of
every number of the clip is a cubic B-spline in time; all wishes are weighted squares, minimised by L-BFGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import torch
from torch import Tensor

from mimickit.anim.mjcf import JointKind
from mimickit.clips.shape import GRAVITY, Motion, Shape, compiled
from mimickit.util import rotations as rot

RANGE_MARGIN = 0.015  # rad, joints stay so far inside their ranges
KNOT_FRAMES = 2  # frames between knots of the splines
CONTACT_SCALE, DEPTH_SCALE, RANGE_SCALE = 0.003, 0.003, 0.01  # m, m, rad: errors that count 1
CORNER = 0.03  # m, radius of the spheres at corners when bodies keep off each other
CLEARANCE = 0.012  # m that shapes are kept off boxes, where no contact is wanted
FALL_SCALE, PUSH_SCALE = 0.5, 2.0  # m/s^2
SPIN_SCALE = 0.3  # m^2/s^2, change of angular momentum over mass, in free fall
PUSH_UP, STAND_UP = 5.0, 24.0  # m/s^2, most upward acceleration of the centre of mass while hands push; while feet do
FRICTION = 0.7  # of hands and feet
LEAST_SPEED, PACE_SCALE = 1.0, 0.1  # m/s, of the centre of mass along x: the motion never halts
JERK_SCALE = 1000.0  # m/s^3
SPEED_LIMIT, SPEED_SCALE = 15.0, 1.0  # rad/s
EFFORT_LIMIT, EFFORT_SCALE = 200.0, 60.0  # rad/s^2, joints, in frames of faith < 1
FOLLOW_COST = 1.0  # per rad^2, (0.2 m)^2
SOFTNESS = (20.0, 5.0, 1.0)  # of the scales of contacts and depths, stage by stage


@dataclass(frozen=True)
class Box:
    """An axis-aligned box (m)."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]

    @property
    def top(self) -> float:
        return self.centre[2] + self.half[2]

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [...] of points [..., 3], negative inside (Quilez, "Distance functions")."""
        q = (points - torch.tensor(self.centre, dtype=points.dtype)).abs() - torch.tensor(self.half, dtype=points.dtype)
        return q.clamp_min(0.0).norm(dim=-1) + q.amax(-1).clamp_max(0.0)


@dataclass(frozen=True)
class Contact:
    """A point of a body rests at ``target`` [3] or follows it [n, 3] (m) in frames first .. last (n of them)."""

    body: int
    point: Tensor  # [3] m, in the body's frame
    target: Tensor
    first: int
    last: int


@dataclass(frozen=True)
class Task:
    """What is wanted of a motion of F frames."""

    reference: Motion
    contacts: Sequence[Contact]
    boxes: Sequence[Box]
    falls: Tensor  # [F] bool: nothing is touched
    pushes: Tensor  # [F] bool: only hands touch something
    faith: Tensor  # [F], how closely to follow the reference
    # bodies of each first group keep off those of the second (in frames of faith < 1)
    apart: Sequence[tuple[Sequence[int], Sequence[int]]] = ()


class Bodies:
    """Masses and outline of a character: spheres (radius 0: corners) along capsules and at corners of boxes."""

    def __init__(self, shape: Shape) -> None:
        model = compiled(shape.character.model.file)
        names = shape.character.body_names
        self._place_masses(model, names)
        body, centre, radius = [], [], []
        for geom in range(model.ngeom):
            name = model.body(model.geom_bodyid[geom]).name
            if name not in names or not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
                continue
            kind, size = model.geom_type[geom], model.geom_size[geom]
            if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
                points, r = np.linspace(-1, 1, 6)[:, None] * np.array([[0.0, 0.0, size[1]]]), size[0]
            elif kind == mujoco.mjtGeom.mjGEOM_SPHERE:
                points, r = np.zeros((1, 3)), size[0]
            else:
                points, r = size * np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3), 0.0
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, model.geom_quat[geom])
            centre.append(model.geom_pos[geom] + points @ matrix.reshape(3, 3).T)
            body += [names.index(name)] * len(points)
            radius += [r] * len(points)
        self.body, self.radius = torch.tensor(body), torch.tensor(radius, dtype=torch.float64)
        self.centre = torch.tensor(np.concatenate(centre))

    def _place_masses(self, model: mujoco.MjModel, names: Sequence[str]) -> None:
        """Six point masses a body, in pairs on its principal axes of inertia, which move as the body does.

        With mass m / 6 at +-a_i along axis i, the moments are I_i = m / 3 * (sum of a^2 - a_i^2), hence
        a_i^2 = 3 / m * (sum of I / 2 - I_i).
        """
        body, place, mass = [], [], []
        for i, name in enumerate(names):
            data = model.body(name)
            if data.mass[0] <= 0.0:
                continue
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, data.iquat)
            arm = np.sqrt(np.clip(3.0 / data.mass[0] * (data.inertia.sum() / 2 - data.inertia), 0.0, None))
            offsets = np.concatenate([np.diag(arm), -np.diag(arm)]) @ matrix.reshape(3, 3).T
            body += [i] * 6
            place.append(data.ipos + offsets)
            mass += [data.mass[0] / 6] * 6
        self.mass_body, self.mass_place = torch.tensor(body), torch.tensor(np.concatenate(place))
        total = torch.tensor(mass, dtype=torch.float64)
        self.mass = total / total.sum()

    def masses(self, pos: Tensor, turn: Tensor) -> Tensor:
        """Places of the point masses [F, M, 3] (m) of body poses [F, B, 3], [F, B, 4]."""
        return pos[:, self.mass_body] + rot.quat_rotate(turn[:, self.mass_body],
                                                        self.mass_place.expand(len(pos), -1, 3))

    def centre_of_mass(self, pos: Tensor, turn: Tensor) -> Tensor:
        """[F, 3] m of body poses [F, B, 3], [F, B, 4]."""
        return (self.masses(pos, turn) * self.mass.unsqueeze(-1)).sum(-2)

    def spin(self, pos: Tensor, turn: Tensor, fps: float) -> Tensor:
        """Angular momentum about the centre of mass, over the mass, halfway between frames [F - 1, 3] (m^2/s)."""
        places = self.masses(pos, turn)
        places = places - (places * self.mass.unsqueeze(-1)).sum(-2, keepdim=True)
        moved = torch.diff(places, dim=0) * fps
        return (rot.cross(0.5 * (places[1:] + places[:-1]), moved) * self.mass.unsqueeze(-1)).sum(-2)

    def outline(self, pos: Tensor, turn: Tensor) -> Tensor:
        """Centres of the spheres [F, P, 3] (m)."""
        return pos[:, self.body] + rot.quat_rotate(turn[:, self.body], self.centre.expand(len(pos), -1, 3))

    def depth(self, pos: Tensor, turn: Tensor, boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """How deep the spheres are in the ground [F, P] and in the nearest box [F, P] (m; negative: apart)."""
        points = self.outline(pos, turn)
        near = torch.stack([box.distance(points) for box in boxes]).amin(0)
        return self.radius - points[..., 2], self.radius - near


    def overlap(self, points: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """How deep spheres ``first`` [n] are in spheres ``second`` [m]: [F, n, m] (m; negative: apart).

        ``points`` [F, P, 3] is the :meth:`outline`.
        """
        between = points[:, first].unsqueeze(2) - points[:, second].unsqueeze(1)
        distance = (between.square().sum(-1) + 1e-9).sqrt()
        thick = self.radius.clamp_min(CORNER)
        return thick[first].unsqueeze(1) + thick[second] - distance


def spline_basis(frames: int, every: int) -> Tensor:
    """Uniform cubic B-splines [F, K] with a knot every ``every`` frames."""
    at = torch.arange(frames, dtype=torch.float64) / every
    knots = torch.arange(-1, (frames - 1) // every + 3, dtype=torch.float64)
    d = (at.unsqueeze(1) - knots).abs()
    return torch.where(d < 1, (4 - 6 * d ** 2 + 3 * d ** 3) / 6, (2 - d).clamp_min(0.0) ** 3 / 6)


def optimise(task: Task, shape: Shape, iterations: int) -> Motion:
    """The motion closest to what the task asks for (see the module); same frames and rate.

    Contacts and obstacles begin soft and become stiff (:data:`SOFTNESS`), ``iterations`` at each stage.
    """
    problem = _Problem(task, shape)
    knots = torch.zeros(problem.basis.shape[1], 6 + shape.character.num_dofs, dtype=torch.float64, requires_grad=True)
    for softness in SOFTNESS:
        solver = torch.optim.LBFGS([knots], max_iter=iterations, history_size=50, line_search_fn="strong_wolfe",
                                   tolerance_grad=1e-6, tolerance_change=1e-9)

        def closure(solver=solver, softness=softness) -> Tensor:
            solver.zero_grad()
            loss = sum(problem.costs(knots, softness).values())
            loss.backward()
            return loss

        solver.step(closure)
    with torch.no_grad():
        return problem.motion(problem.basis @ knots)


def _turn(vector: Tensor) -> Tensor:
    """Rotations [..., 4] about ``vector`` [..., 3] by 2 atan(|vector| / 2): smooth everywhere, also at no turn."""
    return rot.quat_normalize(torch.cat([0.5 * vector, torch.ones_like(vector[..., :1])], dim=-1))


class _Problem:
    def __init__(self, task: Task, shape: Shape) -> None:
        self.task, self.shape, self.bodies = task, shape, Bodies(shape)
        self.fps = task.reference.fps
        self.basis = spline_basis(len(task.reference.root_pos), KNOT_FRAMES)
        model = shape.character.model
        self.low = torch.tensor(model.dof_low).double() + RANGE_MARGIN
        self.high = torch.tensor(model.dof_high).double() - RANGE_MARGIN
        self.axes = torch.zeros(model.num_dofs, model.num_joints, 3, dtype=torch.float64)  # rotation vectors of dofs
        for joint in range(model.num_joints):
            dofs, kind = model.dof_slices[joint + 1], model.joint_kinds[joint + 1]
            if kind is JointKind.SPHERICAL:
                self.axes[dofs, joint] = torch.eye(3, dtype=torch.float64)
            elif kind is JointKind.HINGE:
                self.axes[dofs, joint] = torch.tensor(model.joint_axis[joint + 1], dtype=torch.float64)
        self.allowed = self._allowed_points()
        bodies = self.bodies.body
        self.apart = [tuple(torch.isin(bodies, torch.tensor(group)).nonzero().squeeze(1) for group in pair)
                      for pair in task.apart]

    def _allowed_points(self) -> Tensor:
        """[F, P] bool: spheres of bodies in contact, which may touch boxes (but not enter them)."""
        allowed = torch.zeros(len(self.task.reference.root_pos), len(self.bodies.body), dtype=torch.bool)
        for contact in self.task.contacts:
            allowed[contact.first:contact.last + 1] |= self.bodies.body == contact.body
        return allowed

    def motion(self, change: Tensor) -> Motion:
        reference = self.task.reference
        return replace(reference, root_pos=reference.root_pos + 0.2 * change[:, :3],
                       root_rot=rot.quat_mul(reference.root_rot, _turn(change[:, 3:6])),
                       joint_rot=rot.quat_mul(reference.joint_rot,
                                              _turn(torch.einsum("fd,djk->fjk", change[:, 6:], self.axes))))

    def costs(self, knots: Tensor, softness: float = 1.0) -> dict[str, Tensor]:
        """Every wish's cost, by name."""
        task, fps = self.task, self.fps
        change = self.basis @ knots
        motion = self.motion(change)
        pos, turn = self.shape.kinematics(motion)
        faith = task.faith.unsqueeze(-1)
        costs = {"follow": (faith * change.square()).sum() * FOLLOW_COST}
        costs["smooth"] = (torch.diff(pos, n=3, dim=0) * fps ** 3 / JERK_SCALE).square().mean(1).sum()
        costs["smooth change"] = (torch.diff(change, n=3, dim=0) * fps ** 3 / 3000.0).square().sum()

        contact = []
        for c in task.contacts:
            at = slice(c.first, c.last + 1)
            point = pos[at, c.body] + rot.quat_rotate(turn[at, c.body], c.point.expand(c.last + 1 - c.first, 3))
            contact.append(((point - c.target) / (softness * CONTACT_SCALE)).square().sum())
        costs["contact"] = torch.stack(contact).sum()

        com = self.bodies.centre_of_mass(pos, turn)
        pull = (com[2:] - 2 * com[1:-1] + com[:-2]) * fps * fps
        falls = task.falls[1:-1].double()
        weight = torch.tensor([0.0, 0.0, -GRAVITY], dtype=torch.float64)
        costs["fall"] = (((pull - weight) / FALL_SCALE).square().sum(-1) * falls).sum()
        twist = torch.diff(self.bodies.spin(pos, turn, fps), dim=0) * fps
        costs["spin"] = ((twist / SPIN_SCALE).square().sum(-1) * falls).sum()
        most = torch.where(task.pushes[1:-1], PUSH_UP, STAND_UP)
        over = (pull[:, 2] - most).clamp_min(0.0) + (-GRAVITY - pull[:, 2]).clamp_min(0.0)
        slip = (pull[:, :2].square().sum(-1) + 1e-6).sqrt() - FRICTION * (pull[:, 2] + GRAVITY).clamp_min(0.0)
        costs["push"] = ((over.square() + slip.clamp_min(0.0).square()) / PUSH_SCALE ** 2 * (1.0 - falls)).sum()
        costs["pace"] = ((LEAST_SPEED - torch.diff(com[:, 0]) * fps) / PACE_SCALE).clamp_min(0.0).square().sum()

        ground, box = self.bodies.depth(pos, turn, task.boxes)
        costs["ground"] = (ground / (softness * DEPTH_SCALE)).clamp_min(0.0).square().sum()
        box = torch.where(self.allowed, box, box + CLEARANCE)
        costs["box"] = (box / (softness * DEPTH_SCALE)).clamp_min(0.0).square().sum()

        near = self.bodies.outline(pos, turn)[task.faith < 1.0]
        costs["apart"] = sum(((self.bodies.overlap(near, first, second) / (softness * DEPTH_SCALE)).clamp_min(0.0)
                              .square().sum() for first, second in self.apart), torch.zeros(()))

        dofs = self.shape.character.rot_to_dof(motion.joint_rot)
        beyond = (self.low - dofs).clamp_min(0.0) + (dofs - self.high).clamp_min(0.0)
        costs["range"] = (beyond / RANGE_SCALE).square().sum()
        speed = self.shape.character.dof_velocity(motion.joint_rot[:-1], motion.joint_rot[1:], 1.0 / fps)
        costs["speed"] = ((speed.abs() - SPEED_LIMIT).clamp_min(0.0) / SPEED_SCALE).square().sum()
        effort = (torch.diff(speed, dim=0) * fps).abs()[task.faith[1:-1] < 1.0]
        costs["effort"] = ((effort - EFFORT_LIMIT).clamp_min(0.0) / EFFORT_SCALE).square().sum()
        return costs
