"""The loop in NumPy sees what the environment sees: observations, reference, ends of episodes."""

import math

import mujoco
import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.deploy.loop import FAILED, RUNNING, SUCCEEDED, TIME_OUT, Location, Loop, Steering
from mimickit.deploy.observation import observe
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.tasks import LocationGoal
from tests.unit.deploy.export_case import make
from tests.unit.env_case import ROOT, write_clip

SPINKICK = ROOT / "data/motions/humanoid/humanoid_spinkick.pkl"


def turned_clip(path):
    """A clip that loops, moves and ends in another heading than it began."""
    from mimickit.anim.motion import MotionClip, load_motion, save_motion

    clip = load_motion(write_clip(path, frames=21))
    frames = clip.frames.copy()
    frames[:, 5] = np.linspace(0.3, 1.7, 21)
    frames[:, 1] = np.linspace(0.0, -0.4, 21)
    frames[:, 6:9] = np.linspace([-0.3, 0.2, 0.1], [0.4, -0.9, 0.6], 21)
    save_motion(path, MotionClip(clip.loop_mode, clip.fps, frames))
    return path


@pytest.mark.parametrize("name", ["PPO", "ASE", "location", "steering"])
@pytest.mark.parametrize("changes", [
    {}, {"global_obs": True, "root_height_obs": False, "enable_phase_obs": True, "num_phase_encoding": 3,
         "enable_tar_obs": True, "tar_obs_steps": (1, 4)},
    {"global_obs": True, "root_pos_obs": False, "root_vel_obs": False, "enable_tar_obs": True, "tar_obs_steps": (1, 4)},
], ids=["shipped", "changed", "a robot's"])
def test_observations_are_the_environments(name, changes, tmp_path):
    env, _, policy = make(name, tmp_path, 5, turned_clip(tmp_path / "turned.pkl"), accumulate_yaw=True, **changes)
    loop = Loop(policy, tmp_path / "policy")
    reference, goal = env.terms.reference, env.terms.memory.get("goal")
    still = getattr(reference, "still", torch.zeros(5, dtype=torch.bool))
    clips = getattr(reference, "clips", reference)
    for world in range(5):
        clip, time = int(clips.ids[world]), float(clips.start[world])
        now = loop.reset(clip, time, at_rest=bool(still[world]))
        targets = [loop.lookup(clip, time + ahead * loop.dt) for ahead in loop._ahead]
        told = {}
        if isinstance(goal, LocationGoal):
            told = {"offset": goal.target[world].numpy() - now.root_pos[:2]}
        elif goal is not None:
            told = {"direction": goal.direction[world].numpy(), "face": goal.face[world].numpy(),
                    "speed": goal.speed[world:world + 1].numpy()}
        found = observe(policy, now, targets, loop.reference.phase(clip, time), told)
        np.testing.assert_allclose(found, env.obs[world].numpy(), atol=2e-5)


@pytest.mark.parametrize("accumulate", [True, False])
def test_the_reference_is_the_motion_librarys(accumulate, tmp_path):
    env, _, policy = make("PPO", tmp_path, 1, turned_clip(tmp_path / "turned.pkl"), accumulate_yaw=accumulate)
    loop = Loop(policy, tmp_path / "policy")
    for time in (0.0, 0.031, 0.41, 0.71, 1.91, 5.43):
        expected = clip_state(env.scene.motions, torch.tensor([0]), torch.tensor([time]))
        found = loop.lookup(0, time)
        for name in ("root_pos", "root_vel", "root_ang_vel", "dof_vel", "body_pos"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name)[0].numpy(), atol=2e-5,
                                       err_msg=f"{name} at {time}")


def test_a_clip_that_does_not_loop_stands_still_at_its_end(tmp_path):
    clip = write_clip(tmp_path / "once.pkl", loop=LoopMode.CLAMP)
    _, _, policy = make("PPO", tmp_path, 1, clip)
    reference = Loop(policy, tmp_path / "policy").reference
    qpos, velocity = reference.at(0, 1.5)
    np.testing.assert_allclose(qpos[:3], [0.5, 0.0, 0.9], atol=1e-6)
    assert not velocity.any() and reference.at(0, 1.0)[1][0] == pytest.approx(0.5)
    assert reference.over(0, 1.0) and not reference.over(0, 0.99) and reference.phase(0, 7.0)[0] == 1.0


@pytest.fixture(scope="module")
def spinkick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spinkick")
    make("PPO", folder, 1, SPINKICK)
    from mimickit.deploy.policy_file import read_policy

    return read_policy(folder / "policy")


def changed(policy, **changes):
    return policy.model_copy(update={"episode": policy.episode.model_copy(update=changes)})


def test_how_episodes_end(spinkick):
    policy, folder = spinkick
    free = changed(policy, contact_bodies=None, pose_distance=None)
    steps = []
    assert Loop(changed(free, steps=7), folder).episode(np.random.default_rng(0), steps.append) == TIME_OUT
    assert [step.end for step in steps] == [RUNNING] * 6 + [TIME_OUT]
    for most, changes, end in ((5, {}, TIME_OUT), (300, {"contact_bodies": []}, FAILED),
                               (300, {"pose_distance": 0.01}, FAILED)):
        found = []
        assert Loop(changed(free, **changes), folder).episode(np.random.default_rng(0), found.append, most) == end
        assert len(found) == most if end == TIME_OUT else len(found) < most
    once = policy.reference.clips[0].model_copy(update={"loops": False, "length": 0.3})
    short = changed(free, random_start=False).model_copy(
        update={"reference": policy.reference.model_copy(update={"clips": [once]})})
    steps.clear()
    assert Loop(short, folder).episode(np.random.default_rng(0), steps.append) == SUCCEEDED
    assert len(steps) == 9


def test_the_same_seed_repeats_an_episode(spinkick):
    ends = []
    for seed in (4, 4, 5):
        steps = []
        Loop(*spinkick).episode(np.random.default_rng(seed), steps.append, 10)
        ends.append(steps[-1].state.body_pos)
    assert (ends[0] == ends[1]).all() and np.abs(ends[0] - ends[2]).max() > 1e-3


def test_a_ball_joint_takes_the_shorter_way(spinkick):
    loop = Loop(*spinkick)
    action = np.zeros(28)
    action[:3], action[9] = [0.0, 3.5, 0.0], 4.0  # abdomen, elbow
    controls = loop.controls(action)
    np.testing.assert_allclose(controls[:3], [0.0, 3.5 - 2.0 * math.pi, 0.0])
    assert controls[9] == 4.0 and action[1] == 3.5


def test_ground_force_carries_the_weight(spinkick):
    """Standing with targets at the default pose for a moment: the feet's forces add up to the impulse of the weight."""
    policy, folder = spinkick
    loop = Loop(policy, folder)
    loop.reset(0, 0.0, at_rest=True)
    loop.data.ctrl[:] = loop.controls(np.array([dof.default for dof in policy.dofs]))
    total = np.zeros(3)
    for _ in range(48):
        mujoco.mj_step(loop.model, loop.data)
        total += loop.ground_force().sum(axis=0) * loop.model.opt.timestep
    mujoco.mj_subtreeVel(loop.model, loop.data)
    mass = loop.model.body_subtreemass[1]
    weight = mass * 9.81 * 48 * loop.model.opt.timestep
    expected = mass * loop.data.subtree_linvel[1] + weight * np.eye(3)[2]
    np.testing.assert_allclose(total, expected, atol=0.02 * weight)
    feet = [body.name in ("right_foot", "left_foot") for body in policy.bodies]
    assert not loop.ground_force()[np.logical_not(feet)].any()


class Settings:
    time_min, time_max, low, high, any_direction, any_face = 1.0, 2.0, 3.0, 4.0, True, False


def test_goals_change_in_time(spinkick):
    now = Loop(*spinkick).reset(0, 0.0)
    for kind in (Location, Steering):
        task = kind(Settings, np.random.default_rng(1))
        told = [task.goal(now, time) for time in np.arange(0.0, 30.0, 0.1)]
        changes = np.flatnonzero([goal["changed"][0] for goal in told])
        assert changes[0] == 0 and np.diff(changes).min() >= 10 and np.diff(changes).max() <= 21
        key = "offset" if kind is Location else "direction"
        values = {tuple(goal[key]) for goal in told}
        assert len(values) == len(changes)
        lengths = [np.linalg.norm(value) for value in values]
        if kind is Location:
            assert min(lengths) >= 3.0 and max(lengths) <= 4.0
        else:
            assert np.allclose(lengths, 1.0) and all((goal["face"] == goal["direction"]).all() for goal in told)
            assert all(3.0 <= goal["speed"][0] <= 4.0 for goal in told)
