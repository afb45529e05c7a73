"""The Newton engine against the engine contract: conventions, control, contacts, resets, exact continuation."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mujoco_warp import OverflowType

from mimickit.engines.engine import StaticObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig, contact_capacity
from mimickit.engines.newton_engine import NewtonEngine
from mimickit.util.failures import AssetMissingError, UserError

pytestmark = pytest.mark.sim

HUMANOID = Path(__file__).resolve().parents[2] / "data" / "assets" / "humanoid" / "humanoid.xml"
BODIES = ("pelvis", "torso", "head", "right_upper_arm", "right_lower_arm", "right_hand", "left_upper_arm",
          "left_lower_arm", "left_hand", "right_thigh", "right_shin", "right_foot", "left_thigh", "left_shin",
          "left_foot")
WEIGHT = 50.0498 * 9.81
# first dof of each joint, and the joint's child body, of the spherical joints
SPHERICAL = {"torso": 0, "head": 3, "right_upper_arm": 6, "left_upper_arm": 10, "right_thigh": 14, "right_foot": 18,
             "left_thigh": 21, "left_foot": 25}
RIGHT_KNEE = 17

TWO_LINKS = """<mujoco><compiler angle="radian"/><worldbody>
<body name="base"><freejoint/><geom type="box" size="0.2 0.1 0.1" density="500"/>
<body name="upper" pos="0.2 0 0"><joint name="a" type="hinge" axis="0 1 0" range="-1 1" stiffness="50" damping="5"
 armature="0.02" actuatorfrcrange="-20 20"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" density="500"/>
<body name="lower" pos="0.3 0 0"><joint name="b" type="hinge" axis="0 0 1" range="-1 1" stiffness="50" damping="5"
 armature="0.02" actuatorfrcrange="-20 20"/><geom type="capsule" fromto="0.05 0 0 0.3 0 0" size="0.04" density="500"/>
</body></body></body></worldbody></mujoco>"""

BOX = """<mujoco><worldbody>
<body name="box"><freejoint/><geom type="box" size="1 1 0.3"/></body></worldbody></mujoco>"""


@functools.cache
def engine_for(num_envs: int = 2, control_mode: str = "pos", control_freq: int = 30, sim_freq: int = 240,
               fixed_root: bool = False, motors: bool = True, self_collision: bool = True, key: str = "",
               **settings) -> NewtonEngine:
    config = EngineConfig(engine_name="newton", control_mode=control_mode, control_freq=control_freq,
                          sim_freq=sim_freq, env_spacing=5, **settings)
    spec = WorldSpec(HUMANOID, init_root_pos=(0.0, 0.0, 2.0 if fixed_root else 0.8816), fixed_root=fixed_root,
                     motors=motors, self_collision=self_collision)
    return NewtonEngine(spec, config, num_envs, "cpu")


def place(engine: NewtonEngine, pos=(0.0, 0.0, 0.8816), rot=(0.0, 0.0, 0.0, 1.0), vel=(0.0, 0.0, 0.0),
          ang_vel=(0.0, 0.0, 0.0), dof_pos=None, dof_vel=None) -> None:
    """The same state in all worlds, at once."""
    n, d = engine.num_envs, engine.num_dofs
    engine.root_pos.copy_(torch.tensor(pos).expand(n, 3))
    engine.root_rot.copy_(torch.tensor(rot).expand(n, 4))
    engine.root_vel.copy_(torch.tensor(vel).expand(n, 3))
    engine.root_ang_vel.copy_(torch.tensor(ang_vel).expand(n, 3))
    engine.dof_pos.copy_((torch.zeros(d) if dof_pos is None else dof_pos).expand(n, d))
    engine.dof_vel.copy_((torch.zeros(d) if dof_vel is None else dof_vel).expand(n, d))
    engine.command.zero_()
    engine.reset_mask.fill_(True)
    engine.flush()
    engine.clear_overflow()


def rotate(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    u, w = q[..., :3], q[..., 3:]
    t = 2 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    return torch.cat((aw * bv + bw * av + torch.linalg.cross(av, bv), aw * bw - (av * bv).sum(-1, keepdim=True)), -1)


def conjugate(q: torch.Tensor) -> torch.Tensor:
    return q * torch.tensor([-1.0, -1.0, -1.0, 1.0])


def from_exp_map(e: torch.Tensor) -> torch.Tensor:
    angle = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.cat((torch.sin(angle / 2) * e / angle, torch.cos(angle / 2)), -1)


def to_exp_map(q: torch.Tensor) -> torch.Tensor:
    q = torch.where(q[..., 3:] < 0, -q, q)
    length = q[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return 2 * torch.atan2(length, q[..., 3:]) * q[..., :3] / length


def masses(engine: NewtonEngine) -> tuple[torch.Tensor, torch.Tensor]:
    b = len(engine.body_names)
    return torch.tensor(engine.model.body_mass.numpy()[:b]), torch.tensor(engine.model.body_com.numpy()[:b])


# --- model --------------------------------------------------------------------------------------------------------


def test_model_facts():
    engine = engine_for()
    assert engine.body_names == BODIES
    assert engine.num_dofs == 28
    assert engine.total_mass == pytest.approx(50.0498, abs=1e-3)
    assert engine.control_dt == pytest.approx(1 / 30)
    assert engine.sim_dt == pytest.approx(1 / 240)
    model = engine.solver.mj_model
    assert model.nexclude == 14  # parent and child never collide
    assert model.nu == 28  # one actuator a dof: the file's motors are gone
    assert model.opt.impratio == 10
    ground = int(np.flatnonzero(model.geom_type == 0)[0])
    np.testing.assert_allclose(model.geom_solref[ground], [0.02, 1])
    assert model.geom_condim[ground] == 3
    assert model.geom_friction[ground, 0] == 1.0
    body_geom = (ground + 1) % model.ngeom
    np.testing.assert_allclose(model.geom_solref[body_geom], [0.015, 1])
    assert model.geom_condim[body_geom] == 1
    np.testing.assert_allclose(model.dof_damping, 0)  # nothing passive remains
    np.testing.assert_allclose(model.jnt_stiffness, 0)
    np.testing.assert_allclose(model.dof_armature[6:9], 0.02)
    assert list(model.jnt_limited) == [0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0]  # hinges only
    np.testing.assert_allclose(model.actuator_forcerange[:4, 1], [200, 200, 200, 50])


def test_forward_kinematics_of_the_specification():
    engine = engine_for()
    dof = torch.zeros(28)
    dof[0:3] = torch.tensor([0.1, 0.2, -0.3])
    dof[3:6] = torch.tensor([0.0, -0.4, 0.1])
    dof[6:9] = torch.tensor([0.5, 0.2, 1.0])
    dof[9], dof[13] = 1.1, -0.6
    dof[14:17] = torch.tensor([-0.3, -0.5, 0.2])
    dof[17] = 0.8
    dof[18:21] = torch.tensor([0.1, -0.2, 0.05])
    dof[24] = 0.3
    place(engine, pos=(1.0, 2.0, 0.9), rot=tuple(from_exp_map(torch.tensor([0.1, -0.2, 0.7])).tolist()), dof_pos=dof)
    expected = {
        "pelvis": ((1, 2, 0.9), (0.048883, -0.097765, 0.342178, 0.933256)),
        "torso": ((0.964807, 1.962654, 1.130508), (0.074981, 0.021022, 0.206754, 0.975289)),
        "head": ((0.98093, 1.931854, 1.351687), (0.115496, -0.176825, 0.235905, 0.948547)),
        "right_hand": ((1.394545, 1.968625, 1.167453), (0.307126, -0.04339, 0.912408, 0.267027)),
        "left_hand": ((0.825214, 2.585454, 1.4739), (0.06542, 0.042241, -0.090698, 0.992829)),
        "right_foot": ((1.392918, 1.928226, 0.210748), (-0.085974, -0.091435, 0.392512, 0.911143)),
        "left_foot": ((0.975703, 2.116991, 0.08223), (-0.002801, 0.042797, 0.345641, 0.937386)),
    }
    for name, (pos, rot) in expected.items():
        i = BODIES.index(name)
        torch.testing.assert_close(engine.body_pos[1, i], torch.tensor(pos, dtype=torch.float32), atol=2e-5, rtol=0)
        found = engine.body_rot[1, i] * torch.sign((engine.body_rot[1, i] * torch.tensor(rot)).sum())
        torch.testing.assert_close(found, torch.tensor(rot), atol=2e-5, rtol=0)
    torch.testing.assert_close(engine.dof_pos[0], dof, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("given", "read"), [
    ((0.0, 0.0, 4.0), (0.0, 0.0, -2.283185)),
    ((2.0, 2.0, 2.0), (-1.627599, -1.627599, -1.627599)),
    ((1e-6, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((0.3, -0.2, 0.5), (0.3, -0.2, 0.5)),
])
def test_exponential_maps_read_back_in_positive_form(given, read):
    engine = engine_for()
    dof = torch.zeros(28)
    dof[6:9] = torch.tensor(given)
    place(engine, dof_pos=dof)
    torch.testing.assert_close(engine.dof_pos[0, 6:9], torch.tensor(read), atol=1e-5, rtol=0)


# --- velocities (and the frame of ball joints) ------------------------------------------------------------------------

VELOCITY = {"pos": (0.3, -0.2, 4.0), "rot": tuple(from_exp_map(torch.tensor([0.4, -0.3, 0.9])).tolist()),
            "vel": (1.0, -0.5, 0.7), "ang_vel": (3.0, -2.0, 4.0)}


def moving(engine: NewtonEngine) -> None:
    generator = torch.Generator().manual_seed(3)
    place(engine, **VELOCITY, dof_pos=0.4 * torch.randn(28, generator=generator),
          dof_vel=2.0 * torch.randn(28, generator=generator))


def test_velocities_read_back_as_written():
    """The root's centre of mass is 0.12 m above its origin: confusing the two shows at once."""
    engine = engine_for()
    moving(engine)
    generator = torch.Generator().manual_seed(3)
    torch.randn(28, generator=generator)
    torch.testing.assert_close(engine.dof_vel[0], 2.0 * torch.randn(28, generator=generator), atol=1e-5, rtol=0)
    assert masses(engine)[1][0].norm() > 0.05
    torch.testing.assert_close(engine.root_vel[0], torch.tensor(VELOCITY["vel"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.root_ang_vel[0], torch.tensor(VELOCITY["ang_vel"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.body_vel[0, 0], torch.tensor(VELOCITY["vel"]), atol=1e-5, rtol=0)


def test_velocities_are_finite_differences_of_the_written_state():
    """Moves the state along its own velocity for a moment, without dynamics, and compares body velocities."""
    engine = engine_for()
    moving(engine)
    pos, rot, vel, ang_vel = (t.clone() for t in (engine.body_pos, engine.body_rot, engine.body_vel,
                                                  engine.body_ang_vel))
    dof, dof_vel, h = engine.dof_pos[0].clone(), engine.dof_vel[0].clone(), 1e-3
    moved = dof + h * dof_vel  # hinges
    for start in SPHERICAL.values():
        s = slice(start, start + 3)
        moved[s] = to_exp_map(multiply(from_exp_map(dof[s]), from_exp_map(h * dof_vel[s])))
    place(
        engine, pos=tuple((pos[0, 0] + h * vel[0, 0]).tolist()),
        rot=tuple(multiply(from_exp_map(h * ang_vel[0, 0]), rot[0, 0]).tolist()), dof_pos=moved,
    )
    torch.testing.assert_close((engine.body_pos - pos) / h, vel, atol=0.06, rtol=0)
    torch.testing.assert_close(to_exp_map(multiply(engine.body_rot, conjugate(rot))) / h, ang_vel, atol=0.06, rtol=0)
    assert vel.norm(dim=-1).max() > 2.0


def test_velocities_are_finite_differences_of_the_simulation():
    """One substep of free flight at 4800 Hz: position moves with the new velocity (semi-implicit Euler)."""
    engine = engine_for(control_mode="none", control_freq=4800, sim_freq=4800)
    moving(engine)
    pos, rot, dof = engine.body_pos.clone(), engine.body_rot.clone(), engine.dof_pos.clone()
    engine.step()
    h = engine.control_dt
    torch.testing.assert_close((engine.body_pos - pos) / h, engine.body_vel, atol=0.06, rtol=0)
    torch.testing.assert_close(
        to_exp_map(multiply(engine.body_rot, conjugate(rot))) / h, engine.body_ang_vel, atol=0.06, rtol=0
    )
    for start in SPHERICAL.values():
        s = slice(start, start + 3)
        delta = multiply(conjugate(from_exp_map(dof[:, s])), from_exp_map(engine.dof_pos[:, s]))
        torch.testing.assert_close(to_exp_map(delta) / h, engine.dof_vel[:, s], atol=0.05, rtol=0)
    torch.testing.assert_close((engine.dof_pos - dof)[:, RIGHT_KNEE] / h, engine.dof_vel[:, RIGHT_KNEE], atol=0.05,
                               rtol=0)
    torch.testing.assert_close(engine.root_vel, engine.body_vel[:, 0], atol=0, rtol=0)


def test_free_flight_is_ballistic():
    """A spinning character's centre of mass follows a parabola that starts with the velocity that was written."""
    engine = engine_for(control_mode="none", control_freq=240, sim_freq=240)
    mass, com = masses(engine)

    def centre() -> torch.Tensor:
        points = engine.body_pos[0] + rotate(engine.body_rot[0], com)
        return (mass[:, None] * points).sum(0) / mass.sum()

    place(engine, pos=(0.0, 0.0, 4.0), vel=(1.0, 0.5, 2.0), ang_vel=(3.0, 2.0, -4.0))
    arms = engine.body_vel[0] + torch.linalg.cross(engine.body_ang_vel[0], rotate(engine.body_rot[0], com))
    start, velocity = centre(), (mass[:, None] * arms).sum(0) / mass.sum()
    h, steps = engine.sim_dt, 72
    for _ in range(steps):
        engine.step()
    t = h * steps
    expected = start + velocity * t
    expected[2] -= 0.5 * 9.81 * t * (t + h)
    torch.testing.assert_close(centre(), expected, atol=5e-3, rtol=0)
    assert (velocity - torch.tensor([1.0, 0.5, 2.0])).norm() > 0.05  # origin and centre of mass do differ


# --- control ------------------------------------------------------------------------------------------------------


def test_position_control_reaches_targets():
    engine = engine_for(fixed_root=True)
    place(engine)
    target = torch.zeros(28)
    target[0:3] = torch.tensor([0.2, -0.1, 0.3])
    target[6:9] = torch.tensor([0.5, 0.3, -0.4])
    target[9], target[13] = 0.7, -0.9
    target[14:17] = torch.tensor([0.2, -0.6, 0.1])
    target[17] = 0.8
    engine.command.copy_(target.expand_as(engine.command))
    for _ in range(60):
        engine.step()
    assert (engine.dof_pos[0] - target).abs().max() < 0.08  # gravity sags a little
    assert (engine.dof_pos[0] - target).abs().mean() < 0.02
    assert engine.dof_vel[0].abs().max() < 0.05
    torch.testing.assert_close(engine.root_pos[0], torch.tensor([0.0, 0.0, 2.0]), atol=1e-6, rtol=0)  # welded


def test_velocity_control_follows_commands_in_the_child_frame():
    """In free flight, where gravity bends no joint, over 0.33 s of motion about axes that differ from the parent's."""
    engine = engine_for(control_mode="vel")
    dof = torch.zeros(28)
    dof[10:13] = torch.tensor([0.3, -0.8, 0.5])
    place(engine, pos=(0.0, 0.0, 4.0), dof_pos=dof)
    velocity = torch.tensor([1.0, -2.0, 1.6])
    engine.command[:, 10:13] = velocity
    engine.command[:, RIGHT_KNEE] = 1.0
    for _ in range(10):
        engine.step()
    torch.testing.assert_close(engine.dof_vel[0, 10:13], velocity, atol=0.05, rtol=0)
    assert engine.dof_vel[0, RIGHT_KNEE] == pytest.approx(1.0, abs=0.05)
    expected = multiply(from_exp_map(dof[10:13]), from_exp_map(velocity * 10 / 30))
    assert to_exp_map(multiply(conjugate(expected), from_exp_map(engine.dof_pos[0, 10:13]))).norm() < 0.05


def test_torque_control_acts_on_child_axes_and_is_limited():
    """From rest in free flight a torque about one child axis accelerates that component most, in its direction."""
    engine = engine_for(num_envs=8, control_mode="torque", control_freq=2400, sim_freq=2400, self_collision=False)
    dof = torch.zeros(28)
    dof[3:6] = torch.tensor([1.0, -0.7, 0.9])  # head, far from rest: parent and child axes differ
    place(engine, pos=(0.0, 0.0, 4.0), dof_pos=dof)
    for world in range(3):
        engine.command[world, 3 + world] = 20.0
    engine.command[3, RIGHT_KNEE] = 100.0
    engine.command[4, RIGHT_KNEE] = 150.0
    engine.command[5, RIGHT_KNEE] = 1e6
    engine.command[6, 3], engine.command[7, 3] = 50.0, 1e6
    engine.step()
    for world in range(3):
        acceleration = engine.dof_vel[world, 3:6]
        assert acceleration.abs().argmax() == world
        assert acceleration[world] > 0
    assert engine.dof_vel[3, RIGHT_KNEE] > 0.1
    assert torch.equal(engine.dof_vel[4], engine.dof_vel[5])  # clamped to the limit of 150 N m
    assert engine.dof_vel[4, RIGHT_KNEE] > engine.dof_vel[3, RIGHT_KNEE]
    assert torch.equal(engine.dof_vel[6], engine.dof_vel[7])  # the neck's, 50 N m
    assert engine.dof_vel[6, 3] > engine.dof_vel[0, 3]


def test_motors_off_ignores_commands():
    """The flag is honoured; the worlds differ in their command and in nothing else."""
    engine = engine_for(motors=False, fixed_root=True)
    place(engine)
    engine.command[1] = 1.0
    for _ in range(5):
        engine.step()
    assert torch.equal(engine.dof_pos[0], engine.dof_pos[1])
    assert engine.dof_pos[0].abs().max() > 0.01  # it hangs limp


def test_hinge_limits_hold_and_spherical_limits_are_an_option():
    """Targets beyond the range of knee (0) and neck (0.8727), without and with the soft spherical limits."""
    angles = {}
    for limits in (False, True):
        engine = engine_for(fixed_root=True, self_collision=False, spherical_limits=limits)
        place(engine)
        engine.command[:, RIGHT_KNEE] = -0.5
        engine.command[:, 3] = 1.25
        for _ in range(40):
            engine.step()
        assert engine.dof_pos[0, RIGHT_KNEE] > -0.1
        angles[limits] = float(engine.dof_pos[0, 3])
    assert angles[False] == pytest.approx(1.25, abs=0.1)
    assert angles[True] == pytest.approx((1.25 + 0.8727) / 2, abs=0.1)  # as stiff as the motor: half way between


def test_explicit_pd_needs_hinges(tmp_path):
    with pytest.raises(UserError, match=r"pd_explicit.*hinges only"):
        engine_for(control_mode="pd_explicit")
    file = tmp_path / "two_links.xml"
    file.write_text(TWO_LINKS)
    config = EngineConfig(engine_name="newton", control_mode="pd_explicit", control_freq=30, sim_freq=240,
                          env_spacing=5, njmax=64, nconmax=24)
    engine = NewtonEngine(WorldSpec(file, init_root_pos=(0, 0, 4)), config, 6, "cpu")
    engine.command[:, 0] = torch.tensor([0.2, 0.6, 0.9, -0.2, -0.6, -0.9])  # times 50 N m / rad, of at most 20 N m
    engine._control_step(1)
    up, down = engine.dof_vel[:3, 0], engine.dof_vel[3:, 0]
    assert up[1] == up[2] > up[0] > 0.0 > down[0] > down[1] == down[2]
    engine._restart()
    engine.command.copy_(torch.tensor([0.5, -0.4]).expand(6, 2))
    for _ in range(20):
        engine.step()
    torch.testing.assert_close(engine.dof_pos[0], torch.tensor([0.5, -0.4]), atol=0.05, rtol=0)


# --- contacts -----------------------------------------------------------------------------------------------------


def test_standing_weighs_what_it_weighs():
    engine = engine_for()
    place(engine)
    total = torch.zeros(3)
    for step in range(60):
        engine.step()
        if step >= 30:
            total += engine.ground_contact_force[0].sum(0) / 30
    assert total[2] == pytest.approx(WEIGHT, rel=0.05)
    feet = [BODIES.index("right_foot"), BODIES.index("left_foot")]
    others = [i for i in range(15) if i not in feet]
    assert (engine.ground_contact_force[0, others] == 0).all()
    assert (engine.ground_contact_force[0, feet, 2] > 50).all()
    torch.testing.assert_close(engine.contact_force[:, feet], engine.ground_contact_force[:, feet], atol=1e-3, rtol=0)
    assert engine.overflow.tolist() == [0, 0]


def test_friction_is_part_of_the_contact_force():
    engine = engine_for()
    place(engine, vel=(1.0, 0.0, 0.0))
    horizontal = 0.0
    for _ in range(4):
        engine.step()
        horizontal = min(horizontal, float(engine.ground_contact_force[0, :, 0].sum()))
    assert horizontal < -50


def test_reset_clears_contact_forces_and_warm_start():
    """F23."""
    engine = engine_for()
    place(engine)
    for _ in range(10):
        engine.step()
    assert engine.contact_force[:, :, 2].sum() > 100
    engine.reset_mask[1] = True
    engine.flush()
    assert (engine.contact_force[1] == 0).all()
    assert (engine.ground_contact_force[1] == 0).all()
    assert engine.contact_force[0, :, 2].sum() > 100
    assert not engine.reset_mask.any()
    warm_start = engine.state_dict()["qacc_warmstart"]
    assert (warm_start[1] == 0).all()
    assert (warm_start[0] != 0).any()


def test_objects_collide_and_are_not_the_ground(tmp_path):
    file = tmp_path / "box.xml"
    file.write_text(BOX)
    config = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5)
    spec = WorldSpec(HUMANOID, init_root_pos=(0, 0, 0.8816 + 0.6), objects=(StaticObject(file, (0.0, 0.0, 0.3)),))
    engine = NewtonEngine(spec, config, 2, "cpu")
    assert engine.body_names == BODIES
    for _ in range(20):
        engine.step()
    assert engine.contact_force[0, :, 2].sum() == pytest.approx(WEIGHT, rel=0.3)
    assert (engine.ground_contact_force == 0).all()
    assert engine.root_pos[0, 2] > 1.3


def test_dropped_contacts_are_counted():
    engine = engine_for(njmax=12, nconmax=3)
    place(engine, pos=(0.0, 0.0, 3.0))
    engine.step()
    assert engine.overflow.tolist() == [0, 0]
    place(engine, pos=(0.0, 0.0, 0.15), rot=(0.0, 0.7071068, 0.0, 0.7071068))  # lying on its face
    for _ in range(5):
        engine.step()
    assert engine.overflow[0] > 0
    assert engine.overflow[0] <= 2 * 5
    engine.clear_overflow()
    assert engine.overflow.tolist() == [0, 0]


def test_what_any_substep_dropped_counts_once_by_its_kind():
    """The solver forgets its flags with every substep; each bit of its overflow type, met in the first one only."""
    engine = engine_for()
    place(engine)
    original, flags, made = engine.solver.step, engine.solver.mjw_data.overflow, []
    kinds = {"NEFC": (0, 1), "NJMAX_NNZ": (0, 1), "BROADPHASE": (1, 0), "NARROWPHASE": (1, 0), "CCD": (1, 0),
             "HFIELD": (1, 0)}

    def step(*args, **keys):
        original(*args, **keys)
        flags.fill_(met if not made else 0)
        made.append(1)

    engine.solver.step = step
    try:
        for bit in OverflowType:
            made.clear()
            engine.clear_overflow()
            met = int(bit)
            engine._control_step(3)
            contacts, constraints = kinds.get(bit.name, (0, 0))
            assert engine.overflow.tolist() == [2 * contacts, 2 * constraints], bit  # in both worlds
            assert len(made) == 3
        met = int(OverflowType.NEFC | OverflowType.CCD)
        made.clear()
        engine._control_step(3)
        assert engine.overflow.tolist() == [2, 2]
        engine._control_step(3)
        assert engine.overflow.tolist() == [2, 2]  # told once
    finally:
        del engine.solver.step
    engine.clear_overflow()


# --- resets, continuation, determinism -----------------------------------------------------------------------------


def commands(steps: int, num_envs: int = 2, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(steps, num_envs, 28, generator=torch.Generator().manual_seed(seed))


def run(engine: NewtonEngine, actions: torch.Tensor) -> None:
    for action in actions:
        engine.command.copy_(action)
        engine.step()


def snapshot(engine: NewtonEngine) -> dict[str, torch.Tensor]:
    return engine.state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def test_same_commands_give_the_same_run():
    engine = engine_for()
    place(engine)
    run(engine, commands(20))
    first = snapshot(engine)
    place(engine)
    run(engine, commands(20))
    assert_equal(first, snapshot(engine))


def test_graph_equals_eager():
    engine = engine_for()
    place(engine)
    run(engine, commands(3))
    graph = snapshot(engine)
    place(engine)
    for action in commands(3):
        engine.command.copy_(action)
        engine._control_step(engine.config.substeps)
    assert_equal(graph, snapshot(engine))


def test_continues_exactly_in_a_new_engine():
    engine, other = engine_for(), engine_for(key="other")
    place(engine)
    place(other, pos=(0.0, 0.0, 2.0))
    run(other, commands(7, seed=9))
    run(engine, commands(20))
    saved = engine.state_dict()
    run(engine, commands(20, seed=1))
    other.load_state_dict(saved)
    assert_equal(saved, other.state_dict())
    run(other, commands(20, seed=1))
    assert_equal(engine.state_dict(), other.state_dict())


def test_state_of_another_size_is_refused():
    state = engine_for().state_dict()
    with pytest.raises(UserError, match="number of worlds"):
        engine_for(num_envs=7, control_mode="torque", control_freq=2400, sim_freq=2400,
                   self_collision=False).load_state_dict(state)
    del state["root_pos"]
    with pytest.raises(UserError, match="root_pos"):
        engine_for().load_state_dict(state)


def test_reset_touches_masked_worlds_only_and_leaves_no_memory():
    engine, other = engine_for(), engine_for(key="other")
    place(engine)
    place(other)
    fresh = engine.state_dict()
    run(engine, commands(10))
    run(other, commands(10))
    for name in ("root_pos", "root_rot", "root_vel", "root_ang_vel", "dof_pos", "dof_vel"):
        buffer = getattr(engine, name)
        buffer.copy_(torch.where(torch.tensor([[False], [True]]), fresh[name], buffer))
    engine.reset_mask[1] = True
    actions = commands(5, seed=4)
    run(engine, actions)
    run(other, actions)
    for name in ("root_pos", "dof_pos", "dof_vel", "body_vel", "contact_force"):
        assert torch.equal(getattr(engine, name)[0], getattr(other, name)[0])
        assert not torch.equal(getattr(engine, name)[1], getattr(other, name)[1])
    restarted = {name: getattr(engine, name)[1].clone() for name in ("root_pos", "dof_pos", "dof_vel")}
    place(engine)
    run(engine, actions)
    for name, value in restarted.items():  # the past, warm start included, is forgotten
        assert torch.equal(value, getattr(engine, name)[1])


def test_one_world_behaves_as_many():
    """Newton builds a single world differently (everything in one MuJoCo world)."""
    single, many = engine_for(num_envs=1), engine_for()
    for engine in (single, many):
        place(engine)
        run(engine, commands(3)[:, : engine.num_envs])
        moving(engine)
        run(engine, commands(3)[:, : engine.num_envs])
    torch.testing.assert_close(single.body_pos[0], many.body_pos[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(single.dof_vel[0], many.dof_vel[0], atol=1e-2, rtol=1e-2)


def test_a_nan_world_harms_nobody_and_recovers():
    engine = engine_for()
    place(engine)
    engine.root_pos[1] = float("nan")
    engine.reset_mask[1] = True
    run(engine, commands(2))
    assert torch.isnan(engine.root_pos[1]).any()
    assert torch.isfinite(engine.body_pos[0]).all()
    healthy = engine.dof_pos[0].clone()
    place(engine)
    run(engine, commands(2))
    assert torch.isfinite(engine.body_pos).all()
    assert torch.equal(healthy, engine.dof_pos[0])


def test_step_allocates_nothing():
    engine = engine_for()
    place(engine)
    pointers = {name: getattr(engine, name).data_ptr() for name in engine._public}
    run(engine, commands(3))
    assert pointers == {name: getattr(engine, name).data_ptr() for name in engine._public}


# --- wrong input --------------------------------------------------------------------------------------------------

CONFIG = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5)


def test_a_machine_without_a_driver_is_no_warning():
    """The first and only words on stderr are the test's own."""
    code = "import os\nfrom mimickit.engines import newton_engine\nimport warp as wp\nwp.init()\nos.write(2, b'end')"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, timeout=120)
    assert (done.stderr, done.returncode) == (b"end", 0)


def test_missing_files_are_named():
    with pytest.raises(AssetMissingError, match=r"nobody\.xml"):
        NewtonEngine(WorldSpec(HUMANOID.with_name("nobody.xml")), CONFIG, 1, "cpu")


@pytest.mark.parametrize(("text", "message"), [
    ("<!DOCTYPE x><mujoco/>", "entities"),
    ("<mujoco", "not valid XML"),
    ("<robot/>", "not an MJCF file"),
    ("<mujoco><worldbody/></mujoco>", "no body"),
    (TWO_LINKS.replace('<joint name="b"', '<joint name="c" type="slide" axis="1 0 0"/><joint name="b"'), "one hinge"),
])
def test_unusable_files_are_refused(tmp_path, text, message):
    file = tmp_path / "character.xml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        NewtonEngine(WorldSpec(file), CONFIG, 1, "cpu")


def test_wrong_sizes_and_devices_are_refused():
    with pytest.raises(UserError, match="28 dofs"):
        NewtonEngine(WorldSpec(HUMANOID, init_dof_pos=(0.0, 1.0)), CONFIG, 1, "cpu")
    with pytest.raises(UserError, match="num_envs"):
        NewtonEngine(WorldSpec(HUMANOID), CONFIG, 0, "cpu")
    with pytest.raises(UserError, match="cuda"):
        NewtonEngine(WorldSpec(HUMANOID), CONFIG, 1, f"cuda:{torch.cuda.device_count()}")


def test_measured_capacity_is_used():
    capacity, measured = contact_capacity(HUMANOID, CONFIG)
    assert measured
    assert engine_for().solver.mjw_data.njmax >= capacity.njmax


def test_meshes_need_a_package_and_say_so(tmp_path, monkeypatch):
    """Models of other packs may draw with meshes; reading those takes a package that the engine does not bring."""
    monkeypatch.setitem(sys.modules, "trimesh", None)
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "link.stl").write_text("solid link\nendsolid link\n")
    file = tmp_path / "meshed.xml"
    file.write_text(
        TWO_LINKS.replace('angle="radian"/>', 'angle="radian" meshdir="meshes"/><asset><mesh name="m" file="link.stl"/>'
                          "</asset>")
        .replace('<body name="upper"', '<geom type="mesh" mesh="m"/><body name="upper"')
    )
    with pytest.raises(UserError, match="pip install trimesh"):
        NewtonEngine(WorldSpec(file), CONFIG, 1, "cpu")
