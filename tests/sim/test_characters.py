"""Every shipped character, a vault, and a model as users bring them, in the real engine."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from mimickit.anim.character import Character
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.config import load_layered
from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig, load_engine_config
from mimickit.engines.newton_engine import NewtonEngine
from mimickit.envs.base import DoneFlag
from mimickit.envs.env_builder import build_env, load_env_config, make_env_config
from mimickit.envs.scene import init_pose
from mimickit.util.failures import AssetMissingError

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[2]
CONFIG = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5)
NAMES = ["humanoid", "g1", "go2", "pi_plus", "smpl", "humanoid_sword_shield"]
G = 9.81


class Stage:
    """Two worlds with a character, as its deepmimic environment makes them."""

    def __init__(self, name: str) -> None:
        settings = load_env_config(ROOT / f"data/envs/deepmimic_{name}_env.yaml")
        self.contact_bodies = settings.contact_bodies
        self.character = Character.load(ROOT / settings.char_file)
        self.pos, self.rot, self.dofs = init_pose(settings, self.character.model)
        spec = WorldSpec(ROOT / settings.char_file, tuple(self.pos.tolist()), tuple(self.rot.tolist()),
                         tuple(self.dofs.tolist()))
        self.engine = NewtonEngine(spec, CONFIG, 2, "cpu")

    def place(self, dofs: torch.Tensor, height: float = 0.0) -> None:
        """Both worlds at rest with dofs [D] or [2, D], ``height`` above the init pose."""
        engine = self.engine
        engine.root_pos.copy_(self.pos + torch.tensor([0.0, 0.0, height]))
        engine.root_rot.copy_(self.rot.expand(2, 4))
        engine.root_vel.zero_()
        engine.root_ang_vel.zero_()
        engine.dof_pos.copy_(dofs.expand(2, -1))
        engine.dof_vel.zero_()
        engine.command.copy_(dofs.expand(2, -1))
        engine.reset_mask.fill_(True)
        engine.flush()
        engine.clear_overflow()


@functools.cache
def stage_for(name: str) -> Stage:
    return Stage(name)


@pytest.fixture(params=NAMES)
def stage(request):
    return stage_for(request.param)


def test_kinematics_equal_ours(stage):
    engine, character = stage.engine, stage.character
    dofs = 0.5 * torch.randn(2, character.num_dofs, generator=torch.Generator().manual_seed(0))
    stage.place(dofs, height=1.0)
    pos, rot = character.forward_kinematics(engine.root_pos, engine.root_rot, character.dof_to_rot(dofs))
    assert engine.body_names == character.body_names
    assert (pos - engine.body_pos).abs().max() < 1e-4
    assert ((rot * engine.body_rot).sum(-1).abs() - 1).abs().max() < 1e-5
    torch.testing.assert_close(engine.dof_pos, dofs, atol=1e-5, rtol=0)


def test_masses_are_the_files(stage):
    """Newton reads inertial elements, or shapes and densities, as MuJoCo does; what is only drawn weighs nothing."""
    import mujoco

    model = mujoco.MjModel.from_xml_path(str(stage.character.model.file))
    assert stage.engine.total_mass == pytest.approx(model.body_mass.sum(), rel=1e-5)
    bodies = stage.character.num_bodies
    own = stage.engine.model
    np.testing.assert_allclose(own.body_mass.numpy()[:bodies], model.body_mass[1:], rtol=1e-4)
    np.testing.assert_allclose(own.body_com.numpy()[:bodies], model.body_ipos[1:], atol=1e-5)
    for found, axes, moments in zip(own.body_inertia.numpy()[:bodies], model.body_iquat[1:], model.body_inertia[1:]):
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, axes)
        turn = turn.reshape(3, 3)
        np.testing.assert_allclose(found, turn @ np.diag(moments) @ turn.T, atol=2e-3 * moments.max())


def test_one_second_of_holding_the_init_pose(stage):
    engine = stage.engine
    stage.place(stage.dofs)
    weight = engine.total_mass * G
    forbidden = [engine.body_names.index(n) for n in engine.body_names if n not in stage.contact_bodies]
    carried = []
    for step in range(30):
        engine.step()
        if step < 8:  # later a robot with soft gains may have sunk to its shins
            assert (engine.ground_contact_force[:, forbidden].abs() < 0.1).all()
        carried.append(engine.ground_contact_force[..., 2].sum(-1))
        for name in ("root_pos", "root_rot", "root_vel", "dof_pos", "dof_vel", "body_pos", "contact_force"):
            assert torch.isfinite(getattr(engine, name)).all(), name
    assert torch.stack(carried)[15:].mean() == pytest.approx(weight, rel=0.15)
    assert (engine.root_pos[:, 2] > 0.5 * stage.pos[2]).all()
    assert engine.dof_vel.abs().max() < 20
    assert engine.overflow.tolist() == [0, 0]


def test_init_pose_does_not_push_itself_apart(stage):
    """In the air, held in its init pose: no body touches another."""
    stage.place(stage.dofs, height=1.0)
    stage.engine.step()
    assert stage.engine.contact_force.abs().max() == 0


def test_random_targets_stay_finite(stage):
    engine, model = stage.engine, stage.character.model
    generator = torch.Generator().manual_seed(1)
    stage.place(stage.dofs, height=0.3)
    low, high = (torch.tensor(x.copy(), dtype=torch.float32) for x in (model.dof_low, model.dof_high))
    for _ in range(30):
        engine.command.copy_(low + (high - low) * torch.rand(2, engine.num_dofs, generator=generator))
        engine.step()
    assert torch.isfinite(engine.body_pos).all() and torch.isfinite(engine.dof_vel).all()
    assert engine.body_pos.abs().max() < 10 and engine.overflow.tolist() == [0, 0]


def test_only_near_shapes_are_contacts():
    """Newton lists shapes up to 0.2 m apart as contacts unless told otherwise: hundreds for this character."""
    stage = stage_for("pi_plus")
    stage.place(stage.dofs)
    for _ in range(15):
        stage.engine.step()
    data = stage.engine.solver.mjw_data
    count = int(data.nacon.numpy()[0])
    assert 8 <= count <= 2 * 30
    assert data.contact.dist.numpy()[:count].max() < 1e-3


def test_a_box_to_stand_on_is_not_the_ground(tmp_path):
    settings = load_layered(ROOT / "data/envs/vault_humanoid_env.yaml")
    frame = np.array(settings["init_pose"], np.float32)
    frame[2] += 0.6 - 0.0014  # soles on the box
    save_motion(tmp_path / "still.pkl", MotionClip(LoopMode.WRAP, 30.0, np.tile(frame, (31, 1))))
    box = {"file": str(ROOT / "data/assets/objects/vault_box.xml"), "pos": [0.0, 0.0, 0.3]}
    config = make_env_config(settings | {
        "char_file": str(ROOT / settings["char_file"]), "motion_file": str(tmp_path / "still.pkl"), "objects": [box],
    }, "vault")
    env = build_env(config, load_engine_config(ROOT / "data/engines/newton_engine.yaml"), 2, "cpu")
    dofs = torch.tensor(settings["init_pose"][6:]).expand(2, -1)
    for _ in range(15):
        env.step(dofs)
        assert (env.done == DoneFlag.NULL).all()
        assert env.engine.ground_contact_force.abs().max() == 0
    assert (env.engine.root_pos[:, 2] > 1.3).all()
    assert env.engine.contact_force[..., 2].sum(-1).min() > 100  # N
    env.close()


# --- models as users bring them: meshes, default classes, includes, degrees ------------------------------------------

BLOCK = """v -0.1 -0.1 -0.1\nv 0.1 -0.1 -0.1\nv 0.1 0.1 -0.1\nv -0.1 0.1 -0.1
v -0.1 -0.1 0.1\nv 0.1 -0.1 0.1\nv 0.1 0.1 0.1\nv -0.1 0.1 0.1
f 1 3 2\nf 1 4 3\nf 5 6 7\nf 5 7 8\nf 1 2 6\nf 1 6 5\nf 2 3 7\nf 2 7 6\nf 3 4 8\nf 3 8 7\nf 4 1 5\nf 4 5 8
"""
COMMON = """<mujoco><default><default class="robot">
<joint range="-60 60" stiffness="40" damping="4" armature="0.01" actuatorfrcrange="-20 20"/>
<default class="shown"><geom type="mesh" contype="0" conaffinity="0" density="0"/></default>
<default class="solid"><geom type="mesh" density="500"/></default></default></default>
<asset><mesh name="block" file="block.obj"/><mesh name="rod" file="block.obj" scale="0.5 0.5 1"/></asset></mujoco>"""
ROBOT = """<mujoco model="robot"><compiler angle="degree" meshdir="meshes"/><include file="common.xml"/>
<worldbody><body name="base" childclass="robot"><freejoint/>
<geom class="shown" mesh="block"/><geom class="solid" mesh="block"/>
<body name="arm" pos="0 0 0.12" quat="0.9659258 0 0.258819 0"><joint name="arm" axis="0 1 0"/>
<geom class="solid" mesh="rod" pos="0 0 0.12"/>
<body name="hand" pos="0 0 0.25"><joint name="hand_x" axis="1 0 0"/><joint name="hand_y" axis="0 1 0" range="-30 90"/>
<joint name="hand_z" axis="0 0 1"/><geom class="solid" mesh="rod" pos="0 0 0.12"/></body></body></body></worldbody>
<actuator><motor joint="arm" gear="20"/></actuator></mujoco>"""


@pytest.fixture
def user_model(tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes/block.obj").write_text(BLOCK)
    (tmp_path / "common.xml").write_text(COMMON)
    (tmp_path / "robot.xml").write_text(ROBOT)
    return tmp_path / "robot.xml"


def test_model_with_meshes_classes_and_includes(user_model):
    config = CONFIG.model_copy(update={"njmax": 200, "nconmax": 100, "spherical_limits": True})
    engine = NewtonEngine(WorldSpec(user_model, init_root_pos=(0.0, 0.0, 0.1)), config, 2, "cpu")
    character = Character.load(user_model)
    assert engine.body_names == character.body_names == ("base", "arm", "hand")
    assert engine.total_mass == pytest.approx(500 * (0.2**3 + 2 * 0.1 * 0.1 * 0.2), rel=1e-4)
    np.testing.assert_allclose(engine._facts.lower, character.model.dof_low, rtol=1e-6)
    np.testing.assert_allclose(engine._facts.upper, character.model.dof_high, rtol=1e-6)
    for found, expected in ((engine._facts.stiffness, character.model.kp), (engine._facts.damping, character.model.kd),
                            (engine._facts.effort, character.model.effort)):
        np.testing.assert_allclose(found, expected)
    dofs = torch.tensor([[0.3, 0.2, -0.1, 0.4]]).expand(2, -1)
    engine.dof_pos.copy_(dofs)
    engine.reset_mask.fill_(True)
    engine.flush()
    pos, _ = character.forward_kinematics(engine.root_pos, engine.root_rot, character.dof_to_rot(dofs))
    assert (pos - engine.body_pos).abs().max() < 1e-4
    for _ in range(20):
        engine.command.zero_()
        engine.step()
    assert engine.ground_contact_force[..., 2].sum(-1).mean() == pytest.approx(engine.total_mass * G, rel=0.2)
    engine.close()


def test_missing_meshes_are_named(user_model):
    (user_model.parent / "meshes/block.obj").unlink()
    assert load_character_model(user_model).num_dofs == 4  # kinematics need no meshes
    with pytest.raises(AssetMissingError, match=r"robot\.xml uses the file .*block\.obj"):
        NewtonEngine(WorldSpec(user_model), CONFIG, 1, "cpu")
