"""Windows for discriminators: layout, numbers, history, demonstrations."""

import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import DoneFlag
from mimickit.envs.disc_obs import ClipWindows, prior_observation, tracking_observation
from mimickit.envs.terms import CharState
from mimickit.util.failures import UserError
from mimickit.util.rotations import quat_mul
from tests.unit.env_case import make_env, write_clip
from tests.unit.tracking_case import KEY, S, rot, shifted

DT = 1 / 30
JOINT = [0.935755, 0.302933, -0.18054, 0.210192, -0.068031, 0.97529]


def one_joint(state: CharState) -> CharState:
    return state._replace(joint_rot=state.joint_rot[:, :1], dof_vel=state.dof_vel[:, :3])


def window():
    """Two frames: S, and S a little later."""
    old = one_joint(S)
    new = shifted(old, 0.0)
    step, key_step = torch.tensor([0.03, 0.01, 0.0]), torch.tensor([0.04, 0.0, 0.0])
    new = new._replace(
        root_pos=old.root_pos + step, root_rot=quat_mul(rot("z", 0.05), old.root_rot), dof_vel=old.dof_vel + 1.0,
        root_vel=old.root_vel * 1.1, root_ang_vel=old.root_ang_vel * 1.2,
        body_pos=torch.stack([old.root_pos[:, 0:] + step, old.body_pos[:, 1] + key_step], dim=1),
    )
    return CharState(*(torch.stack([a, b], dim=1) for a, b in zip(old, new, strict=True)))


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-5)


OLD_WORLD = [0.873198, 0.47703, -0.099833, 0.087612, 0.047863, 0.995004]
NEW_WORLD = [0.848265, 0.520076, -0.099834, 0.085111, 0.052182, 0.995004]
OLD_HEADING = [0.993761, -0.04973, -0.099833, 0.099709, -0.00499, 0.995004]
NEW_HEADING = [0.995004, 0, -0.099834, 0.099834, 0, 0.995004]


def test_prior_observation_in_world_axes():
    found = prior_observation(window(), KEY, True, True, True).view(2, 27)
    close(found[0], [-0.03, -0.01, 0.9, *OLD_WORLD, *JOINT, 0.3, 0.1, -0.5, 1, 0, 0, 0, 0, 0.5, 0.1, 0.2, 0.3])
    close(found[1], [0, 0, 0.9, *NEW_WORLD, *JOINT, 0.31, 0.09, -0.5, 1.1, 0, 0, 0, 0, 0.6, 1.1, 1.2, 1.3])


def test_prior_observation_in_heading_axes():
    found = prior_observation(window(), KEY, False, True, True).view(2, 27)
    close(found[0], [-0.030803, 0.007155, 0.9, *OLD_HEADING, *JOINT, 0.308026, -0.071554, -0.5,
                     0.852525, -0.522687, 0, 0, 0, 0.5, 0.1, 0.2, 0.3])
    close(found[1], [0, 0, 0.9, *NEW_HEADING, *JOINT, 0.311324, -0.085306, -0.5,
                     0.937777, -0.574956, 0, 0, 0, 0.6, 1.1, 1.2, 1.3])


def test_options_drop_their_blocks():
    full = prior_observation(window(), KEY, True, True, True).view(2, 27)
    no_height = prior_observation(window(), KEY, True, False, True).view(2, 26)
    torch.testing.assert_close(no_height, torch.cat([full[:, :2], full[:, 3:]], dim=1))
    no_dof_vel = prior_observation(window(), KEY, True, True, False).view(2, 24)
    torch.testing.assert_close(no_dof_vel, full[:, :24])
    anchored = prior_observation(window(), KEY, True, True, True, world_anchor=True).view(2, 27)
    close(anchored[:, :3], [[1, 2, 0.9], [1.03, 2.01, 0.9]])
    torch.testing.assert_close(anchored[:, 3:], full[:, 3:])


def test_tracking_observation():
    world = tracking_observation(window(), True).view(2, 30)
    close(world[0], [1, 2, 0.9, *OLD_WORLD, *JOINT, 0, 0, 0, 0.3, 0.1, -0.5, 1, 0, 0, 0, 0, 0.5, 0.1, 0.2, 0.3])
    own = tracking_observation(window(), False).view(2, 30)
    close(own[1], [0, 0, 0.9, *NEW_HEADING, *JOINT, 0, 0, 0, 0.311324, -0.085306, -0.5,
                   0.937777, -0.574956, 0, 0, 0, 0.6, 1.1, 1.2, 1.3])
    close(own[0, 18:21], [0.311217, -0.056069, -0.5])
    close(own[0, 21:24], [0.877583, -0.479426, 0])


# --- in the environment, on an engine without physics -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "obs", "disc"), [("amp", 140, 1420), ("ase", 140, 1420), ("add", 464, 172),
                                                   ("amp_location", 142, 1420), ("amp_steering", 145, 1420)])
def test_sizes(tmp_path, name, obs, disc):
    env = make_env(name, num_envs=2, motion_file=write_clip(tmp_path / "clip.pkl"))
    assert env.obs.shape == (2, obs)
    assert env.info["disc_obs"].shape == (2, disc)
    assert set(env.info) == {"disc_obs", "disc_obs_demo" if name == "add" else "disc_demo"}


def test_smp_size(tmp_path):
    env = make_env("amp", num_envs=1, motion_file=write_clip(tmp_path / "clip.pkl"), disc_dof_vel_obs=False)
    assert env.info["disc_obs"].shape == (1, 1140)


def history_of(env):
    return env.terms.memory["history"]


def hold(env) -> torch.Tensor:
    return env.engine.dof_pos.clone()


def test_history_begins_with_the_clip_and_then_follows_the_character(tmp_path):
    clip = write_clip(tmp_path / "clip.pkl", loop=LoopMode.CLAMP, frames=31)
    env = make_env("amp", num_envs=2, motion_file=clip)
    history = history_of(env)
    start = env.terms.reference.start.clone()
    times = start[:, None] - torch.arange(9, -1, -1) * DT
    torch.testing.assert_close(history.frames().root_pos[..., 0], 0.5 * times.clamp(min=0.0), atol=1e-5, rtol=0)
    moving = (times >= 0).unsqueeze(-1)  # before its beginning a clip that stops stands still
    torch.testing.assert_close(
        history.frames().root_vel, torch.where(moving, torch.tensor([0.5, 0, 0]), 0.0), atol=1e-5, rtol=0)
    before = history.frames().root_pos.clone()
    env.step(hold(env))
    torch.testing.assert_close(history.frames().root_pos[:, :9], before[:, 1:])
    torch.testing.assert_close(history.frames().root_pos[:, 9], env.engine.root_pos)
    torch.testing.assert_close(history.frames().body_pos[:, 9], env.engine.body_pos)


def test_a_window_of_a_clip_ends_at_the_time_asked(tmp_path):
    env = make_env("amp", num_envs=1, motion_file=write_clip(tmp_path / "clip.pkl", loop=LoopMode.CLAMP, frames=31))
    windows, times = ClipWindows(env.scene, 10), torch.tensor([0.5, 0.9])
    found = windows.ending(torch.zeros(2, dtype=torch.long), times).root_pos[..., 0]
    expected = 0.5 * (times[:, None] - torch.arange(9, -1, -1) * DT)  # the clip goes 0.5 m/s
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_only_reset_environments_get_a_new_past(tmp_path):
    env = make_env("amp", num_envs=2, motion_file=write_clip(tmp_path / "clip.pkl"))
    env.step(hold(env))
    env.engine.ground_contact_force[:] = 0
    history = history_of(env)
    env.steps[1] = 10_000  # its time is over with the next step
    kept = history.frames().root_pos[0].clone()
    env.step(hold(env))
    assert env.done.tolist() == [0, DoneFlag.TIME]
    torch.testing.assert_close(history.frames().root_pos[0, :9], kept[1:])
    times = env.terms.reference.start[1] - torch.arange(9, -1, -1) * DT
    torch.testing.assert_close(history.frames().root_pos[1, :, 0], 0.5 * times, atol=1e-5, rtol=0)
    # what learning sees of the finished episode is its last state, not the new one
    assert env.info["disc_obs"][1].view(10, 142)[:, 0].tolist() == pytest.approx(
        env.info["disc_obs"][0].view(10, 142)[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize("rand_reset", [True, False])
def test_demonstrations_are_spread_over_the_clip(tmp_path, rand_reset):
    """Also when episodes always begin at its beginning."""
    torch.manual_seed(0)
    clip = write_clip(tmp_path / "clip.pkl")  # the elbow swings: its velocity tells the time
    env = make_env("amp", num_envs=500, motion_file=clip, rand_reset=rand_reset)
    env.step(hold(env))
    demo = env.info["disc_demo"].view(500, 10, 142)
    elbow = demo[:, -1, 142 - 28 + 9]  # dof 9: what the clip's column 15 moves
    assert elbow.min() < -2.0 and elbow.max() > 2.0
    assert elbow.std() == pytest.approx(0.8 * torch.pi / 2**0.5, rel=0.1)
    first = demo.clone()
    env.step(hold(env))
    assert (env.info["disc_demo"].view(500, 10, 142) != first).any(dim=(1, 2)).float().mean() > 0.99


def test_add_compares_the_same_instant(tmp_path):
    env = make_env("add", num_envs=3, motion_file=write_clip(tmp_path / "clip.pkl"))
    torch.testing.assert_close(env.terms.reference.lookup(torch.zeros(3))[0].now.root_pos, env.engine.root_pos)
    ref = env.character.rot_to_dof(env.terms.reference.lookup(torch.full((3,), DT))[0].now.joint_rot)
    env.step(ref)  # the engine without physics takes the dofs there at once, and the root glides
    difference = env.info["disc_obs_demo"] - env.info["disc_obs"]
    no_dof_vel = difference.view(3, 172)[:, :144]
    torch.testing.assert_close(no_dof_vel, torch.zeros_like(no_dof_vel), atol=1e-4, rtol=0)
    env.step(ref + 0.3)
    assert env.info["disc_obs_demo"].sub(env.info["disc_obs"]).abs().max() > 0.05


def test_default_pose_starts(tmp_path):
    torch.manual_seed(0)
    env = make_env("ase", num_envs=400, motion_file=write_clip(tmp_path / "clip.pkl"), default_reset_prob=0.3)
    still = env.terms.reference.still
    assert 0.2 < still.float().mean() < 0.4
    heights = env.engine.root_pos[:, 2]
    torch.testing.assert_close(heights[still], torch.full_like(heights[still], 0.882416))
    assert not env.engine.root_vel[still].any() and not env.engine.dof_vel[still].any()
    torch.testing.assert_close(heights[~still], torch.full_like(heights[~still], 0.9))
    assert env.terms.reference.buffers()["start"].max() > 0.9
    frames = history_of(env).frames()
    past = frames.root_pos[still]
    torch.testing.assert_close(past, past[:, -1:].expand_as(past))  # not the clip's past
    assert (frames.root_pos[~still][:, 0] - frames.root_pos[~still][:, -1]).abs().amax(dim=-1).min() > 0.1


def test_default_pose_starts_towards_the_clip(tmp_path):
    """Only the beginning is the pose: the targets are the drawn clip's from the first observation on."""
    env = make_env("ase", num_envs=50, motion_file=write_clip(tmp_path / "clip.pkl"), default_reset_prob=1.0,
                   enable_tar_obs=True, tar_obs_steps=[1, 2])
    _, start = env.terms.reference.lookup(torch.zeros(50))
    begin, targets = start.frames.root_pos[:, 0], start.frames.root_pos[:, 1:]
    torch.testing.assert_close(begin[:, 2], torch.full((50,), 0.882416))
    torch.testing.assert_close(targets[..., 2], torch.full((50, 2), 0.9))
    assert (targets[:, 1] - targets[:, 0]).abs().amax() > 1e-3  # which goes on


def test_default_pose_and_pose_termination_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match=r"pose_termination compares with a clip"):
        make_env("ase", motion_file=write_clip(tmp_path / "clip.pkl"), pose_termination=True)
    make_env("ase", motion_file=write_clip(tmp_path / "clip.pkl"), pose_termination=True, default_reset_prob=0.0)


def test_pose_termination_follows_the_clip(tmp_path):
    """The reference advances with the episode, so that following it is not punished and leaving it is."""
    env = make_env("amp", num_envs=2, motion_file=write_clip(tmp_path / "clip.pkl"), pose_termination=True,
                   pose_termination_dist=0.4)
    for _ in range(40):
        env.step(hold(env))
        assert not env.done.any()
    away = hold(env)
    away[:, 6:12] = 1.5  # shoulders and arms somewhere else
    env.step(away)
    assert (env.done == DoneFlag.FAIL).all()


def test_exact_continuation(tmp_path):
    def build():
        return make_env("amp_location", num_envs=3, motion_file=write_clip(tmp_path / "clip.pkl"))

    torch.manual_seed(0)
    env, other = build(), build()
    for _ in range(5):
        env.step(hold(env))
    other.load_state_dict(env.state_dict())
    action = hold(env)
    outputs = []
    for e in (env, other):
        torch.manual_seed(7)
        for _ in range(3):
            e.step(action)
        outputs.append([e.obs.clone(), e.reward.clone(), *(x.clone() for x in e.info.values())])
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


def test_a_broken_environment_does_not_poison_what_is_learned_from(tmp_path):
    env = make_env("amp", num_envs=2, motion_file=write_clip(tmp_path / "clip.pkl"))
    step = env.engine.step

    def explode():
        step()
        env.engine.dof_vel[0, 3] = float("nan")

    env.engine.step = explode
    env.step(hold(env))
    env.engine.step = step
    assert env.done.tolist() == [DoneFlag.FAIL, DoneFlag.NULL] and env.health()["nonfinite"] == 1
    assert not env.info["disc_obs"][0].any() and env.info["disc_obs"][1].any()
    env.step(hold(env))
    assert torch.isfinite(env.info["disc_obs"]).all() and env.info["disc_obs"][0].any()
    assert torch.isfinite(history_of(env).buffers()["frames"]).all()
