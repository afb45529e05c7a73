"""The shipped characters and objects against their published numbers, written down here a second time and compactly."""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from mimickit.anim.character import Character
from mimickit.anim.mjcf import JointKind, load_character_model
from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.config import load_layered
from mimickit.engines.engine_config import contact_capacity, load_engine_config
from mimickit.envs.env_builder import build_env, check_files, make_env_config
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.rotations import exp_map_to_quat
from tests.unit.fake_engine import FakeEngine, engine_config

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "data/assets"


@dataclass(frozen=True)
class Facts:
    """One character. Moments are of the whole body at rest about its centre of mass, xx xy xz yy yz zz."""

    file: str
    bodies: int
    dofs: int
    mass: float  # kg
    com: tuple[float, ...]  # m, at rest, root at the origin
    moments: tuple[float, ...]  # kg m^2
    lowest: float  # m, lowest point of a foot in init_pose
    height: float  # m, from there to the top
    obs: int  # numbers a deepmimic policy sees
    names: int  # checksum of the dofs' names
    dof_sums: tuple[float, ...]  # of low, high (rad), kp, kd, torque limit, armature (SI)
    frictionloss: float


CHARACTERS = {
    "g1": Facts("g1/g1.xml", 31, 29, 35.21214, (0.019546, 7.2e-05, -0.069611),
                (3.928527, -4.2e-05, -0.008682, 3.655319, -0.000695, 0.47518), 0.008, 1.336, 849, 932138915,
                (-762.481198, 810.27104, 10241.5724, 651.998746, 16755.0, 2.59422058), 0.1),
    "go2": Facts("go2/go2.xml", 17, 12, 15.38482, (0.008772, 0.0, -0.039404),
                 (0.285812, 0.000122, -0.002591, 0.578684, -3.1e-05, 0.522028), -0.017, 0.344, 484, 1521363478,
                 (-125.6634, 108.5606, 1170.0, 156.0, 2202.6, 0.78), 0.2),
    "pi_plus": Facts("hightorque_pi_plus/pi_22dof.xml", 24, 22, 11.23068, (0.007903, -0.000125, -0.062661),
                     (0.450525, 5e-06, 0.012616, 0.365955, 0.000207, 0.105294), -0.010, 0.663, 662, 2086567932,
                     (-626.91, 480.45, 10790.0, 951.6, 3610.0, 5.022483), 0.1),
    "smpl": Facts("smpl/smpl.xml", 24, 69, 54.99234, (-0.018902, 0.001122, 0.019813),
                  (11.701143, -0.003626, 0.029716, 10.071848, -0.041455, 1.825499), -0.024, 1.595, 721, 2880748525,
                  (-2662.765, 2837.5602, 919800.0, 91980.0, 290850.0, 48.3), 0.0),
}
SWORD_SHIELD = "sword_shield/humanoid_sword_shield.xml"
DEEPMIMIC = [*CHARACTERS, "humanoid_sword_shield"]

@pytest.mark.parametrize("name", CHARACTERS)
def test_dofs_gains_and_limits(name):
    """Sums over the dofs, each weighted by its number: a slip in any of them, or in their order, shows."""
    facts, model = CHARACTERS[name], load_character_model(ASSETS / CHARACTERS[name].file)
    assert (model.num_bodies, model.num_dofs) == (facts.bodies, facts.dofs)
    assert zlib.crc32(" ".join(model.dof_names).encode()) == facts.names
    found = np.stack([model.dof_low, model.dof_high, model.kp, model.kd, model.effort, model.armature])
    np.testing.assert_allclose(found @ np.arange(1, facts.dofs + 1), facts.dof_sums, rtol=1e-7)
    assert (model.frictionloss == facts.frictionloss).all()


@pytest.mark.parametrize("name", CHARACTERS)
def test_masses_and_offsets(name):
    """Total, centre and moments of the body at rest: a slip in any offset, mass, centre or inertia shows."""
    facts, model = CHARACTERS[name], mujoco.MjModel.from_xml_path(str(ASSETS / CHARACTERS[name].file))
    data = mujoco.MjData(model)
    data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)
    mujoco.mj_forward(model, data)
    mass, centre, axes = model.body_mass[1:], data.xipos[1:], data.ximat[1:].reshape(-1, 3, 3)
    assert mass.sum() == pytest.approx(facts.mass, abs=1e-4)
    com = mass @ centre / mass.sum()
    np.testing.assert_allclose(com, facts.com, atol=2e-6)
    r = centre - com
    moments = np.einsum("bij,bj,bkj->ik", axes, model.body_inertia[1:], axes)
    moments += np.einsum("b,bij->ij", mass, (r**2).sum(1)[:, None, None] * np.eye(3) - r[:, :, None] * r[:, None, :])
    np.testing.assert_allclose(moments[np.triu_indices(3)], facts.moments, atol=3e-6)


def lowest_and_top(model: mujoco.MjModel, body_pos: np.ndarray, body_rot: np.ndarray, bodies: list[str],
                   names: tuple[str, ...]) -> tuple[float, float]:
    """Lowest point of the colliding shapes of ``bodies``, highest of all; poses of the bodies ``names``, xyzw."""
    low, high = [], []
    for geom in range(model.ngeom):
        name = model.body(model.geom_bodyid[geom]).name
        if not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
            continue
        turn, local = np.zeros(9), np.zeros(9)
        mujoco.mju_quat2Mat(turn, np.roll(body_rot[names.index(name)], 1).astype(float))
        mujoco.mju_quat2Mat(local, model.geom_quat[geom])
        turn = turn.reshape(3, 3)
        vertical = np.abs((turn @ local.reshape(3, 3))[2])
        size, kind = model.geom_size[geom], mujoco.mjtGeom(model.geom_type[geom])
        extent = {mujoco.mjtGeom.mjGEOM_SPHERE: size[0],
                  mujoco.mjtGeom.mjGEOM_CAPSULE: size[0] + size[1] * vertical[2],
                  mujoco.mjtGeom.mjGEOM_CYLINDER: size[0] * math.sqrt(max(1 - vertical[2] ** 2, 0))
                  + size[1] * vertical[2],
                  mujoco.mjtGeom.mjGEOM_BOX: float(size @ vertical)}[kind]
        z = float(body_pos[names.index(name)][2] + (turn @ model.geom_pos[geom])[2])
        high.append(z + extent)
        if name in bodies:
            low.append(z - extent)
    return min(low), max(high)


@pytest.mark.parametrize("name", DEEPMIMIC)
def test_feet_reach_the_ground_in_init_pose(name):
    settings = load_layered(ROOT / f"data/envs/deepmimic_{name}_env.yaml")
    character = Character.load(ROOT / settings["char_file"])
    pose = torch.tensor(settings["init_pose"])
    pos, turn = character.forward_kinematics(pose[:3], exp_map_to_quat(pose[3:6]), character.dof_to_rot(pose[6:]))
    low, high = lowest_and_top(mujoco.MjModel.from_xml_path(str(ROOT / settings["char_file"])), pos.numpy(),
                               turn.numpy(), settings["contact_bodies"], character.body_names)
    if name in CHARACTERS:
        assert low == pytest.approx(CHARACTERS[name].lowest, abs=6e-4)
        assert high - low == pytest.approx(CHARACTERS[name].height, abs=1.1e-3)
    else:
        assert low == pytest.approx(0.012, abs=1e-3)  # the humanoid's own feet in a crouch


def test_sword_and_shield_are_the_humanoid_plus_wrist_and_weapons():
    armed, plain = load_character_model(ASSETS / SWORD_SHIELD), load_character_model(ASSETS / "humanoid/humanoid.xml")
    assert armed.num_dofs == 31 and armed.num_bodies == 17
    assert [n for n in armed.body_names if n not in ("sword", "shield")] == list(plain.body_names)
    wrist = armed.joint_kinds[armed.body_index("right_hand")]
    assert wrist is JointKind.SPHERICAL and plain.joint_kinds[plain.body_index("right_hand")] is JointKind.FIXED
    shared = [armed.dof_names.index(n) for n in plain.dof_names]
    assert shared == sorted(shared)
    for field in ("dof_low", "dof_high", "kp", "kd", "effort", "armature"):
        np.testing.assert_array_equal(getattr(armed, field)[shared], getattr(plain, field))
    # a spherical joint takes one rotor inertia for all three axes
    wrist_dofs = armed.dof_slices[armed.body_index("right_hand")]
    assert len(set(armed.armature[wrist_dofs])) == 1
    for body in plain.body_names:
        np.testing.assert_array_equal(armed.local_pos[armed.body_index(body)], plain.local_pos[plain.body_index(body)])
    for body, parent in (("sword", "right_hand"), ("shield", "left_lower_arm")):
        assert armed.joint_kinds[armed.body_index(body)] is JointKind.FIXED
        assert armed.body_names[armed.parents[armed.body_index(body)]] == parent
    model = mujoco.MjModel.from_xml_path(str(ASSETS / SWORD_SHIELD))
    sword, shield = model.body("sword"), model.body("shield")
    assert 0.8 < sword.mass[0] < 1.3 and 1.5 < shield.mass[0] < 3.0  # kg, one hand each
    blade = model.geom("sword_2")
    assert blade.pos[0] + blade.size[0] == pytest.approx(0)  # the body's origin is the tip


@pytest.mark.parametrize("name", ["humanoid", *DEEPMIMIC])
def test_no_shapes_overlap_at_rest(name):
    file = str(ROOT / load_layered(ROOT / f"data/envs/deepmimic_{name}_env.yaml")["char_file"])
    model = mujoco.MjModel.from_xml_path(file)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert [(model.geom(c.geom1).name, model.geom(c.geom2).name) for c in data.contact] == []


@pytest.mark.parametrize("name", ["humanoid", *DEEPMIMIC])
def test_contact_capacity_was_measured(name):
    file = Path(load_layered(ROOT / f"data/envs/deepmimic_{name}_env.yaml")["char_file"])
    assert contact_capacity(file, load_engine_config(ROOT / "data/engines/newton_engine.yaml"))[1]


OBJECTS = {  # half sizes of boxes, radii of spheres, m
    "vault_box": [("box", (0.2, 1.0, 0.3), (0, 0, 0))], "climbing_box": [("box", (0.4, 0.6, 1.0), (0, 0, 0))],
    "steering_marker": [("box", (0.25, 0.025, 0.025), (0, 0, 0))],
    "location_marker": [("sphere", (0.1,), (0, 0, 0)), ("box", (0.025, 0.025, 1.0), (0, 0, 1))],
    "dodgeball": [("sphere", (0.1,), (0, 0, 0))],
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(name):
    model = mujoco.MjModel.from_xml_path(str(ASSETS / f"objects/{name}.xml"))
    assert model.nbody == 2 and model.body(1).name == name and model.nv == 6
    kinds = {mujoco.mjtGeom.mjGEOM_BOX: "box", mujoco.mjtGeom.mjGEOM_SPHERE: "sphere"}
    found = [(kinds[mujoco.mjtGeom(model.geom_type[g])], tuple(x for x in model.geom_size[g].tolist() if x),
              tuple(model.geom_pos[g])) for g in range(model.ngeom)]
    assert found == OBJECTS[name]
    drawn_only = name.endswith("marker")
    assert all((model.geom_contype == 0) == drawn_only) and all((model.geom_conaffinity == 0) == drawn_only)


# --- environments -------------------------------------------------------------------------------------------------

def still_clip(path: Path, settings: dict) -> Path:
    """One second in the environment's init pose."""
    frames = np.tile(np.array(settings["init_pose"], np.float32), (31, 1))
    save_motion(path, MotionClip(LoopMode.WRAP, 30.0, frames))
    return path


def make(name: str, tmp_path: Path, **changes):
    settings = load_layered(ROOT / f"data/envs/{name}_env.yaml")
    settings["char_file"] = str(ROOT / settings["char_file"])
    settings["motion_file"] = str(still_clip(tmp_path / "still.pkl", settings))
    for item in settings.get("objects", []):
        item["file"] = str(ROOT / item["file"])
    return build_env(make_env_config(settings | changes, name), engine_config(), 2, "cpu", make_engine=FakeEngine)


@pytest.mark.parametrize("name", DEEPMIMIC)
def test_deepmimic_sizes(tmp_path, name):
    env = make(f"deepmimic_{name}", tmp_path)
    expected, dofs = (CHARACTERS[name].obs, CHARACTERS[name].dofs) if name in CHARACTERS else (527, 31)
    assert env.obs.shape == (2, expected) and env.action_low.shape == (dofs,)
    assert (env.action_high > env.action_low).all()


@pytest.mark.parametrize(("name", "obs", "places"), [
    ("vault_humanoid", 464, [(2.2, 0.5, 0.2)]), ("vault_g1", 849, [(-6.53, 0.06, 0.14), (-7.62, 0.06, 0.14)]),
])
def test_vaults_have_their_boxes(tmp_path, name, obs, places):
    env = make(name, tmp_path)
    assert env.obs.shape == (2, obs)
    assert [item.pos for item in env.engine.spec.objects] == places
    for item in env.engine.spec.objects:
        assert item.file == ASSETS / "objects/vault_box.xml" and item.rot == (0, 0, 0, 1)
        assert item.color == (0.3, 0.3, 0.3)


def test_turned_objects(tmp_path):
    item = {"file": str(ASSETS / "objects/climbing_box.xml"), "pos": [1, 2, 1], "rot": [0, 0, 0.6, 0.8]}
    env = make("vault_humanoid", tmp_path, objects=[item])
    assert env.engine.spec.objects[0].rot == (0, 0, 0.6, 0.8)


def test_mistakes_in_objects_are_told(tmp_path):
    with pytest.raises(UserError, match=r"objects.*rott"):
        make("vault_humanoid", tmp_path, objects=[{"file": "a.xml", "pos": [0, 0, 0], "rott": [0, 0, 0, 1]}])
    with pytest.raises(AssetMissingError, match=r"object .*no_box\.xml"):
        make("vault_humanoid", tmp_path, objects=[{"file": "no_box.xml", "pos": [0, 0, 0]}] * 2)
    settings = load_layered(ROOT / "data/envs/vault_humanoid_env.yaml")
    del settings["objects"]
    with pytest.raises(UserError, match="missing key 'objects'"):
        check_files(make_env_config(settings, "vault.yaml"))
