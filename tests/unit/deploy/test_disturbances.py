"""The disturbed world of the loop: what its model becomes, what it senses, when it acts."""

import mujoco
import numpy as np
import pytest
import torch

from mimickit.config import load_layered
from mimickit.deploy.disturbances import DisturbedWorld
from mimickit.deploy.export import Source, export_policy
from mimickit.deploy.loop import Loop, World
from mimickit.deploy.policy_file import read_policy
from mimickit.deploy.sim2sim import measure, world_of
from mimickit.engines.ground import heights
from mimickit.envs.disturbance_config import Disturbances, read_disturbances
from mimickit.envs.disturbances import measured
from mimickit.envs.env_builder import build_env, make_env_config
from mimickit.envs.terms import CharState
from mimickit.learning.config import parse_agent_config
from mimickit.learning.methods import build_agent
from mimickit.util.checkpoint import save_model
from mimickit.util.distributed import Distributed
from mimickit.util.rotations import matrix_to_quat
from tests.unit.env_case import ROOT
from tests.unit.fake_engine import FakeEngine, engine_config

SOME = {"friction": [0.5, 0.5], "mass": [1.2, 1.2], "com": 0.02, "stiffness": [0.9, 0.9], "damping": [0.8, 0.8],
        "motor_strength": [0.5, 0.5]}


@pytest.fixture(scope="module")
def go2(tmp_path_factory):
    """Environment and exported policy of Go2's robust variant; the policy learned nothing."""
    folder = tmp_path_factory.mktemp("go2")
    data = load_layered(ROOT / "data/envs/deepmimic_go2_env_robust.yaml")
    files = {key: str(ROOT / data[key]) for key in ("char_file", "motion_file")}
    config = make_env_config({**data, **files}, "robust")
    agent_config = parse_agent_config(load_layered(ROOT / "data/agents/deepmimic_go2_ppo_agent.yaml"), "agent")
    torch.manual_seed(3)
    env = build_env(config, engine_config(), 1, "cpu", make_engine=FakeEngine)
    agent = build_agent(env, agent_config, Distributed(0, 1, 0, torch.device("cpu")))
    save_model(folder / "model.pt", agent.model_tensors())
    export_policy(Source(config, engine_config(), agent_config, folder / "model.pt"), folder / "policy")
    return env, folder / "policy"


class Largest:
    """Draws the upper end of every range."""

    def uniform(self, low, high, size=None):
        return high if size is None else np.full(size, high)


def disturbed(folder, **settings):
    """A loop at the beginning of the clip, in a world with these settings at their upper ends."""
    policy, place = read_policy(folder)
    loop = Loop(policy, place, DisturbedWorld(Disturbances(**settings)))
    loop.world.begin(loop, Largest())
    return loop, loop.reset(0, 0.2)


def test_the_model_is_varied_and_put_back(go2):
    plain = Loop(*read_policy(go2[1])).model
    loop, _ = disturbed(go2[1], **SOME)
    model, bodies = loop.model, loop.character.bodies
    np.testing.assert_allclose(model.geom_friction[:, 0], 0.5 * plain.geom_friction[:, 0])
    np.testing.assert_allclose(model.geom_friction[:, 1:], plain.geom_friction[:, 1:])
    for name in ("body_mass", "body_inertia", "body_subtreemass"):
        np.testing.assert_allclose(getattr(model, name)[bodies], 1.2 * getattr(plain, name)[bodies])
    np.testing.assert_allclose((model.body_ipos - plain.body_ipos)[bodies[0]], 0.02)
    np.testing.assert_allclose((model.body_ipos - plain.body_ipos)[bodies[1:]], 0.0)
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], 0.45 * plain.actuator_gainprm[:, 0])
    np.testing.assert_allclose(model.actuator_biasprm[:, 1], 0.45 * plain.actuator_biasprm[:, 1])
    np.testing.assert_allclose(model.actuator_biasprm[:, 2], 0.4 * plain.actuator_biasprm[:, 2])
    np.testing.assert_allclose(model.jnt_actfrcrange, 0.5 * plain.jnt_actfrcrange)
    assert (model.dof_invweight0 < plain.dof_invweight0).all(), "constants follow from the masses"
    loop.world._settings = Disturbances(joint_offset=0.01)
    loop.world.begin(loop, np.random.default_rng(0))
    for name in ("geom_friction", "body_mass", "body_ipos", "actuator_gainprm", "dof_invweight0"):
        np.testing.assert_allclose(getattr(model, name), getattr(plain, name), rtol=1e-9, err_msg=name)


def test_sensors_err_as_in_training(go2):
    """The same errors give the state that :func:`measured` gives."""
    noise = {"noise_root_position": 0.1, "noise_root_rotation": 0.2, "noise_root_velocity": 0.3,
             "noise_root_angular_velocity": 0.4, "noise_joint_position": 0.05, "noise_joint_velocity": 0.6}
    loop, now = disturbed(go2[1], joint_offset=0.02, **noise)
    found, character = loop.world.sense(now), go2[0].character

    def tensors(state):
        x = [torch.as_tensor(value, dtype=torch.float32).unsqueeze(0) for value in state]
        return CharState(x[0], matrix_to_quat(x[1]), x[2], x[3], matrix_to_quat(x[4]), x[5], x[6], matrix_to_quat(x[7]))

    dofs = character.num_dofs
    errors = torch.tensor([[0.1] * 3 + [0.2] * 3 + [0.3] * 3 + [0.4] * 3 + [0.05] * dofs + [0.6] * dofs])
    expected = measured(tensors(now), errors, torch.full((1, dofs), 0.02), character)
    for name, value in tensors(found)._asdict().items():
        other = getattr(expected, name)
        if name.endswith("rot"):
            value, other = (q * q[..., 3:].sign() for q in (value, other))
        torch.testing.assert_close(value, other, atol=2e-5, rtol=0.0, msg=name)
    np.testing.assert_array_equal(loop.data.qpos, disturbed(go2[1])[0].data.qpos)


def test_commands_come_late_and_past_the_encoders(go2):
    """A latency of 4 of 8 physics steps: the pose of the beginning holds for 4, then the command, less the offset."""
    loop, _ = disturbed(go2[1], latency=[0.0, 4 / 240], joint_offset=0.02)
    start = loop.data.qpos[7:].copy()
    told = []
    for command in (np.full(12, 0.5), np.full(12, 0.7)):
        for substep in range(8):
            loop.world.drive(loop.data, command, substep)
            told.append(loop.data.ctrl.copy())
    np.testing.assert_allclose(told[:4], np.tile(start, (4, 1)), atol=1e-9)
    np.testing.assert_allclose(told[4:12], 0.48)
    np.testing.assert_allclose(told[12:], 0.68)


def test_pushes_come_in_time(go2):
    loop, _ = disturbed(go2[1], push_velocity=0.7, push_angular_velocity=0.3, push_interval=[0.1, 0.1])
    pushed = []
    for step in range(8):
        before = loop.data.qvel.copy()
        for substep in range(8):
            loop.world.drive(loop.data, np.zeros(12), substep)
        change = loop.data.qvel - before
        if change.any():
            pushed.append(step)
            np.testing.assert_allclose(change[:6], [0.7, 0.7, 0.0, 0.3, 0.3, 0.3])
            assert not change[6:].any()
    assert pushed == [3, 6]


def test_uneven_ground_is_that_of_training(go2):
    loop, _ = disturbed(go2[1], roughness=0.05)
    model, ground = loop.model, loop.model.geom("ground").id
    assert model.geom_type[ground] == mujoco.mjtGeom.mjGEOM_HFIELD
    np.testing.assert_allclose(model.hfield_data, (heights() + 1.0).ravel(), atol=1e-6)
    np.testing.assert_allclose(model.geom_pos[ground], [20.0, 20.0, -0.05])
    loop.data.qpos[2] = 3.0
    mujoco.mj_kinematics(model, loop.data)
    below = mujoco.mj_ray(model, loop.data, np.array([20.0, 20.0, 1.0]), np.array([0.0, 0.0, -1.0]), None, 1, -1,
                          np.zeros(1, np.int32))
    middle = heights()[200, 200]  # the grid's centre
    assert 1.0 - below == pytest.approx(0.05 * middle, abs=1e-5)


def test_an_undisturbed_world_is_the_plain_one(go2):
    assert type(world_of(Disturbances())) is World
    policy, folder = read_policy(go2[1])
    ends = []
    for world in (None, DisturbedWorld(Disturbances())):
        steps = []
        Loop(policy, folder, world).episode(np.random.default_rng(1), steps.append, 5)
        ends.append(steps[-1].state)
    np.testing.assert_allclose(ends[0].body_pos, ends[1].body_pos, atol=1e-9)


def test_episodes_differ_and_repeat(go2):
    standard = read_disturbances("standard")
    first, second = (measure(go2[1], 3, 0, 1, 10, standard) for _ in range(2))
    assert first["statistics"] == second["statistics"]
    plain = measure(go2[1], 3, 0, 1, 10, Disturbances())
    assert plain["measures"]["torque"] != pytest.approx(first["measures"]["torque"], rel=1e-3)


def test_the_exported_observation_leaves_out_what_a_robot_does_not_know(go2):
    policy, _ = read_policy(go2[1])
    names = [term.name for term in policy.observation]
    assert "root_height" not in names and "root_velocity" not in names and "root_angular_velocity" in names
    targets = [term for term in policy.observation if term.name == "target_root_position"]
    assert {(term.frame, term.relative_to, term.size) for term in targets} == {("world", "first target", 3)}
    assert policy.episode.pose_frame == "world axes from the root"
    assert sum(term.size for term in policy.observation) == go2[0].obs.shape[1]
