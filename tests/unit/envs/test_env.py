"""The order of a step, resets, ends, measures and health of an environment, on an engine without physics."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.env import Env
from mimickit.learning.agent import Agent
from mimickit.learning.config import DummyConfig
from mimickit.learning.evaluation import run_test
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from tests.unit.env_case import make_env, write_clip

REST = torch.zeros(4, 28)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.pkl")


@pytest.fixture
def env(clip):
    torch.manual_seed(0)
    return make_env("deepmimic", motion_file=clip)


def perfect_action(env):
    """The command that puts dofs where the reference will be after the step (the fake engine obeys at once)."""
    ref = env.terms.reference.lookup(env._time() + env.dt)[0]
    return env.character.rot_to_dof(ref.now.joint_rot)


def test_sizes(env):
    assert env.obs.shape == env.next_obs.shape == (4, 464)
    assert env.action_low.shape == (28,)
    assert (env.fail_reward, env.succ_reward) == (0.0, 0.0)


def test_reset_starts_from_the_reference(env):
    engine, ref = env.engine, env.terms.reference.lookup(torch.zeros(4))[0].now
    assert engine.reset_mask.all()
    assert (env.done == DoneFlag.NULL).all()
    assert len(env.terms.reference.start.unique()) == 4 and (env.terms.reference.start < 1.0).all()
    for name in ("root_pos", "root_rot", "root_vel", "root_ang_vel", "dof_vel", "body_pos", "body_rot"):
        torch.testing.assert_close(getattr(engine, name), getattr(ref, name))
    torch.testing.assert_close(env.character.dof_to_rot(engine.dof_pos), ref.joint_rot, atol=1e-6, rtol=0)
    assert (env.obs[:, 0] - 0.9).abs().max() < 1e-6


def test_reset_without_random_times_begins_at_zero(clip):
    env = make_env("deepmimic", motion_file=clip, rand_reset=False)
    assert (env.terms.reference.start == 0).all()


def test_following_the_reference_earns_nearly_everything(env):
    for step in range(1, 20):
        env.step(perfect_action(env))
        assert (env.done == DoneFlag.NULL).all(), step
        assert env.reward.min() > 0.85  # all but the dof velocities, which the fake engine leaves as they were
        torch.testing.assert_close(env.next_obs, env.obs, rtol=0, atol=0)
        assert (env.steps == step).all()


def test_reward_sees_the_reference_of_the_new_time(env):
    env.set_mode(EnvMode.TEST)
    env.step(perfect_action(env))
    new = env.terms.reference.lookup(env._time())[0].now
    old = env.terms.reference.lookup(env._time() - env.dt)[0].now
    root = env.engine.root_pos
    assert (root - new.root_pos).norm(dim=1).max() < 1e-4
    assert (root - old.root_pos).norm(dim=1).min() > 0.01
    assert env.metrics()["root_pos_err"] < 1e-4


def test_command_is_clamped(env):
    env.step(torch.full((4, 28), 100.0))
    torch.testing.assert_close(env.engine.command, env.action_high.expand(4, 28))
    env.step(torch.full((4, 28), -100.0))
    torch.testing.assert_close(env.engine.command, env.action_low.expand(4, 28))


def test_a_finished_world_restarts_alone(env):
    env.step(perfect_action(env))
    env.engine.root_vel[2, 0] = 60.0  # two metres in a step: the pose is lost
    env.step(perfect_action(env))
    assert env.done.tolist() == [0, 0, DoneFlag.FAIL, 0]
    assert env.engine.reset_mask.tolist() == [False, False, True, False]
    assert env.steps.tolist() == [2, 2, 0, 2]
    start = env.terms.reference.lookup(torch.zeros(4))[0].now
    torch.testing.assert_close(env.engine.root_pos[2], start.root_pos[2])
    assert (env.next_obs[2] - env.obs[2]).abs().max() > 0.5, "next_obs must show the state before the reset"
    torch.testing.assert_close(env.next_obs[[0, 1, 3]], env.obs[[0, 1, 3]], rtol=0, atol=0)
    env.step(perfect_action(env))
    assert env.engine.started[-1] == [2]
    assert env.done.tolist() == [0, 0, 0, 0]


def test_ground_contact_of_a_hand_fails_and_of_a_foot_does_not(env):
    step = env.engine.step

    def step_with(body, newton):
        def contact():
            step()
            env.engine.ground_contact_force[1, env.engine.body_names.index(body), 2] = newton

        env.engine.step = contact
        env.step(perfect_action(env))
        return env.done.tolist()

    assert step_with("left_foot", 500.0) == [0, 0, 0, 0]
    assert step_with("left_hand", 0.1) == [0, 0, 0, 0]
    assert step_with("left_hand", 0.11) == [0, DoneFlag.FAIL, 0, 0]
    assert (env.engine.ground_contact_force[1] == 0).all(), "a restarted world has no stale contacts"


def test_no_contact_test_without_contact_bodies(clip):
    env = make_env("deepmimic", motion_file=clip, contact_bodies=[])
    assert "contact" not in env.describe()


def test_time_ends_the_episode_after_whole_steps(clip):
    env = make_env("deepmimic", motion_file=clip, episode_length=0.2)
    for expected in [0, 0, 0, 0, 0, DoneFlag.TIME, 0]:
        env.step(perfect_action(env))
        assert env.done.tolist() == [expected] * 4


def test_a_clip_that_does_not_loop_ends_with_success_unless_it_failed(tmp_path):
    clip = write_clip(tmp_path / "once.pkl", loop=LoopMode.CLAMP)
    env = make_env("deepmimic", motion_file=clip, rand_reset=False, episode_length=31 / 30)
    env.set_mode(EnvMode.TEST)
    for _ in range(29):
        env.step(perfect_action(env))
        assert (env.done == DoneFlag.NULL).all()
    env.terms.reference.start += 0.001  # not exactly at an end of float32 arithmetic
    env.engine.root_vel[0, 2] = -60.0
    env.step(perfect_action(env))
    assert env.done.tolist() == [DoneFlag.FAIL] + [DoneFlag.SUCC] * 3
    assert env.metrics()["success_rate"].item() == 0.75


def test_the_most_serious_end_counts_whatever_the_order(env):
    yes = torch.ones(4, dtype=torch.bool)
    ends = {"fails": (DoneFlag.FAIL, lambda now: yes), "succeeds": (DoneFlag.SUCC, lambda now: yes),
            "times out": (DoneFlag.TIME, lambda now: yes)}
    for names in itertools.permutations(ends):
        one = Env(env.scene, replace(env.terms, terminations={name: ends[name] for name in names}))
        one.step(REST)
        assert (one.done == DoneFlag.FAIL).all(), names


def test_success_wins_over_time(tmp_path):
    clip = write_clip(tmp_path / "once.pkl", loop=LoopMode.CLAMP)
    env = make_env("deepmimic", motion_file=clip, rand_reset=False, episode_length=1.0)
    env.terms.reference.start += 0.001
    for _ in range(30):
        env.step(perfect_action(env))
    assert (env.done == DoneFlag.SUCC).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_world_gone_bad_is_failed_counted_and_healed(env, value):
    env.set_mode(EnvMode.TEST)
    env.step(perfect_action(env))
    before = {k: v.item() for k, v in env.metrics().items()}
    env.engine.root_vel[3, 1] = value
    env.step(perfect_action(env))
    assert env.done.tolist() == [0, 0, 0, DoneFlag.FAIL]
    assert env.health()["nonfinite"].item() == 1
    assert (env.next_obs[3] == 0).all() and env.reward[3] == 0
    for name in ("obs", "reward", "next_obs"):
        assert torch.isfinite(getattr(env, name)).all(), name
    assert torch.isfinite(env.engine.root_pos).all()
    after = env.metrics()
    assert after["root_pos_err"].item() == pytest.approx(before["root_pos_err"], abs=1e-4)
    env.step(perfect_action(env))
    assert env.done.tolist() == [0, 0, 0, 0]
    assert env.health()["nonfinite"].item() == 1
    env.clear_health()
    assert env.health()["nonfinite"].item() == 0


def test_health_passes_the_solver_overflows_on(env):
    env.engine.overflow += torch.tensor([3, 5])
    health = env.health()
    env.clear_health()
    assert (health["contact_overflow"].item(), health["constraint_overflow"].item()) == (3, 5)
    assert env.engine.overflow.tolist() == [0, 0]


def test_measures_count_steps_of_the_test_mode_only(env):
    env.set_mode(EnvMode.TEST)
    env.engine.root_vel[:, 0] += 1.0
    env.step(perfect_action(env))
    measured = env.metrics()["root_pos_err"].item()
    assert measured == pytest.approx(1 / 30, rel=1e-3)
    env.set_mode(EnvMode.TRAIN)
    env.step(perfect_action(env))
    assert env.metrics()["root_pos_err"].item() == measured
    env.set_mode(EnvMode.TEST)
    assert all(math.isnan(v.item()) for v in env.metrics().values())
    env.reset()
    assert math.isnan(env.metrics()["root_pos_err"].item()), "the perfect state after a reset is no measurement"
    env.step(perfect_action(env))
    assert env.metrics()["root_pos_err"].item() < 1e-4


def test_continues_exactly(clip):
    def run(env, steps):
        rewards = []
        for _ in range(steps):
            env.step(torch.rand(4, 28))
            rewards.append(env.reward.clone())
        return torch.stack(rewards), env.obs.clone()

    torch.manual_seed(3)
    env = make_env("deepmimic", motion_file=clip, episode_length=0.3)
    env.set_mode(EnvMode.TEST)
    run(env, 7)
    state, random = env.state_dict(), torch.get_rng_state()
    first = run(env, 12)
    other = make_env("deepmimic", motion_file=clip, episode_length=0.3)
    other.set_mode(EnvMode.TEST)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    second = run(other, 12)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for name, value in env.metrics().items():
        assert torch.equal(value.nan_to_num(-1.0), other.metrics()[name].nan_to_num(-1.0)), name


def test_state_of_another_environment_is_refused(env, clip):
    state = env.state_dict()
    with pytest.raises(UserError, match="number of environments"):
        make_env("deepmimic", num_envs=2, motion_file=clip).load_state_dict(state)
    with pytest.raises(UserError, match=r"only one of them has memory\.history\.frames"):
        make_env("add", motion_file=clip).load_state_dict(state)
    older = {name.replace("reference.", "source."): value for name, value in state.items()}
    with pytest.raises(UserError, match=r"earlier version.* model\.pt still fits: --model_file"):
        env.load_state_dict(older)


def test_same_seed_same_episode(clip):
    def rollout():
        torch.manual_seed(11)
        env = make_env("deepmimic", motion_file=clip)
        for _ in range(5):
            env.step(torch.rand(4, 28))
        return env.obs

    assert torch.equal(rollout(), rollout())


def test_buffers_stay_where_they_are(env):
    pointers = {name: getattr(env, name).data_ptr() for name in ("obs", "next_obs", "reward", "done")}
    for _ in range(3):
        env.step(REST)
    env.reset()
    assert pointers == {name: getattr(env, name).data_ptr() for name in pointers}


def test_the_graph_covers_everything_it_changes(env):
    """What the captured function changes must be put back after its warm-up, so it has to be listed or overwritten."""
    env.step(REST)
    held = dict(enumerate([*env._persistent().values(), *env.scene.placed()]))
    seen = {id(t) for t in held.values()}
    engine = env.engine
    for name in vars(engine):
        tensor = getattr(engine, name)
        if isinstance(tensor, torch.Tensor) and name not in ("command", "overflow"):
            assert id(tensor) in seen, f"engine.{name}"
    before = {k: t.clone() for k, t in held.items()}
    random = torch.get_rng_state()
    env._after_physics(EnvMode.TEST)
    for k, t in held.items():
        t.copy_(before[k])
    torch.set_rng_state(random)
    env._after_physics(EnvMode.TEST)
    first = {k: t.clone() for k, t in held.items()}
    for k, t in held.items():
        t.copy_(before[k])
    torch.set_rng_state(random)
    env._after_physics(EnvMode.TEST)
    for k, t in held.items():
        torch.testing.assert_close(t, first[k], rtol=0, atol=0, equal_nan=True)


def test_reference_pose_for_pictures(env):
    env.step(perfect_action(env))
    body_pos, body_rot = env.reference_pose()
    assert body_pos.shape == (15, 3) and body_rot.shape == (15, 4)
    torch.testing.assert_close(body_pos[0], env.terms.reference.lookup(env._time())[0].now.root_pos[0])
    assert env.view == {"camera_mode": "track", "show_reference": True, "ref_offset": (2.0, 0.0, 0.0)}


def test_description_names_the_terms(env):
    text = env.describe()
    for words in ("4 worlds", "observation 464, action 28", "3 future frames", "15 bodies",
                  "observations: character 140, targets 324", "rewards: tracking",
                  "terminations: clip_over, ground_contact, pose_lost", "metrics: tracking, success_rate"):
        assert words in text


def test_mixed_bodies_are_refused(env):
    from mimickit.envs.scene import check_bodies
    env.engine.body_names = env.engine.body_names[:-1]  # the same names as far as they go
    with pytest.raises(UserError, match="left_foot"):
        check_bodies(env.engine, env.character)


def test_nothing_interrupts_an_uninterrupted_episode(env):
    """Lying on the ground 2 m from the reference, all along: 2 m of 15 bodies. Time still ends it."""
    step = env.engine.step

    def fall():
        step()
        env.engine.root_pos[:, 1] = 2.0
        env.engine.body_pos[..., 1] += 2.0 - env.engine.body_pos[:, :1, 1]
        env.engine.ground_contact_force[:, 0, 2] = 100.0

    env.engine.step = fall
    env.set_mode(EnvMode.UNINTERRUPTED)
    for _ in range(3):
        env.step(perfect_action(env))
        assert env.done.tolist() == [DoneFlag.NULL] * 4
    assert set(env.metrics()) == {"pos_err", "time_warped_err"}
    assert env.metrics()["pos_err"].item() == pytest.approx(2 / 15, abs=1e-3)
    env.steps[1] = 10_000
    env.step(perfect_action(env))
    assert env.done.tolist() == [0, DoneFlag.TIME, 0, 0]
    env.set_mode(EnvMode.TEST)
    env.step(perfect_action(env))
    assert env.done.tolist() == [DoneFlag.FAIL] * 4 and "pos_err" not in env.metrics()


def test_a_test_measures_interrupted_and_uninterrupted_episodes(clip):
    torch.manual_seed(0)
    env = make_env("deepmimic", motion_file=clip, episode_length=0.3)
    agent = Agent(env, DummyConfig(agent_name="Dummy"), Distributed.single())
    env.engine.step = lambda step=env.engine.step: (step(), env.engine.ground_contact_force[0, 0].fill_(9.0))
    alone = run_test(env, agent, Distributed.single(), 4)
    both = run_test(env, agent, Distributed.single(), 4, uninterrupted_episodes=8)
    assert alone.test_episode_length == both.test_episode_length == (1 + 9 + 9 + 9) / 4
    assert "pos_err" not in alone.measures and both.measures["survival"] == 0.75
    assert both.statistics["pos_err"]["episodes"] == 8 and both.statistics["survival"]["episodes"] == 4
    assert both.statistics["pos_err"]["mean"] == pytest.approx(both.measures["pos_err"])
    assert 0.0 < both.measures["time_warped_err"] < both.measures["pos_err"], "the root's own place does not count"


def test_checkpoints_with_other_measures_are_read(env):
    state = env.state_dict()
    del state["metrics.success_rate.count"]
    state |= {"metrics.tracking.sums": torch.zeros(4, 3), "metrics.of_old.sums": torch.zeros(4, 1)}
    env.step(perfect_action(env))
    env.load_state_dict(state)
    assert env.steps.tolist() == [0] * 4


class Recorder(TorchDispatchMode):
    """Every operation that runs, with a note of those that would make the host wait or break a graph."""

    VIEWS = frozenset({
        "view", "slice", "unsqueeze", "select", "expand", "as_strided", "_unsafe_view", "unbind", "squeeze", "detach",
        "alias", "split", "empty", "empty_like",
    })
    FORBIDDEN = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero"})

    def __init__(self):
        super().__init__()
        self.kernels = 0
        self.hostile = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.kernels += name not in self.VIEWS
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in self.FORBIDDEN or masks:
            self.hostile.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["deepmimic", "view_motion", "dof_test", "add", "ase", "amp_location", "amp_steering"])
def test_the_step_never_asks_the_host(name, clip):
    env = make_env(name, **({} if name == "dof_test" else {"motion_file": clip}))
    action = env.action_high.expand(4, -1).clone()
    with torch.no_grad(), Recorder() as recorder:
        env.before_physics(action)
        env._after_physics(EnvMode.TEST)
        env.metrics()
        env.health()
        counted = recorder.kernels
        env.before_physics(action)
        env._after_physics(EnvMode.UNINTERRUPTED)
    assert recorder.hostile == []
    assert counted < 700, "each kernel costs microseconds in every step"
    env.step(action)


def test_the_recorder_would_notice():
    x = torch.arange(4.0)
    with Recorder() as recorder:
        x[x > 1]
        x.sum().item()
        torch.tensor([1.0])
    assert {"index", "_local_scalar_dense", "lift_fresh"} <= set(recorder.hostile)
