"""Rotations as pure functions on batched tensors.

Quaternions are (x, y, z, w), Hamilton product, active: ``quat_mul(a, b)`` applies ``b`` first. Z is up, angles are in
radians, and every function works on any leading shape (written ``...``) with ordinary broadcasting. There are no
branches on values, no host data and no masks by index, so all of it can be captured in a CUDA graph.

An *exponential map* is axis times angle, 3 numbers. The *tangent-normal* form is columns X and Z of the rotation
matrix, 6 numbers: a continuous representation for networks (Zhou et al. 2019, "On the Continuity of Rotation
Representations in Neural Networks").

On a GPU each torch operation costs a launch, so formulas are written for few of them; never as matrix products, which
may be in reduced precision (TensorFloat-32).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink, threshold

_TINY_ANGLE = 1e-5  # below this (rad, or norm of xyz) a rotation counts as the identity
_TINY_NORM = 1e-9
_COS_NEAR = 1.0 - 5e-7  # cosine of 0.001 rad


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles [...] brought into (-pi, pi]."""
    return torch.atan2(torch.sin(angle), torch.cos(angle))


def normalize(x: Tensor) -> Tensor:
    """Vectors [..., n] divided by their norm; shorter ones than 1e-9 are divided by 1e-9."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_TINY_NORM)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product [..., 3] with full broadcasting (torch's own wants equally many dimensions)."""
    return torch.linalg.cross(*torch.broadcast_tensors(a, b))


def quat_normalize(q: Tensor) -> Tensor:
    """Unit quaternions [..., 4] from any non-zero ones."""
    return normalize(q)


def quat_pos(q: Tensor) -> Tensor:
    """The same rotations [..., 4] with w >= 0; q and -q are one rotation."""
    return torch.where(q[..., 3:] < 0, -q, q)


def quat_conj(q: Tensor) -> Tensor:
    """Conjugate [..., 4]: the inverse rotation of a unit quaternion."""
    return torch.cat([-q[..., :3], q[..., 3:]], dim=-1)


def quat_mul(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product a * b of [..., 4] and [..., 4]: apply b, then a."""
    u, s = a[..., :3], a[..., 3:]
    v, t = b[..., :3], b[..., 3:]
    xyz = torch.addcmul(torch.addcmul(cross(u, v), s, v), t, u)
    product = a * b
    w = product[..., 3:] - product[..., :3].sum(dim=-1, keepdim=True)
    return torch.cat([xyz, w], dim=-1)


def quat_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Vectors v [..., 3] rotated by q [..., 4]."""
    u, w = q[..., :3], q[..., 3:]
    t = cross(u, v)
    return torch.add(v, torch.addcmul(cross(u, t), w, t), alpha=2.0)


def axis_angle_to_quat(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation by angle [...] about axis [..., 3] (normalised here) as quaternion [..., 4]."""
    half = 0.5 * angle.unsqueeze(-1)
    xyz = normalize(axis) * torch.sin(half)
    return normalize(torch.cat([xyz, torch.cos(half).expand_as(xyz[..., :1])], dim=-1))


def quat_to_exp_map(q: Tensor) -> Tensor:
    """Exponential map [..., 3] of quaternions [..., 4]; its norm is at most pi."""
    xyz, w = q[..., :3], q[..., 3:]
    length = torch.linalg.vector_norm(xyz, dim=-1, keepdim=True)
    half = torch.atan2(threshold(length, _TINY_ANGLE, 0.0), w.abs())
    return torch.copysign(2.0 * half / length.clamp_min(_TINY_NORM), w) * xyz


def exp_map_to_quat(e: Tensor) -> Tensor:
    """Quaternion [..., 4] of exponential maps [..., 3] of any norm; the angle is wrapped to (-pi, pi] first."""
    length = torch.linalg.vector_norm(e, dim=-1, keepdim=True)
    half = 0.5 * hardshrink(wrap_angle(length), _TINY_ANGLE)
    xyz = e * (torch.sin(half) / length.clamp_min(_TINY_NORM))
    return torch.cat([xyz, torch.cos(half)], dim=-1)


def quat_diff(q0: Tensor, q1: Tensor) -> Tensor:
    """World-frame difference q1 * conj(q0) [..., 4]: the rotation that takes q0 to q1."""
    return quat_mul(q1, quat_conj(q0))


def quat_diff_angle(q0: Tensor, q1: Tensor) -> Tensor:
    """Angle [...] in [0, pi] between rotations [..., 4]."""
    u, v = q0[..., :3], q1[..., :3]
    xyz = torch.addcmul(torch.addcmul(cross(u, v), q0[..., 3:], v), q1[..., 3:], u, value=-1.0)  # of q1 * conj(q0)
    return _angle(xyz, (q0 * q1).sum(dim=-1))


def _angle(xyz: Tensor, w: Tensor) -> Tensor:
    length = threshold(torch.linalg.vector_norm(xyz, dim=-1), _TINY_ANGLE, 0.0)
    return 2.0 * torch.atan2(length, w.abs())


def quat_twist_angle(q: Tensor, axis: Tensor) -> Tensor:
    """Signed angle [...] in [-pi, pi] of the part of q [..., 4] that turns about the unit axis [..., 3].

    Swing-twist decomposition; where the twist is undefined (half a turn about a perpendicular axis) it is 0.
    """
    p = (q[..., :3] * axis).sum(dim=-1)
    w = q[..., 3]
    return 2.0 * torch.atan2(torch.where(w < 0, -p, p), w.abs())


def quat_to_tan_norm(q: Tensor) -> Tensor:
    """Tangent (q applied to X) and normal (q applied to Z), [..., 6], of unit quaternions [..., 4]."""
    _, y, z, w = q.unbind(dim=-1)
    minus_x, minus_y = (-q[..., :2]).unbind(dim=-1)
    turned = torch.stack([w, z, minus_y, y, minus_x, w], dim=-1)
    twice = 2.0 * q
    # X and Z turn into 2 (x u + w (w, z, -y)) - X and 2 (z u + w (y, -x, w)) - Z, where u = (x, y, z)
    along = (twice[..., 0:3:2].unsqueeze(-1) * q[..., None, :3]).flatten(-2)
    tan_norm = torch.addcmul(along, twice[..., 3:], turned)
    tan_norm[..., ::5].sub_(1.0)
    return tan_norm


def tan_norm_to_quat(x: Tensor) -> Tensor:
    """Unit quaternion [..., 4], w >= 0, of tangents and normals [..., 6] that need be neither unit vectors nor at right
    angles: the tangent's direction is kept (Gram-Schmidt)."""
    tangent = normalize(x[..., :3])
    normal = normalize(x[..., 3:] - (x[..., 3:] * tangent).sum(dim=-1, keepdim=True) * tangent)
    return matrix_to_quat(torch.stack([tangent, cross(normal, tangent), normal], dim=-1))


def matrix_to_quat(m: Tensor) -> Tensor:
    """Unit quaternion [..., 4], w >= 0, of rotation matrices [..., 3, 3] (columns are the images of X, Y, Z)."""
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(dim=-1) for row in m.unbind(dim=-2))
    candidates = torch.stack([  # each row is 4 * q_k * q, k = x, y, z, w
        1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12,
        m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20,
        m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01,
        m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22,
    ], dim=-1).unflatten(-1, (4, 4))
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(dim=-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    return quat_pos(normalize(candidates.gather(-2, index).squeeze(-2)))


def heading(q: Tensor) -> Tensor:
    """Direction [...] in (-pi, pi] of the rotated X axis seen from above. Jumps when that axis passes the vertical."""
    x, y, z, w = q.unbind(dim=-1)
    return torch.atan2(torch.addcmul(x * y, w, z), 0.5 - torch.addcmul(y * y, z, z))


def yaw_quat(angle: Tensor) -> Tensor:
    """Rotation by angle [...] about +Z, [..., 4]."""
    half = 0.5 * angle
    zero = torch.zeros_like(half)
    return torch.stack([zero, zero, torch.sin(half), torch.cos(half)], dim=-1)


def in_heading(v: Tensor, angle: Tensor) -> Tensor:
    """Vectors v [..., 3] in axes that are turned about +Z by angle [...]: what points to the heading comes to lie on X.

    Shapes but for v's last are broadcast.
    """
    zero = torch.zeros_like(angle)
    turn = torch.stack([angle, angle, zero, zero, angle], dim=-1)
    cosine, sine = torch.cos(turn[..., :3]), torch.sin(turn[..., 2:])  # (c, c, 1) and (0, 0, s)
    return torch.addcmul(cross(v, sine), v, cosine)


def heading_quat(q: Tensor) -> Tensor:
    """Rotation [..., 4] about +Z by the heading of q [..., 4]."""
    return yaw_quat(heading(q))


def slerp(q0: Tensor, q1: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation [..., 4] along the shorter arc, t [...] from 0 (q0) to 1 (q1); unit result.

    Shoemake 1985, "Animating rotation with quaternion curves". Nearly equal rotations are blended linearly, as good as:
    by the sines for quaternions that are 0.001 rad apart.
    """
    dot = (q0 * q1).sum(dim=-1, keepdim=True)
    half = torch.acos(dot.abs().clamp_max(_COS_NEAR))
    weight = torch.sin(torch.stack([1.0 - t, t], dim=-1) * half)
    return normalize(torch.addcmul(weight[..., :1] * q0, torch.copysign(weight[..., 1:], dot), q1))


def euler_to_quat(roll: Tensor, pitch: Tensor, yaw: Tensor) -> Tensor:
    """Quaternion [..., 4] of Rz(yaw) Ry(pitch) Rx(roll), the convention of URDF; angles [...]."""
    zero = torch.zeros_like(roll)
    qx = torch.stack([torch.sin(0.5 * roll), zero, zero, torch.cos(0.5 * roll)], dim=-1)
    qy = torch.stack([zero, torch.sin(0.5 * pitch), zero, torch.cos(0.5 * pitch)], dim=-1)
    return quat_mul(yaw_quat(yaw), quat_mul(qy, qx))
