"""Disturbances on the fake engine: what is drawn, when, and who notices."""

import json

import pytest
import torch

from mimickit.commands import read_args
from mimickit.config import load_layered
from mimickit.envs.base import EnvMode
from mimickit.envs.disturbance_config import Disturbances, read_disturbances
from mimickit.envs.disturbances import measured, uniform
from mimickit.envs.env_builder import build_env, make_env_config
from mimickit.request_reader import read_request
from mimickit.util.failures import UserError
from mimickit.util.rotations import quat_diff_angle, yaw_quat
from tests.unit.env_case import ROOT, write_clip
from tests.unit.env_case import make_env as humanoid
from tests.unit.fake_engine import FakeEngine, engine_config

ALL = {"friction": [0.3, 1.2], "mass": [0.9, 1.1], "com": 0.03, "stiffness": [0.8, 1.2], "damping": [0.7, 1.3],
       "motor_strength": [0.6, 1.1], "joint_offset": 0.02, "latency": [0.01, 0.03], "roughness": 0.02}


def go2(num_envs=64, physics=None, **disturbances):
    """Go2's tracking environment on the fake engine."""
    data = load_layered(ROOT / "data/envs/deepmimic_go2_env.yaml")
    files = {key: str(ROOT / data[key]) for key in ("char_file", "motion_file")}
    config = make_env_config({**data, **files, "disturbances": disturbances}, "go2.yaml")
    torch.manual_seed(0)
    return build_env(config, engine_config(**(physics or {})), num_envs, "cpu", make_engine=FakeEngine)


def test_nothing_is_there_unless_it_is_asked_for():
    env = go2()
    assert env.scene.disturbances is None and not env.engine.spec.varied and not hasattr(env.engine, "friction")
    assert not any("disturb" in name for name in env.state_dict()) and "disturb" not in env.describe()
    env = go2(push_velocity=0.5, push_interval=[1.0, 2.0])
    assert not env.engine.spec.varied, "pushes need nothing of the engine"


def test_worlds_differ_within_the_ranges():
    env = go2(512, **ALL)
    engine = env.engine
    assert engine.spec.varied and engine.spec.roughness == 0.02
    for name, key in (("friction", "friction"), ("mass", "mass"), ("stiffness", "stiffness"), ("damping", "damping"),
                      ("strength", "motor_strength")):
        low, high = ALL[key]
        found = getattr(engine, name)
        assert found.min() >= low and found.max() <= high
        assert abs(found.mean() - (low + high) / 2) < 0.05 * (high - low) and found.std() > 0.25 * (high - low)
    assert engine.com.abs().max() <= 0.03 and engine.com.std() > 0.015
    assert set(engine.delay.tolist()) == {2, 3, 4, 5, 6, 7}  # 0.01 s to 0.03 s are 2.4 to 7.2 physics steps
    assert engine.ground_shift[0].tolist() == [0.0, 0.0] and engine.ground_shift[1:].abs().max() > 10.0
    assert "disturbances: friction [0.3, 1.2], mass" in env.describe()


def test_an_episode_draws_anew_but_for_masses():
    env = go2(4, **ALL)
    names = ("friction", "stiffness", "damping", "strength", "ground_shift", "mass", "com")
    before = {name: getattr(env.engine, name).clone() for name in names}
    offset = env.scene.disturbances.buffers()["offset"].clone()
    env.reset(torch.tensor([False, True, False, False]))
    for name, old in before.items():
        changed = (getattr(env.engine, name) != old).flatten(1).any(dim=1) if old.dim() > 1 else (
            getattr(env.engine, name) != old)
        assert changed.tolist() == [False, name not in ("mass", "com"), False, False], name
    assert (env.scene.disturbances.buffers()["offset"] != offset).any(dim=1).tolist() == [False, True, False, False]
    torch.testing.assert_close(env.engine.previous_command, env.engine.dof_pos)


def test_encoders_are_off_for_policy_and_motors_alike():
    """A joint at q reads q + offset; motors that are told to go to q end at q - offset, where they read q."""
    env = go2(4, joint_offset=0.05)
    offset = env.scene.disturbances.buffers()["offset"]
    assert 0.03 < offset.abs().max() <= 0.05
    action = 0.5 * (env.action_low + env.action_high).expand(4, -1)
    env.before_physics(action)
    torch.testing.assert_close(env.engine.command, action - offset)
    env.finish_lookups()
    sensed = env.scene.disturbances.sense(env.scene.char_state())
    torch.testing.assert_close(env.character.rot_to_dof(sensed.joint_rot), env.engine.dof_pos + offset)


def test_what_sensors_measure():
    env = go2(2)
    char, character = env.scene.char_state(), env.character
    d = character.num_dofs
    exact = measured(char, torch.zeros(2, 12 + 2 * d), torch.zeros(2, d), character)
    for name, value in exact._asdict().items():
        torch.testing.assert_close(value, getattr(char, name), atol=2e-6, rtol=0.0, msg=name)
    errors = torch.zeros(2, 12 + 2 * d)
    errors[:, :12] = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.0, 0.4, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    errors[:, 12 + 2], errors[:, 12 + d + 3] = 0.25, 7.0
    found = measured(char, errors, torch.zeros(2, d), character)
    torch.testing.assert_close(found.root_pos - char.root_pos, torch.tensor([0.1, 0.2, 0.3]).expand(2, 3))
    torch.testing.assert_close(quat_diff_angle(found.root_rot, char.root_rot), torch.full((2,), 0.4))
    torch.testing.assert_close(found.root_vel - char.root_vel, torch.tensor([1.0, 2.0, 3.0]).expand(2, 3))
    torch.testing.assert_close(found.root_ang_vel - char.root_ang_vel, torch.tensor([4.0, 5.0, 6.0]).expand(2, 3))
    moved = character.rot_to_dof(found.joint_rot) - character.rot_to_dof(char.joint_rot)
    assert moved[0].nonzero().flatten().tolist() == [2] and moved[0, 2] == pytest.approx(0.25, abs=1e-5)
    assert (found.dof_vel - char.dof_vel)[0].nonzero().flatten().tolist() == [3]
    pos, rot = character.forward_kinematics(found.root_pos, found.root_rot, found.joint_rot)
    assert torch.equal(found.body_pos, pos) and torch.equal(found.body_rot, rot)


def test_only_the_policy_is_deceived():
    """Noise of joint velocities alone: those numbers of the observation differ, anew in every step, nothing else."""
    plain, noisy = go2(4), go2(4, noise_joint_velocity=0.5)
    d, joints = plain.character.num_dofs, 6 * plain.character.num_joints
    velocities = slice(13 + joints, 13 + joints + d)
    noisy.engine.load_state_dict(plain.engine.state_dict())
    for name in ("ids", "start"):
        getattr(noisy.terms.reference, name).copy_(getattr(plain.terms.reference, name))
    errors = []
    for _ in range(2):
        for env in (plain, noisy):
            env.step(torch.zeros(4, d))
        errors.append(noisy.next_obs - plain.next_obs)
        assert 0.3 < errors[-1][:, velocities].abs().max() <= 0.5
        errors[-1] = errors[-1][:, velocities]
        others = torch.ones(plain.obs.shape[1], dtype=torch.bool)
        others[velocities] = False
        torch.testing.assert_close(noisy.next_obs[:, others], plain.next_obs[:, others], atol=1e-5, rtol=0.0)
        assert torch.equal(plain.reward, noisy.reward)
    assert (errors[0] != errors[1]).all()


def test_pushes_come_in_time():
    """Every 0.2 s, which are six steps, from 0.2 s on; horizontal velocity and spin change, height does not."""
    env = go2(32, push_velocity=0.7, push_angular_velocity=0.3, push_interval=[0.2, 0.2])
    env._max_steps, env.terms.terminations = None, {}
    pushed = []
    for step in range(20):
        before = env.engine.root_vel.clone(), env.engine.root_ang_vel.clone()
        env.engine.reset_mask.zero_()
        env.before_physics(torch.zeros(32, env.character.num_dofs))
        change, turn = env.engine.root_vel - before[0], env.engine.root_ang_vel - before[1]
        if change.any():
            pushed.append(step)
            assert env.engine.reset_mask.all()
            assert 0.5 < change[:, :2].abs().max() <= 0.7 and change[:, 2].abs().max() == 0.0
            assert 0.2 < turn.abs().max() <= 0.3 and (turn.std(dim=0) > 0.1).all()
        else:
            assert not env.engine.reset_mask.any() and not turn.any()
        env.engine.step()
        env.after_physics()
    assert pushed == [6, 12, 18]


def test_a_test_is_disturbed_too():
    env = go2(4, noise_joint_velocity=0.5)
    env.set_mode(EnvMode.TEST)
    env.reset()
    first = env.obs.clone()
    env.step(torch.zeros(4, env.character.num_dofs))
    assert (env.obs - first).abs().max() > 0.1


# --- what a robot observes ------------------------------------------------------------------------------------------


def test_a_robot_observes_neither_place_nor_velocity(tmp_path):
    clip = write_clip(tmp_path / "clip.pkl")
    options = {"motion_file": clip, "enable_phase_obs": False, "enable_tar_obs": True, "tar_obs_steps": (1, 2)}
    for axes in (True, False):
        full = humanoid("deepmimic", 3, global_obs=axes, **options)
        blind = humanoid("deepmimic", 3, global_obs=axes, root_pos_obs=False, root_vel_obs=False, **options)
        assert full.obs.shape[1] - blind.obs.shape[1] == 4
        blind.engine.load_state_dict(full.engine.state_dict())
        blind.terms.reference.start.copy_(full.terms.reference.start)
        for env in (full, blind):
            env.steps.fill_(1)
        state = full._state(full.terms.reference.lookup(full._time())[0])
        moved = state._replace(char=state.char._replace(
            root_pos=state.char.root_pos + torch.tensor([0.3, -0.2, 0.1]),
            body_pos=state.char.body_pos + torch.tensor([0.3, -0.2, 0.1]),
            root_vel=state.char.root_vel + 1.0))
        torch.testing.assert_close(blind._observe(moved), blind._observe(state))
        assert (full._observe(moved) - full._observe(state)).abs().max() > 0.09
        # what both observe of the character is the same
        a, b = full._observe(state), blind._observe(state)
        torch.testing.assert_close(torch.cat([a[:, 1:7], a[:, 10:140]], dim=1), b[:, :136])


def test_what_cannot_be_observed_is_not_asked_for(tmp_path):
    """Without root_pos_obs the horizontal place neither counts nor ends an episode, but height and heading count."""
    env = humanoid("deepmimic", 1, motion_file=write_clip(tmp_path / "clip.pkl"), global_obs=True, enable_tar_obs=True,
                   root_pos_obs=False, pose_termination=True, pose_termination_dist=0.5, enable_phase_obs=False)
    state = env._state(env.terms.reference.lookup(env._time())[0])
    char = state.char

    def rewarded(offset=(0.0, 0.0, 0.0), yaw=0.0):
        shift = torch.tensor(offset)
        turned = char._replace(
            root_pos=char.root_pos + shift, body_pos=char.body_pos + shift,
            root_rot=torch.as_tensor(yaw_quat(torch.tensor([yaw]))) if yaw else char.root_rot)
        now = state._replace(char=turned)
        return float(env._reward(now)[0]), int(env._done(now, EnvMode.TRAIN)[0])

    exact, done = rewarded()
    assert done == 0
    assert rewarded((5.0, -3.0, 0.0)) == (pytest.approx(exact, abs=1e-5), 0)
    assert rewarded((0.0, 0.0, 0.3))[0] < exact - 0.02
    assert rewarded(yaw=1.0)[0] < exact - 0.02


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "message"), [
    ({"friction": [1.2, 0.3]}, r"disturbances\.friction.*the smaller first; this one is \[1.2, 0.3\]"),
    ({"mass": [-1.0, 1.0]}, r"disturbances\.mass.*0 or more"),
    ({"com": -0.1}, r"disturbances\.com"),
    ({"grip": 0.1}, r"grip"),
    ({"push_velocity": 0.5}, "push_interval is needed where push_velocity"),
    ({"push_interval": [1.0, 2.0]}, "push_interval is needed where push_velocity"),
    ({"push_velocity": 0.5, "push_interval": [0.0, 0.0]}, "longer than 0"),
    ({"latency": [0.0, 0.05]}, r"disturbances.latency' = \[0.0, 0.05\]: at most one control step, 0.03333 s"),
])
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        go2(2, **given)


def test_what_does_not_fit():
    with pytest.raises(UserError, match="needs control_mode 'pos', this one is 'torque'"):
        go2(2, {"control_mode": "torque"}, friction=[0.5, 1.0])


def test_ball_joints_have_no_encoder(tmp_path):
    env = humanoid("deepmimic", 8, motion_file=write_clip(tmp_path / "clip.pkl"), disturbances={"joint_offset": 0.1})
    offset = env.scene.disturbances.buffers()["offset"]
    assert offset.abs().amax(dim=0).nonzero().flatten().tolist() == [9, 13, 17, 24], "elbows and knees"


def test_sets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_disturbances("none") == Disturbances() and Disturbances().given == {}
    assert read_disturbances("standard").friction == (0.4, 1.2)
    (tmp_path / "own.yaml").write_text("friction: [0.1, 0.2]\n")
    assert read_disturbances("own.yaml").given == {"friction": [0.1, 0.2]}
    with pytest.raises(UserError, match=r"--disturb standart: allowed are none, standard or a yaml file .*standard"):
        read_disturbances("standart")


def test_a_test_can_be_disturbed_otherwise(tmp_path, monkeypatch):
    """--disturb replaces what the environment's file says, --set changes it."""
    monkeypatch.chdir(ROOT)
    words = ["--arg_file", "args/deepmimic_go2_ppo_args.txt", "--variant", "robust", "--mode", "test", "--devices",
             "cpu"]

    def read(*more):
        return read_request(read_args([*words, *more])).env

    assert read().disturbances.roughness == 0.03 and not read().root_vel_obs
    assert read("--disturb", "none").disturbed is None
    standard = read("--disturb", "standard", "--set", "env.disturbances.com=0.5")
    assert standard.disturbances == read_disturbances("standard").model_copy(update={"com": 0.5})


def test_the_robust_variant(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for case in ("g1", "go2", "pi_plus"):
        request = read_request(read_args(["train", f"deepmimic_{case}_ppo", "--variant", "robust", "--devices", "cpu"]))
        assert request.variant == "tuned" and request.args["agent_config"].endswith("_tuned.yaml")
        given = request.env.disturbances.given
        assert {"friction", "mass", "com", "stiffness", "damping", "motor_strength", "joint_offset", "latency",
                "push_velocity"} <= set(given)
        assert ("roughness" in given) == (case != "pi_plus"), "soles that are boxes"
        assert not request.env.root_pos_obs and not request.env.root_vel_obs
    for flags, message in (
        (["deepmimic_humanoid_ppo"], "has no robust variant; these cases have: deepmimic_g1_ppo, deepmimic_go2_ppo"),
        (["deepmimic_g1_ppo", "--env_config", "data/envs/deepmimic_g1_env.yaml"], "is given too: give one of them"),
    ):
        with pytest.raises(UserError, match=message):
            read_request(read_args(["train", *flags, "--variant", "robust", "--devices", "cpu"]))


def test_what_is_written_reads_again():
    settings = Disturbances(**ALL)
    assert Disturbances(**json.loads(json.dumps(settings.given))) == settings


def test_uniform():
    torch.manual_seed(1)
    drawn = uniform((10000,), (2.0, 5.0), torch.device("cpu"))
    assert drawn.min() >= 2.0 and drawn.max() < 5.0 and abs(drawn.mean() - 3.5) < 0.05
    assert (uniform((3,), (4.0, 4.0), torch.device("cpu")) == 4.0).all()
