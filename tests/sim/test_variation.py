"""Worlds that differ: physics of each is what its own friction, masses, motors, delay and ground make of it."""

import functools

import pytest
import torch
import warp as wp

from mimickit.engines.engine import WorldSpec
from mimickit.engines.ground import HALF, SPACING, heights
from mimickit.engines.newton_engine import NewtonEngine
from mimickit.util.failures import UserError
from tests.unit.fake_engine import engine_config

pytestmark = pytest.mark.sim

SLED = """<mujoco><compiler angle="radian"/><worldbody>
<body name="sled"><freejoint/><geom type="box" size="0.2 0.2 0.05" mass="4"/>
<body name="arm" pos="0 0 0.1"><joint name="a" type="hinge" axis="0 0 1" range="-3 3" stiffness="50" damping="5"
 armature="0.5" actuatorfrcrange="-20 20"/><geom type="sphere" size="0.01" mass="0.0001"/></body></body>
</worldbody></mujoco>"""
LEVER = """<mujoco><compiler angle="radian"/><worldbody>
<body name="base"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="1"/>
<body name="arm" pos="0.2 0 0"><joint name="a" type="hinge" axis="0 1 0" range="-3 3" stiffness="100" damping="5"
 armature="0.02" actuatorfrcrange="-40 40"/><geom type="sphere" pos="0.5 0 0" size="0.05" mass="2"/></body></body>
</worldbody></mujoco>"""
SUBSTEPS = 8


@functools.cache
def engine_of(text, num_envs, fixed_root=False, varied=True, roughness=0.0, control_freq=30):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        file.write_text(text)
        spec = WorldSpec(file, (0.0, 0.0, 1.0), fixed_root=fixed_root, varied=varied, roughness=roughness)
        return NewtonEngine(spec, engine_config(control_freq=control_freq), num_envs, "cpu")


def start(engine, pos=(0.0, 0.0, 1.0), vel=(0.0, 0.0, 0.0), ang_vel=(0.0, 0.0, 0.0), **buffers):
    """Nominal worlds, at rest unless said otherwise, but for the buffers given."""
    n = engine.num_envs
    for name, value in {"friction": 1.0, "stiffness": 1.0, "damping": 1.0, "strength": 1.0, "mass": 1.0, "com": 0.0,
                        "delay": 0, "ground_shift": 0.0, "previous_command": 0.0, "command": 0.0, "dof_pos": 0.0,
                        "dof_vel": 0.0, **buffers}.items():
        if hasattr(engine, name):
            buffer = getattr(engine, name)
            buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype).expand_as(buffer))
    for name, value in {"root_pos": pos, "root_vel": vel, "root_ang_vel": ang_vel}.items():
        getattr(engine, name).copy_(torch.tensor(value).expand(n, 3))
    engine.root_rot.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(n, 4))
    engine.reset_mask.fill_(True)
    engine.set_masses() if hasattr(engine, "mass") else None
    engine.flush()


def test_friction_stops_a_sled():
    """From 2 m/s it slides v^2 / (2 mu g): 0.204 m with friction 1, 1.019 m with a fifth of it, 4.08 m with 0.05."""
    engine = engine_of(SLED, 3)
    start(engine, (0.0, 0.0, 0.0499), (2.0, 0.0, 0.0), friction=[1.0, 0.2, 0.05])
    for _ in range(150):
        engine.step()
    torch.testing.assert_close(engine.root_pos[:, 0], torch.tensor([0.2039, 1.0194, 4.0775]), rtol=0.05, atol=0.01)


def test_mass_resists_a_force_but_falls_alike():
    """8 N push 4, 8 and 2 kg for 0.5 s: 1, 0.5 and 2 m/s. All fall by g t^2 / 2."""
    engine = engine_of(SLED, 3)
    start(engine, (0.0, 0.0, 9.0), mass=[[1.0, 1.0], [2.0, 1.0], [0.5, 1.0]])
    force = wp.to_torch(engine.state.body_f).view(3, 2, 6)
    force[:, 0, 0] = 8.0
    for _ in range(15):
        engine.step()
    force.zero_()
    torch.testing.assert_close(engine.root_vel[:, 0], torch.tensor([1.0, 0.5, 2.0]), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(engine.root_vel[:, 2], torch.full((3,), -4.905), rtol=1e-3, atol=0.0)


def test_inertia_grows_with_mass():
    """0.5 N m about z for 0.5 s; the sled's inertia is m (0.4^2 + 0.4^2) / 12 = 0.1067 kg m^2, the arm's motor turns
    along with it by its armature."""
    engine = engine_of(SLED, 3)
    start(engine, (0.0, 0.0, 9.0), mass=[[1.0, 1.0], [2.0, 1.0], [0.5, 1.0]], strength=[0.0, 0.0, 0.0])
    force = wp.to_torch(engine.state.body_f).view(3, 2, 6)
    force[:, 0, 5] = 0.5
    for _ in range(15):
        engine.step()
    force.zero_()
    inertia = 4.0 * 0.32 / 12.0 * torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(engine.root_ang_vel[:, 2], 0.25 / inertia, rtol=0.01, atol=0.0)


def test_a_body_turns_about_its_centre_of_mass():
    """It spins with 3 rad/s about z while its origin begins at rest: the centre of mass, c = 0.05 m to the left, goes
    along -x with 0.15 m/s, the origin to -0.15 t + 0.05 sin 3 t."""
    engine = engine_of(SLED, 3)
    start(engine, (0.0, 0.0, 9.0), ang_vel=(0.0, 0.0, 3.0), com=[[0.0, 0.0, 0.0], [0.0, 0.05, 0.0], [0.0, -0.05, 0.0]])
    for _ in range(15):
        engine.step()
    torch.testing.assert_close(engine.root_pos[:, 0], torch.tensor([0.0, -0.0251, 0.0251]), rtol=0.0, atol=1e-3)


def test_gains_and_strength_hold_a_lever():
    """2 kg at 0.5 m pull with 9.81 N m: kp 100 gives way by 0.098 rad, half of it by twice that (to first order), and
    so do half strong motors. Motors whose limit is 40 N m times 0.2 cannot hold it."""
    engine = engine_of(LEVER, 4, fixed_root=True)
    start(engine, stiffness=[[1.0], [0.5], [1.0], [1.0]], strength=[1.0, 1.0, 0.5, 0.2])
    for _ in range(150):
        engine.step()
    sag = engine.dof_pos[:, 0].double()
    for world, kp in ((0, 100.0), (1, 50.0), (2, 50.0)):
        assert float(kp * sag[world]) == pytest.approx(9.81 * float(torch.cos(sag[world])), rel=2e-3)
    assert sag[3] > 0.5  # 8 N m hold it only where it hangs down by acos(8 / 9.81) = 0.617 rad


def test_damping_slows_a_lever():
    engine = engine_of(LEVER, 4, fixed_root=True)
    start(engine, damping=[[1.0], [4.0], [1.0], [0.25]], strength=[1.0, 1.0, 1.0, 1.0])
    engine.command.fill_(-0.5)
    engine.step()
    engine.step()
    slow, usual, fast = (-engine.dof_pos[world, 0] for world in (1, 0, 3))
    assert 0.0 < slow < 0.7 * usual and usual < 0.95 * fast
    assert engine.dof_pos[0] == engine.dof_pos[2]


def test_a_late_command_acts_later():
    """With a delay of 4 of 8 substeps the arm is where one that was told at once is after 4 substeps; afterwards the
    old command is that of the step before."""
    late, prompt = engine_of(SLED, 3), engine_of(SLED, 1, control_freq=60)
    start(late, delay=[0, 4, 8])
    start(prompt)
    late.command.fill_(1.0)
    prompt.command.fill_(1.0)
    late.step()
    prompt.step()
    half = prompt.dof_pos[0, 0].clone()
    prompt.step()
    assert late.dof_pos[0, 0] == pytest.approx(float(prompt.dof_pos[0, 0]), rel=1e-5)
    assert late.dof_pos[1, 0] == pytest.approx(float(half), rel=1e-5) and half > 0.0
    assert late.dof_pos[2, 0] == 0.0
    late.step()
    assert late.dof_pos[2, 0] == pytest.approx(float(prompt.dof_pos[0, 0]), rel=1e-5)


def test_only_marked_worlds_take_over():
    engine = engine_of(LEVER, 4, fixed_root=True)
    start(engine)
    for _ in range(60):
        engine.step()
    before = engine.dof_pos.clone()
    engine.stiffness.fill_(0.5)
    engine.reset_mask[1] = True
    for _ in range(60):
        engine.step()
    torch.testing.assert_close(engine.dof_pos[[0, 2, 3]], before[[0, 2, 3]], rtol=0.0, atol=1e-5)
    assert engine.dof_pos[1] > 1.8 * before[1]


def test_nominal_worlds_are_as_if_they_could_not_differ():
    found = []
    for varied in (True, False):
        engine = engine_of(SLED, 2, varied=varied)
        start(engine, (0.0, 0.0, 0.3), (1.0, 0.0, 0.0), (0.0, 1.0, 0.5))
        engine.command.fill_(0.7)
        for _ in range(30):
            engine.step()
        found.append(torch.cat([engine.root_pos, engine.root_rot, engine.root_vel, engine.dof_pos], dim=1))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_it_goes_on_exactly():
    """Another engine that takes over the state has the same worlds."""
    engine = engine_of(SLED, 3)
    start(engine, (0.0, 0.0, 0.2), (1.0, 0.3, 0.0), (0.0, 2.0, 1.0), friction=[0.1, 0.5, 1.0], delay=[1, 2, 3],
          stiffness=[[0.5], [1.0], [2.0]], mass=[[1.0, 1.0], [2.0, 1.0], [0.5, 3.0]], com=[[0.0], [0.05], [-0.05]],
          strength=[0.5, 1.0, 2.0])
    engine.command.fill_(1.0)
    for _ in range(5):
        engine.step()
    state = engine.state_dict()

    def go_on():
        for _ in range(10):
            engine.step()
        return engine.state_dict()

    expected = go_on()
    start(engine)
    go_on()
    engine.load_state_dict(state)
    for name, value in go_on().items():
        assert torch.equal(value, expected[name]), name


def test_uneven_ground():
    """A ball comes to rest in a hole; moving the ground under it is as moving the ball."""
    engine = engine_of(SLED.replace('type="box" size="0.2 0.2 0.05"', 'type="sphere" size="0.05"'), 3, roughness=0.1)
    rest = []
    for pos, shift in (((0.0, 0.0, 0.05), [[0.0, 0.0], [3.0, 0.0], [0.0, -2.0]]), ((-3.0, 0.0, 0.05), [[0.0, 0.0]])):
        start(engine, pos, ground_shift=shift)
        for _ in range(90):
            engine.step()
        rest.append(engine.root_pos[:, 2].clone())
        assert (rest[-1] < 0.05).all() and (rest[-1] > -0.05).all()
        torch.testing.assert_close(engine.ground_contact_force.sum(dim=1)[:, 2], torch.full((3,), 4.0001 * 9.81),
                                   rtol=0.02, atol=0.0)
    torch.testing.assert_close(rest[0][1], rest[1][0], rtol=0.0, atol=1e-4)
    assert (rest[0][0] - rest[0][1:]).abs().min() > 1e-3
    assert engine.overflow.sum() == 0


def test_the_grid_of_heights():
    grid = heights()
    assert grid.min() == -1.0 and grid.max() == 0.0 and abs(grid.mean() + 0.5) < 0.01
    assert (grid == heights()).all() and SPACING * (len(grid) - 1) == pytest.approx(2.0 * HALF)


def test_other_controllers_are_refused(tmp_path):
    (tmp_path / "sled.xml").write_text(SLED)
    with pytest.raises(UserError, match="need control_mode 'pos', not 'torque'"):
        NewtonEngine(WorldSpec(tmp_path / "sled.xml", varied=True), engine_config(control_mode="torque"), 1, "cpu")
