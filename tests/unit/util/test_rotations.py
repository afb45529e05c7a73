"""Rotations against hand-computed numbers and against each other."""

import math

import pytest
import torch

from mimickit.util import rotations as rot

TOL = 1e-5
M = (0.1, 0.2, 0.3, 0.927362)


def t(*values):
    return torch.tensor(values, dtype=torch.float32)


def close(actual, expected, tol=TOL):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tol, rtol=0)


def about(axis, angle):
    return rot.axis_angle_to_quat(t(*axis), t(angle)[0])


def same_rotation(a, b, tol=TOL):
    close((a * b).sum(dim=-1).abs(), torch.ones(a.shape[:-1]), tol)


def random_quats(n, seed=0):
    return rot.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("q, expected", [
    ((0, 0, 0, 1), (1, 0, 0, 0, 0, 1)),
    ((0, 0, 0.707107, 0.707107), (0, 1, 0, 0, 0, 1)),
    ((0.707107, 0, 0, 0.707107), (1, 0, 0, 0, -1, 0)),
    ((0, 0.258819, 0, 0.965926), (0.866025, 0, -0.5, 0.5, 0, 0.866025)),
    (M, (0.74, 0.596417, -0.310945, 0.430945, -0.065472, 0.9)),
    (tuple(-c for c in M), (0.74, 0.596417, -0.310945, 0.430945, -0.065472, 0.9)),
])
def test_tan_norm(q, expected):
    close(rot.quat_to_tan_norm(t(*q)), expected)


@pytest.mark.parametrize("q, angle, rest", [
    ((-0.059391, 0.163176, 0.336824, 0.925417), 0.698132, (0, 0.173648, 0, 0.984808)),
    ((0.178606, -0.383022, -0.821394, 0.383022), -2.268928, (0.422618, 0, 0, 0.906308)),
    (M, 0.67837, (0.160846, 0.155333, -0.025643, 0.974342)),
])
def test_heading_removal(q, angle, rest):
    q = t(*q)
    close(rot.heading(q), angle)
    close(rot.quat_pos(rot.quat_mul(rot.quat_conj(rot.heading_quat(q)), q)), rest)
    same_rotation(rot.quat_mul(rot.heading_quat(q), t(*rest)), q)


def test_heading_more():
    close(rot.quat_rotate(rot.quat_conj(rot.heading_quat(t(*M))), t(1, 2, 3)), (2.033646, 0.929668, 3))
    close(rot.heading(t(0, 0.766044, 0, 0.642788)), 3.141593)  # pitched past the vertical
    close(rot.quat_to_tan_norm(t(0, 0.173648, 0, 0.984808)), (0.939693, 0, -0.34202, 0.34202, 0, 0.939693))


def test_in_heading_is_the_inverse_of_a_turn():
    q, v = random_quats(20), torch.randn(20, 5, 3)
    angle = rot.heading(q)
    turned = rot.in_heading(v, angle.unsqueeze(-1))
    close(turned, rot.quat_rotate(rot.quat_conj(rot.heading_quat(q)).unsqueeze(-2), v))
    close(rot.in_heading(t(0, 2, 3), t(math.pi / 2)[0]), (2, 0, 3))


@pytest.mark.parametrize("exp_map, quat, back", [
    ((0.3, -0.2, 0.5), (0.147636, -0.098424, 0.24606, 0.952875), (0.3, -0.2, 0.5)),
    ((0, 0, 4), (0, 0, -0.909297, 0.416147), (0, 0, -2.283185)),
    ((2, 2, 2), (-0.56986, -0.56986, -0.56986, 0.160557), (-1.627599, -1.627599, -1.627599)),
    ((1e-6, 0, 0), (0, 0, 0, 1), (0, 0, 0)),
    ((0, 0, 0), (0, 0, 0, 1), (0, 0, 0)),
])
def test_exp_map(exp_map, quat, back):
    q = rot.exp_map_to_quat(t(*exp_map))
    close(q, quat)
    close(rot.quat_to_exp_map(q), back)


def test_product_difference_and_angle():
    pitch = about((0, 1, 0), math.pi / 6)
    close(rot.quat_mul(t(*M), pitch), (0.018947, 0.433204, 0.31566, 0.843999))
    close(rot.quat_diff_angle(t(*M), pitch), 0.650777)
    close(rot.quat_diff_angle(t(*M), -pitch), 0.650777)
    same_rotation(rot.quat_mul(rot.quat_diff(t(*M), pitch), t(*M)), pitch)


@pytest.mark.parametrize("angle, expected", [(2.5, 2.5), (-1.2, -1.2), (3.5, -2.783185), (0.0, 0.0)])
def test_twist(angle, expected):
    y = t(0, 1, 0)
    close(rot.quat_twist_angle(about((0, 1, 0), angle), y), expected)
    close(rot.quat_twist_angle(-about((0, 1, 0), angle), y), expected)
    close(rot.quat_twist_angle(about((0, 1, 0), angle), -y), -expected)


def test_twist_of_a_mixed_rotation():
    q = rot.quat_mul(about((0, 0, 1), 0.7), about((0, 1, 0), 0.4))
    close(rot.quat_twist_angle(q, t(0, 0, 1)), 0.7)
    close(rot.quat_twist_angle(about((1, 0, 0), math.pi), t(0, 0, 1)), 0.0, 1e-3)  # undefined: must be finite


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_worked(sign):
    q = rot.slerp(about((0, 0, 1), 0.2), sign * about((0, 0, 1), 1.0), t(0.25)[0])
    close(q, (0, 0, 0.198669, 0.980067))


@pytest.mark.parametrize("gap", [0.0, 1e-4, 1e-3, 1.9e-3, 2.1e-3, 1e-2, 3.0])
def test_slerp_of_near_and_far_rotations(gap):
    """The parameter counts and the result has unit length, however close the two rotations are."""
    a, b = about((1, 0, 0), 0.1), about((1, 0, 0), 0.1 + gap)
    for s in (0.0, 0.3, 1.0):
        q = rot.slerp(a, b, t(s)[0])
        close(q.norm(), 1.0, 1e-6)
        same_rotation(q, about((1, 0, 0), 0.1 + s * gap))
        close(rot.quat_to_exp_map(q)[0], 0.1 + s * gap, 3e-6)


@pytest.mark.parametrize("angle, expected", [
    (0.0, 0.0), (3.5, 3.5 - 2 * math.pi), (-3.5, 2 * math.pi - 3.5), (7.0, 7 - 2 * math.pi), (3.1, 3.1)])
def test_wrap_angle(angle, expected):
    close(rot.wrap_angle(t(angle)[0]), expected)


def test_rotate_matches_matrix_and_conjugate_undoes_it():
    q, v = random_quats(50), torch.randn(50, 3)
    tan_norm = rot.quat_to_tan_norm(q)
    x, z = tan_norm[:, :3], tan_norm[:, 3:]
    matrix = torch.stack([x, rot.cross(z, x), z], dim=-1)
    close(rot.quat_rotate(q, v), (matrix @ v.unsqueeze(-1)).squeeze(-1))
    close(rot.quat_rotate(rot.quat_conj(q), rot.quat_rotate(q, v)), v)


def test_euler_is_yaw_pitch_roll():
    roll, pitch, yaw = t(0.3)[0], t(-0.5)[0], t(1.1)[0]
    product = rot.quat_mul(about((0, 0, 1), 1.1), rot.quat_mul(about((0, 1, 0), -0.5), about((1, 0, 0), 0.3)))
    same_rotation(rot.euler_to_quat(roll, pitch, yaw), product)
    close(rot.heading(rot.euler_to_quat(roll, pitch, yaw)), 1.1)


def test_positive_form_keeps_zero_w():
    q = torch.stack([t(0, 0, 1, 0), t(0, 0, -1, 0), t(0.6, 0, 0, -0.8)])
    close(rot.quat_pos(q), torch.stack([t(0, 0, 1, 0), t(0, 0, -1, 0), t(-0.6, 0, 0, 0.8)]))


def test_leading_shapes_broadcast():
    q, v = random_quats(6).view(2, 3, 4), torch.randn(3, 3)
    assert rot.quat_rotate(q, v).shape == (2, 3, 3)
    assert rot.quat_mul(q, q[0]).shape == (2, 3, 4)
    assert rot.slerp(q, q.flip(0), torch.rand(2, 3)).shape == (2, 3, 4)
    assert rot.quat_to_tan_norm(q).shape == (2, 3, 6)
    assert rot.quat_twist_angle(q, v).shape == (2, 3)
