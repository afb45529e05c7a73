"""Alignment of motions in time, by hand."""

import numpy as np
import pytest
import torch

from mimickit.envs.base import EnvMode
from mimickit.envs.time_warping import alignment, local_pose, pose_costs
from tests.unit.env_case import make_env, write_clip
from tests.unit.tracking_case import S, T, rot


def aligned(a, b):
    return alignment(np.abs(np.subtract.outer(a, b)))


@pytest.mark.parametrize(("a", "b", "total", "pairs"), [
    ([3.0], [5.0], 2.0, 1),
    ([0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0], 0.0, 4),  # one waits
    ([0.0, 2.0], [0.0, 1.0, 2.0], 1.0, 3),
    ([0.0, 4.0, 0.0], [0.0, 0.0, 0.0], 4.0, 3),  # no pose may be left out
    ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 4.0, 3),  # nor can time run back
    ([5.0, 5.0], [0.0, 0.0], 10.0, 2),  # of equal sums the shorter way
])
def test_alignment(a, b, total, pairs):
    assert aligned(a, b) == (total, pairs)
    assert aligned(b, a) == (total, pairs)


def test_costs_of_poses():
    """Two joints, 3 and 4 m away in one of two pairs."""
    a = np.array([[[0.0, 0, 0], [0, 0, 0]]])
    b = np.array([[[3.0, 0, 0], [0, 4.0, 0]], [[0.0, 0, 0], [0, 0, 0]]])
    assert pose_costs(a, b).tolist() == [[3.5, 0.0]]


def test_place_and_heading_of_the_root_do_not_matter():
    """S's key body is (0.3, 0.1, -0.5) m from the root; heading about 0.5 rad."""
    turned = local_pose(S._replace(root_pos=S.root_pos + 5.0, body_pos=S.body_pos + 5.0))
    torch.testing.assert_close(turned, local_pose(S), atol=1e-5, rtol=0)
    assert local_pose(S).norm().item() == pytest.approx((0.09 + 0.01 + 0.25) ** 0.5, abs=1e-6)
    ahead = local_pose(T._replace(root_rot=rot("z", torch.pi / 2).unsqueeze(0)))
    assert ahead[0, 0].tolist() == pytest.approx([0.04, -0.33, -0.47], abs=1e-6)  # offset (0.33, 0.04, -0.47) turned


def test_a_delay_costs_nothing_where_the_motion_repeats(tmp_path):
    """The fake engine's elbow does what the clip does, 2 steps later, and 32 episodes at most are looked at."""
    torch.manual_seed(0)
    env = make_env("deepmimic", num_envs=40, motion_file=write_clip(tmp_path / "clip.pkl"), episode_length=1.0)
    env.set_mode(EnvMode.UNINTERRUPTED)
    metric = env.terms.uninterrupted["time_warped_err"]
    for _ in range(30):
        late = env.terms.reference.lookup(env._time() + env.dt - 2 * env.dt)[0]
        env.step(env.character.rot_to_dof(late.now.joint_rot))
    assert metric._lengths.tolist() == [30] * 32
    found = {name: value.item() for name, value in env.metrics().items()}
    elbow = metric._poses[..., 0, :, :] - metric._poses[..., 1, :, :]
    in_step = elbow.norm(dim=-1).mean().item()
    assert 0.0 < found["time_warped_err"] < 0.4 * in_step
    env.step(torch.zeros(40, 28))
    assert metric._lengths.tolist() == [30] * 32, "only the first episode of each"
    env.set_mode(EnvMode.UNINTERRUPTED)
    assert torch.isnan(env.metrics()["time_warped_err"])


def test_a_clip_that_does_not_loop_ends_the_comparison(tmp_path):
    clip = write_clip(tmp_path / "clip.pkl", loop=0)
    env = make_env("amp", num_envs=2, motion_file=clip, rand_reset=False, episode_length=2.0)
    env.set_mode(EnvMode.UNINTERRUPTED)
    for _ in range(45):
        env.step(torch.zeros(2, 28))
    metric = env.terms.uninterrupted["time_warped_err"]
    assert metric._poses.shape[1] == 30 and metric._lengths.tolist() == [29, 29]
    assert env.terms.uninterrupted["pos_err"].means.count.tolist() == [29.0, 29.0]


def test_of_many_clips_none_is_followed(tmp_path):
    files = [write_clip(tmp_path / f"{name}.pkl") for name in "ab"]
    dataset = tmp_path / "both.yaml"
    dataset.write_text("motions:\n" + "".join(f"  - {{file: {file}}}\n" for file in files))
    env = make_env("amp", num_envs=2, motion_file=dataset)
    assert not env.measures_uninterrupted
