"""Gaits: the mechanics they are made of, and what comes out."""

import numpy as np
import pytest
import torch

from mimickit.anim.mjcf import action_bounds, load_character_model
from mimickit.anim.motion import LoopMode, load_motion
from mimickit.clips.check import MOTIONS
from mimickit.clips.feet import feet_of, soles
from mimickit.clips.gaits import FPS, LEGS, Gait, bounce, leg_angles, make_gait, pendulum_sway, smooth_step
from mimickit.clips.shape import ASSETS, CHARACTERS, GRAVITY, Shape, unpack
from mimickit.util.failures import UserError
from tools.gaits import GAITS, main

CHAR = ASSETS / CHARACTERS["go2"]
RADIUS = 0.022


@pytest.fixture(scope="module")
def model():
    return load_character_model(CHAR)


@pytest.fixture(scope="module")
def shape():
    return Shape(CHAR)


def sole_paths(clip, shape):
    """Lowest points of the feet [F, 4, 3]."""
    return soles(feet_of(unpack(clip, shape), shape), shape).numpy() - (0.0, 0.0, RADIUS)


def test_smooth_step():
    assert smooth_step(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 0.5, 1.0]
    h = 1e-4
    for s in (0.0, 1.0):
        ends = smooth_step(np.array([s - h, s, s + h]))
        assert abs(ends[2] - ends[0]) / (2 * h) < 1e-6 and abs(ends[2] - 2 * ends[1] + ends[0]) / h**2 < 0.01


def test_pendulum_sway_of_one_harmonic():
    """y'' = (g / h) (y - p) with p = cos(w t): y = cos(w t) / (1 + w^2 h / g); T = 0.5 s, h = 0.3 m: 1 / 5.829."""
    time = np.arange(64) / 64
    sway = pendulum_sway(np.cos(2 * np.pi * time)[:, None], 0.5, 0.3)
    factor = 1.0 / (1.0 + (4 * np.pi) ** 2 * 0.3 / GRAVITY)
    assert factor == pytest.approx(1 / 5.829, rel=1e-3)
    np.testing.assert_allclose(sway[:, 0], factor * np.cos(2 * np.pi * time), atol=1e-12)


def test_bounce_integrates_load_minus_gravity():
    """Load 1 + 0.5 cos(w t): z = -0.5 g / w^2 cos(w t)."""
    time = np.arange(64) / 64
    z = bounce(7.0 * (1 + 0.5 * np.cos(2 * np.pi * time)), 0.5)
    np.testing.assert_allclose(z, -0.5 * GRAVITY / (4 * np.pi) ** 2 * np.cos(2 * np.pi * time), atol=1e-12)


@pytest.mark.parametrize("leg", LEGS)
def test_leg_angles_invert_the_kinematics(model, shape, leg):
    dofs = np.random.default_rng(0).uniform([-0.5, 0.2, -2.4], [0.5, 1.4, -1.0], (50, 3))
    frames = torch.zeros(50, 12, dtype=torch.float64)
    first = 3 * LEGS.index(leg)
    frames[:, first:first + 3] = torch.from_numpy(dofs)
    turn = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).expand(50, 4)
    pos, _ = shape.character.forward_kinematics(torch.zeros(50, 3, dtype=torch.float64), turn,
                                                shape.character.dof_to_rot(frames))
    foot = pos[:, model.body_index(f"{leg}_foot")].numpy()
    np.testing.assert_allclose(leg_angles(foot, model, leg), dofs, atol=1e-6)


def test_out_of_reach(model):
    with pytest.raises(UserError, match="cannot reach"):
        leg_angles(np.array([[0.19, 0.14, -0.5]]), model, "FL")
    with pytest.raises(UserError, match="FL_calf_joint would be"):
        leg_angles(np.array([[0.19, 0.14, -0.08]]), model, "FL")


@pytest.mark.parametrize("name", GAITS)
def test_feet_stand_still_for_the_duty_and_clear_the_ground(model, shape, name):
    gait = GAITS[name]
    clip = make_gait(gait, model, RADIUS)
    paths = sole_paths(clip, shape)
    stands = paths[:-1, :, 2] < 1e-4
    np.testing.assert_allclose(stands.mean(0), gait.duty, atol=0.12)  # swings begin and end flat
    both = stands & (paths[1:, :, 2] < 1e-4)
    assert np.linalg.norm(np.diff(paths, axis=0), axis=-1)[both].max() * FPS < 0.05
    assert paths[..., 2].min() > -1e-4
    np.testing.assert_allclose(paths[..., 2].max(0), gait.lift, rtol=0.12)


@pytest.mark.parametrize("name", [n for n, g in GAITS.items() if not g.yaw_rate])
def test_straight_gaits_close_and_keep_their_speed(model, name):
    clip = make_gait(GAITS[name], model, RADIUS)
    assert clip.loop_mode is LoopMode.WRAP
    np.testing.assert_allclose(clip.frames[-1, 1:], clip.frames[0, 1:], atol=1e-5)
    assert clip.frames[-1, 0] / clip.length == pytest.approx(GAITS[name].speed, rel=1e-4)
    assert 1 / clip.length == pytest.approx(GAITS[name].frequency, rel=0.03)


@pytest.mark.parametrize("name, side", [("go2_turn_left", 1), ("go2_turn_right", -1)])
def test_turns_turn(model, name, side):
    clip = make_gait(GAITS[name], model, RADIUS)
    assert clip.loop_mode is LoopMode.CLAMP
    assert clip.frames[-1, 5] == pytest.approx(side * 0.9 * clip.length, rel=1e-4)
    assert side * clip.frames[-1, 1] > 0.3


def test_pace_moves_sides_together_and_trot_diagonals(model, shape):
    pace = sole_paths(make_gait(GAITS["go2_pace"], model, RADIUS), shape)[..., 2]
    trot = sole_paths(make_gait(GAITS["go2_trot"], model, RADIUS), shape)[..., 2]

    def together(z, a, b):
        return np.corrcoef(z[:, LEGS.index(a)], z[:, LEGS.index(b)])[0, 1]

    assert together(pace, "FL", "RL") > 0.8 and together(pace, "FL", "FR") < 0
    assert together(trot, "FL", "RR") > 0.99 and together(trot, "FL", "RL") < 0


def test_the_body_sways_to_the_carrying_side(model, shape):
    clip = make_gait(GAITS["go2_pace"], model, RADIUS)
    paths = sole_paths(clip, shape)
    height = paths[..., 2]
    left_carries = height[:, [1, 3]].min(1) - height[:, [0, 2]].max(1) > 0.01
    right_carries = height[:, [0, 2]].min(1) - height[:, [1, 3]].max(1) > 0.01
    assert clip.frames[left_carries, 1].mean() - clip.frames[right_carries, 1].mean() > 0.005


@pytest.mark.parametrize("name", ["go2_pace", "go2_trot", "go2_walk", "go2_turn_left"])
def test_position_control_can_command_it(model, name):
    """kp (target - q) - kd q' = 0 needs targets q + kd / kp q'; they lie inside the action box."""
    clip = make_gait(GAITS[name], model, RADIUS)
    low, high = action_bounds(model, "pos")
    velocity = np.gradient(clip.frames[:, 6:], 1 / clip.fps, axis=0)
    target = clip.frames[:, 6:] + model.kd / model.kp * velocity
    assert (target > low).all() and (target < high).all()


def test_impossible_gaits_are_refused(model):
    with pytest.raises(UserError, match="leg"):
        make_gait(Gait((0.0, 0.5, 0.5, 0.0), 0.6, 1.0, 3.0, 0.05), model, RADIUS)


def test_command_line_makes_the_shipped_clips(tmp_path, capsys):
    assert main(["--out-dir", str(tmp_path), "--clips", "go2_pace", "go2_turn_left"]) == 0
    assert "go2_pace: 34 frames" in capsys.readouterr().out
    for name in ("go2_pace", "go2_turn_left"):
        np.testing.assert_allclose(load_motion(tmp_path / f"{name}.pkl").frames,
                                   load_motion(MOTIONS / f"go2/{name}.pkl").frames, atol=1e-5)
    assert main(["--clips", "go2_pase"]) == 2
    assert "did you mean 'go2_pace'" in capsys.readouterr().err
