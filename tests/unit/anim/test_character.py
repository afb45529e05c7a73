"""Kinematics of the humanoid against hand-computed poses, and round trips."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mimickit.anim.character import Character
from mimickit.anim.mjcf import JointKind
from mimickit.util import rotations as rot

HUMANOID = Path(__file__).parents[3] / "data/assets/humanoid/humanoid.xml"
TOL = 1e-5


@pytest.fixture(scope="module")
def humanoid():
    return Character.load(HUMANOID)


def pose(character, **values):
    """Dof vector from joint name -> value(s)."""
    dof = torch.zeros(character.num_dofs)
    for name, value in values.items():
        dof[character.model.dof_slices[character.model.joint_names.index(name)]] = torch.tensor(value)
    return dof


def fk(character, root_pos, root_exp, dof):
    root_rot = rot.exp_map_to_quat(torch.tensor(root_exp))
    pos, quat = character.forward_kinematics(torch.tensor(root_pos), root_rot, character.dof_to_rot(dof))
    return dict(zip(character.body_names, pos)), dict(zip(character.body_names, quat))


def test_kinematics_in_init_pose(humanoid):
    dof = pose(humanoid, right_shoulder=(1.5708, 0, 0), left_shoulder=(-1.5708, 0, 0))
    pos, _ = fk(humanoid, (0.0, 0.0, 0.882416), (0.0, 0.0, 0.0), dof)
    for body, expected in {
        "torso": (0, 0, 1.118567), "head": (0, 0, 1.342461), "right_hand": (-0.02405, -0.183108, 0.828332),
        "left_hand": (-0.02405, 0.183108, 0.828332), "right_foot": (0, -0.084887, 0.051),
    }.items():
        np.testing.assert_allclose(pos[body], expected, atol=TOL)


def test_kinematics_in_a_general_pose(humanoid):
    dof = pose(humanoid, abdomen=(0.1, 0.2, -0.3), neck=(0, -0.4, 0.1), right_shoulder=(0.5, 0.2, 1.0),
               right_elbow=1.1, left_elbow=-0.6, right_hip=(-0.3, -0.5, 0.2), right_knee=0.8,
               right_ankle=(0.1, -0.2, 0.05), left_knee=0.3)
    pos, quat = fk(humanoid, (1.0, 2.0, 0.9), (0.1, -0.2, 0.7), dof)
    for body, p, q in [
        ("pelvis", (1, 2, 0.9), (0.048883, -0.097765, 0.342178, 0.933256)),
        ("torso", (0.964807, 1.962654, 1.130508), (0.074981, 0.021022, 0.206754, 0.975289)),
        ("head", (0.98093, 1.931854, 1.351687), (0.115496, -0.176825, 0.235905, 0.948547)),
        ("right_hand", (1.394545, 1.968625, 1.167453), (0.307126, -0.04339, 0.912408, 0.267027)),
        ("left_hand", (0.825214, 2.585454, 1.4739), (0.06542, 0.042241, -0.090698, 0.992829)),
        ("right_foot", (1.392918, 1.928226, 0.210748), (-0.085974, -0.091435, 0.392512, 0.911143)),
        ("left_foot", (0.975703, 2.116991, 0.08223), (-0.002801, 0.042797, 0.345641, 0.937386)),
    ]:
        np.testing.assert_allclose(pos[body], p, atol=TOL)
        np.testing.assert_allclose(quat[body], q, atol=TOL)


def test_kinematics_equals_a_plain_loop_over_bodies(humanoid):
    """Batched pointer jumping against the definition, body by body."""
    generator = torch.Generator().manual_seed(3)
    joint_rot = rot.normalize(torch.randn(5, 2, humanoid.num_joints, 4, generator=generator))
    root_pos = torch.randn(5, 2, 3, generator=generator)
    root_rot = rot.normalize(torch.randn(5, 2, 4, generator=generator))
    pos, quat = humanoid.forward_kinematics(root_pos, root_rot, joint_rot)
    model = humanoid.model
    want_pos, want_rot = [root_pos], [root_rot]
    for body in range(1, model.num_bodies):
        parent = model.parents[body]
        offset = torch.tensor(model.local_pos[body], dtype=torch.float32)
        rest = torch.tensor(model.local_rot[body], dtype=torch.float32)
        want_pos.append(want_pos[parent] + rot.quat_rotate(want_rot[parent], offset))
        want_rot.append(rot.quat_mul(rot.quat_mul(want_rot[parent], rest), joint_rot[..., body - 1, :]))
    torch.testing.assert_close(pos, torch.stack(want_pos, dim=-2), atol=2e-6, rtol=0)
    torch.testing.assert_close(quat, torch.stack(want_rot, dim=-2), atol=2e-6, rtol=0)


def test_rest_rotations_count(tmp_path):
    file = tmp_path / "arm.xml"
    file.write_text("""<mujoco><compiler angle="radian"/><worldbody><body name="a" pos="7 7 7"><freejoint/>
      <geom size="1"/><body name="b" pos="1 0 0" quat="1 0 0 1"><joint name="h" axis="0 0 1" range="-1 1"/>
        <geom size="1"/><body name="c" pos="1 0 0"/></body></body></worldbody></mujoco>""")
    arm = Character.load(file)
    assert list(arm.model.joint_kinds) == [JointKind.ROOT, JointKind.HINGE, JointKind.FIXED]
    joint_rot = arm.dof_to_rot(torch.tensor([0.5]))
    pos, quat = arm.forward_kinematics(torch.zeros(3), torch.tensor([0.0, 0, 0, 1]), joint_rot)
    np.testing.assert_allclose(pos[0], (0, 0, 0))  # the root's own offset does not count
    np.testing.assert_allclose(pos[2], (1 + np.cos(np.pi / 2 + 0.5), np.sin(np.pi / 2 + 0.5), 0), atol=1e-6)
    np.testing.assert_allclose(rot.heading(quat[2]), np.pi / 2 + 0.5, atol=1e-6)


def test_rest_rotations_come_before_the_joints(tmp_path):
    """At rest the arm lies a quarter turn about X; its joint then turns about what Z became, which is -Y."""
    file = tmp_path / "arm.xml"
    file.write_text("""<mujoco><compiler angle="radian"/><worldbody><body name="a"><freejoint/><geom size="1"/>
      <body name="b" pos="1 0 0" quat="1 1 0 0"><joint name="h" axis="0 0 1" range="-1 1"/><geom size="1"/>
        <body name="c" pos="1 0 0" quat="1 0 1 0"><joint name="i" axis="1 0 0" range="-1 1"/><geom size="1"/>
          <body name="d" pos="0 1 0"/></body></body></body></worldbody></mujoco>""")
    arm = Character.load(file)
    joint_rot = arm.dof_to_rot(torch.tensor([0.5, 0.7]))
    pos, _ = arm.forward_kinematics(torch.zeros(3), torch.tensor([0.0, 0, 0, 1]), joint_rot)
    c, s = np.cos(0.5), np.sin(0.5)
    np.testing.assert_allclose(pos[2], (1 + c, 0, s), atol=1e-6)
    y, z = np.cos(0.7), np.sin(0.7)  # d, turned about c's X; c at rest: X to -Z, Z to X; b: Y to Z, Z to -Y
    np.testing.assert_allclose(pos[3] - pos[2], (c * z - s * y, 0, s * z + c * y), atol=1e-6)


def test_single_body(tmp_path):
    file = tmp_path / "box.xml"
    file.write_text('<mujoco><worldbody><body name="box"><freejoint/><geom size="1"/></body></worldbody></mujoco>')
    box = Character.load(file)
    joint_rot = box.dof_to_rot(torch.zeros(4, 0))
    assert joint_rot.shape == (4, 0, 4) and box.rot_to_dof(joint_rot).shape == (4, 0)
    pos, quat = box.forward_kinematics(torch.ones(4, 3), torch.tensor([0.0, 0, 0, 1]).expand(4, 4), joint_rot)
    assert pos.shape == (4, 1, 3) and quat.shape == (4, 1, 4)
    assert (pos == 1).all()


def test_dofs_round_trip(humanoid):
    generator = torch.Generator().manual_seed(0)
    dof = torch.rand(7, 3, 28, generator=generator) * 3 - 1.5  # inside the ball of radius pi
    joint_rot = humanoid.dof_to_rot(dof)
    assert joint_rot.shape == (7, 3, 14, 4)
    torch.testing.assert_close(humanoid.rot_to_dof(joint_rot), dof, atol=2e-6, rtol=0)
    hands = joint_rot[..., [4, 7], :]
    assert (hands == torch.tensor([0.0, 0, 0, 1])).all()  # fixed joints are the identity


def test_spherical_dofs_are_exponential_maps_not_euler_angles(humanoid):
    joint_rot = humanoid.dof_to_rot(pose(humanoid, abdomen=(0.3, -0.2, 0.5)))
    np.testing.assert_allclose(joint_rot[0], (0.147636, -0.098424, 0.24606, 0.952875), atol=TOL)


def test_dof_velocity(humanoid):
    """A joint that turns steadily in its own frame reads back that angular velocity; hinges the part about the axis."""
    generator = torch.Generator().manual_seed(1)
    dt = 0.02
    before = humanoid.dof_to_rot(torch.rand(28, generator=generator) - 0.5)
    velocity = 4.0 * (torch.rand(28, generator=generator) - 0.5)
    after = rot.quat_mul(before, humanoid.dof_to_rot(velocity * dt))
    torch.testing.assert_close(humanoid.dof_velocity(before, after, dt), velocity, atol=2e-4, rtol=0)
    torch.testing.assert_close(humanoid.dof_velocity(before, -after, dt), velocity, atol=2e-4, rtol=0)
