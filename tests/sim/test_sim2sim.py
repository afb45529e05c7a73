"""Plain MuJoCo simulates the world that Newton's solver simulates: the same model, nearly the same step."""

import itertools

import mujoco
import numpy as np
import pytest
import torch

from mimickit.anim.mjcf import load_character_model
from mimickit.deploy.export import qpos_of
from mimickit.deploy.mujoco_model import compiled, mujoco_spec
from mimickit.engines.engine import StaticObject, WorldSpec
from mimickit.engines.newton_engine import NewtonEngine
from mimickit.util.assets import SHIPPED
from tests.unit.fake_engine import engine_config

pytestmark = pytest.mark.sim

BOX = StaticObject(SHIPPED / "data/assets/objects/vault_box.xml", (2.2, 0.5, 0.2), (0.0, 0.0, 0.3826834, 0.9238795))
WORLDS = {"humanoid": ("humanoid/humanoid.xml", (BOX,)), "g1": ("g1/g1.xml", ())}
ALIKE = (  # arrays of the model that decide how it moves, float32 in Newton
    "body_mass", "body_pos", "body_quat", "body_ipos", "body_inertia", "jnt_type", "jnt_axis", "jnt_limited",
    "jnt_range", "jnt_solref", "jnt_actfrclimited", "jnt_actfrcrange", "jnt_stiffness", "dof_damping", "dof_armature",
    "dof_frictionloss", "dof_solref", "dof_solimp", "actuator_gear", "actuator_gainprm", "actuator_biasprm",
    "actuator_forcelimited", "actuator_forcerange", "actuator_ctrllimited", "actuator_gaintype", "actuator_biastype",
)
OF_GEOMS = ("geom_type", "geom_size", "geom_pos", "geom_friction", "geom_condim", "geom_solref", "geom_solimp",
            "geom_margin", "geom_gap", "geom_solmix", "geom_priority")
SIZES = {int(kind): count for kind, count in (
    (mujoco.mjtGeom.mjGEOM_PLANE, 0), (mujoco.mjtGeom.mjGEOM_SPHERE, 1), (mujoco.mjtGeom.mjGEOM_CAPSULE, 2),
    (mujoco.mjtGeom.mjGEOM_CYLINDER, 2))}  # how many of the three numbers shape a geom
OPTIONS = ("integrator", "cone", "solver", "impratio", "iterations", "ls_iterations", "tolerance", "ls_tolerance",
           "disableflags", "enableflags", "gravity", "noslip_iterations", "density", "viscosity")


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    """Newton's engine, plain MuJoCo's model and the character of a world."""
    file, objects = WORLDS[request.param]
    model = load_character_model(SHIPPED / "data/assets" / file)
    engine = NewtonEngine(WorldSpec(model.file, objects=objects), engine_config(), 1, "cpu")
    spec = mujoco_spec(model, engine_config(), objects)
    compiled(spec, model.file)
    yield engine, mujoco.MjModel.from_xml_string(spec.to_xml()), model  # as the exported file gives it
    engine.close()


def allowed_contacts(model, bodies):
    """Pairs of geoms that may collide, one at least of the ``bodies`` after the world's, by their places in
    :func:`colliding`; Newton says it by masks and exclusions."""
    excluded = {(int(x) >> 16, int(x) & 0xFFFF) for x in model.exclude_signature}
    found = set()
    for (m, i), (n, j) in itertools.combinations(enumerate(colliding(model)), 2):
        a, b = (model.body_weldid[model.geom_bodyid[g]] for g in (i, j))
        parents = [model.body_weldid[model.body_parentid[x]] for x in (a, b)]
        related = a == b or (a and b and (parents[0] == b or parents[1] == a))
        pair = tuple(sorted((int(model.geom_bodyid[i]), int(model.geom_bodyid[j]))))
        meet = model.geom_contype[i] & model.geom_conaffinity[j] or model.geom_contype[j] & model.geom_conaffinity[i]
        if meet and not related and pair not in excluded and pair[1] >= 1 and min(x for x in pair if x) <= bodies:
            found.add((m, n))
    return found


def colliding(model):
    """Indices of geoms that may touch anything, sorted by body and place."""
    geoms = np.flatnonzero((model.geom_contype != 0) | (model.geom_conaffinity != 0))
    return sorted(geoms, key=lambda g: (model.geom_bodyid[g], *np.round(model.geom_pos[g], 3)))


def test_the_models_are_equal(world):
    engine, plain, model = world
    newton = engine.solver.mj_model
    for name in ALIKE:
        np.testing.assert_allclose(getattr(plain, name), getattr(newton, name), rtol=2e-6, atol=2e-6, err_msg=name)
    for name in OPTIONS:
        np.testing.assert_allclose(getattr(plain.opt, name), getattr(newton.opt, name), rtol=1e-6, err_msg=name)
    limited = plain.jnt_limited.astype(bool)
    np.testing.assert_allclose(plain.jnt_solimp[limited], newton.jnt_solimp[limited], atol=1e-6)
    for name in OF_GEOMS:
        found, expected = (getattr(model, name)[colliding(model)] for model in (plain, newton))
        if name == "geom_size":
            used = [SIZES.get(int(kind), 3) for kind in plain.geom_type[colliding(plain)]]
            found, expected = (sizes * (np.arange(3) < np.array(used)[:, None]) for sizes in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6, err_msg=name)
    assert plain.opt.timestep == pytest.approx(engine.sim_dt)
    found, expected = (allowed_contacts(of, model.num_bodies) for of in (plain, newton))
    assert found == expected and len(found) > 100


def random_state(plain, model, generator, height):
    """Root position, rotation (x, y, z, w), dofs within their limits, velocities [6 + D]; the lowest point of the
    character is at ``height`` (m)."""
    rot = generator.standard_normal(4) * [0.1, 0.1, 1.0, 1.0]
    root_pos, root_rot = np.array([0.0, 0.0, 3.0]), rot / np.linalg.norm(rot)
    dofs = model.dof_low + generator.uniform(0.35, 0.65, model.num_dofs) * (model.dof_high - model.dof_low)
    data = mujoco.MjData(plain)
    data.qpos[:] = qpos_of(model, root_pos[None], root_rot[None], dofs[None], plain)[0]
    mujoco.mj_kinematics(plain, data)
    bodies = [plain.body(name).id for name in model.body_names]
    own = [g for g in colliding(plain) if plain.geom_bodyid[g] in bodies]
    lowest = min(mujoco.mj_geomDistance(plain, data, g, plain.geom("ground").id, 10.0, None) for g in own)
    root_pos[2] += height - lowest
    return root_pos, root_rot, dofs, 0.5 * generator.standard_normal(6 + model.num_dofs)


@pytest.mark.parametrize("height", [1.0, -0.005], ids=["in the air", "on the ground"])
def test_one_control_step_is_alike(world, height):
    """From the same state to the same targets: positions of bodies agree to 5e-5 m, velocities of dofs to 5e-3 rad/s.
    Newton computes in float32, MuJoCo in float64."""
    engine, plain, model = world
    generator = np.random.default_rng(5)
    contacts = 0
    for _ in range(5):
        root_pos, root_rot, dofs, velocity = random_state(plain, model, generator, height)
        command = dofs + generator.uniform(-0.3, 0.3, model.num_dofs)
        for name, value in {"root_pos": root_pos, "root_rot": root_rot, "root_vel": velocity[:3],
                            "root_ang_vel": velocity[3:6], "dof_pos": dofs, "dof_vel": velocity[6:],
                            "command": command}.items():
            getattr(engine, name)[0] = torch.as_tensor(value, dtype=torch.float32)
        engine.reset_mask.fill_(True)
        engine.step()

        data = mujoco.MjData(plain)
        data.qpos[:] = qpos_of(model, root_pos[None], root_rot[None], dofs[None], plain)[0]
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, data.qpos[3:7])
        data.qvel[:3], data.qvel[3:6], data.qvel[6:] = velocity[:3], turn.reshape(3, 3).T @ velocity[3:6], velocity[6:]
        data.ctrl[:] = command
        for _ in range(engine.config.substeps):
            mujoco.mj_step(plain, data)
            contacts += data.ncon
        mujoco.mj_kinematics(plain, data)
        bodies = [plain.body(name).id for name in model.body_names]
        np.testing.assert_allclose(engine.body_pos[0].numpy(), data.xpos[bodies], atol=5e-5)
        np.testing.assert_allclose(engine.dof_vel[0].numpy(), data.qvel[6:], atol=5e-3)
    assert contacts > 0 or height > 0.0
