"""Gaits of the Go2 from footfall timing, leg geometry and the mechanics of a point mass on legs.

How a gait is built (:func:`make_gait`), all in closed form:

* footfalls: each leg stands for the fraction ``duty`` of a period, beginning at its touch-down phase. A foothold lies
  where the leg's shoulder (the body's nominal path) passes at mid-stance, so a foot moves as far to the front as to
  the back of it. Standing feet do not move at all; swinging ones go from foothold to foothold on a quintic curve.
* body, horizontally: the mass is carried by the standing feet as an inverted pendulum, so that its acceleration is
  (g / height) times its distance from the centre of support (Kajita et al. 2001, the linear inverted pendulum). The
  periodic solution is the centre of support, its harmonic of angular frequency w divided by 1 + w^2 height / g: the
  body sways towards the feet that carry it.
* body, vertically: the sum of all legs' loads (a half sine each) minus gravity, integrated twice.
* legs: analytic inverse kinematics (hip roll, then the two-link leg in its plane).

Forces that pass through the centre of mass turn nothing, hence the trunk stays level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimickit.anim.mjcf import CharacterModel
from mimickit.anim.motion import LoopMode, MotionClip
from mimickit.clips.shape import GRAVITY
from mimickit.util.failures import UserError

LEGS = ("FL", "FR", "RL", "RR")
FPS = 60
TURN_CYCLES = 4


@dataclass(frozen=True)
class Gait:
    """Parameters of a gait; the defaults suit the Go2."""

    phases: tuple[float, float, float, float]  # touch-down of FL, FR, RL, RR, in periods
    duty: float  # fraction of the period that a foot stands
    frequency: float  # Hz; rounded so that a period is a whole number of frames
    speed: float  # m/s
    lift: float  # m, highest point of a swinging foot
    yaw_rate: float = 0.0  # rad/s
    height: float = 0.30  # m, mean height of the trunk's origin
    track: float = 0.13  # m, feet beside the middle line (0.142 is straight below the hips)


def smooth_step(s: np.ndarray) -> np.ndarray:
    """Quintic from 0 to 1 on [0, 1], at rest with no acceleration at both ends."""
    return s**3 * (10.0 - 15.0 * s + 6.0 * s**2)


def pendulum_sway(support: np.ndarray, period: float, height: float) -> np.ndarray:
    """Periodic path [n, k] (m) of a mass at ``height`` (m) over a centre of support [n, k], samples of one period (s).

    Solves y'' = (g / height) (y - support).
    """
    omega = 2.0 * np.pi * np.fft.rfftfreq(len(support), period / len(support))
    spectrum = np.fft.rfft(support, axis=0) / (1.0 + omega**2 * height / GRAVITY)[:, None]
    return np.fft.irfft(spectrum, len(support), axis=0)


def bounce(load: np.ndarray, period: float) -> np.ndarray:
    """Periodic height [n] (m, mean 0) of a mass whose legs push with ``load`` [n] (any scale), samples of a period (s).

    Solves z'' = g (load / mean(load) - 1).
    """
    omega = 2.0 * np.pi * np.fft.rfftfreq(len(load), period / len(load))
    spectrum = np.fft.rfft(load / load.mean())
    spectrum[0], omega[0] = 0.0, 1.0
    return np.fft.irfft(-GRAVITY * spectrum / omega**2, len(load))


def make_gait(gait: Gait, model: CharacterModel, foot_radius: float) -> MotionClip:
    """A clip of one period (turns: four periods, clamped, as a repeated clip does not go on in its new heading).

    Raises:
        UserError: a foothold cannot be reached (too fast, too low a frequency, too high).
    """
    frames = round(FPS / gait.frequency)
    period = frames / FPS
    cycles = TURN_CYCLES if gait.yaw_rate else 1
    time = np.arange(frames * cycles + 1) / FPS
    feet = np.stack([_foot_path(gait, model, leg, time, period) for leg in range(4)], axis=1)  # [F, 4, 3]

    path, yaw = _nominal(gait, time)
    sway, rise = _body_motion(gait, model, time[:frames], period)
    phase = np.arange(len(time)) % frames
    root = np.concatenate([path + _turn(sway[phase], yaw), (gait.height + rise[phase])[:, None]], axis=1)
    in_body = feet + np.array([0.0, 0.0, foot_radius]) - root[:, None]
    in_body[..., :2] = _turn(in_body[..., :2], -yaw[:, None])
    legs = [leg_angles(in_body[:, leg], model, LEGS[leg]) for leg in range(4)]
    root[:, :2] -= root[0, :2]
    turn = np.stack([0 * yaw, 0 * yaw, yaw], axis=1)
    mode = LoopMode.CLAMP if gait.yaw_rate else LoopMode.WRAP
    return MotionClip(mode, float(FPS), np.concatenate([root, turn, *legs], axis=1).astype(np.float32))


def _nominal(gait: Gait, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Path [..., 2] (m) and heading [...] (rad) at constant speed and yaw rate."""
    yaw = gait.yaw_rate * time
    if gait.yaw_rate:
        radius = gait.speed / gait.yaw_rate
        return np.stack([radius * np.sin(yaw), radius * (1.0 - np.cos(yaw))], axis=-1), yaw
    return np.stack([gait.speed * time, 0.0 * time], axis=-1), yaw


def _turn(xy: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.stack([c * xy[..., 0] - s * xy[..., 1], s * xy[..., 0] + c * xy[..., 1]], axis=-1)


def _foothold(gait: Gait, model: CharacterModel, leg: int, step: np.ndarray, period: float) -> np.ndarray:
    """Where (m, [..., 2]) leg ``leg`` stands in its ``step``-th stance."""
    middle, yaw = _nominal(gait, (step + gait.phases[leg] + 0.5 * gait.duty) * period)
    hip = model.local_pos[model.body_index(f"{LEGS[leg]}_hip")]
    offset = np.array([hip[0], np.sign(hip[1]) * gait.track])
    return middle + _turn(np.broadcast_to(offset, middle.shape), yaw)


def _foot_path(gait: Gait, model: CharacterModel, leg: int, time: np.ndarray, period: float) -> np.ndarray:
    """Path [F, 3] (m) of the sole."""
    step = np.floor(time / period - gait.phases[leg] + 1e-9)
    swing = np.clip((time / period - gait.phases[leg] - step - gait.duty) / (1.0 - gait.duty), 0.0, 1.0)
    here, there = (_foothold(gait, model, leg, step + k, period) for k in (0, 1))
    ground = here + smooth_step(swing)[:, None] * (there - here)
    height = gait.lift * 64.0 * (swing * (1.0 - swing)) ** 3  # at rest with no acceleration at both ends
    return np.concatenate([ground, height[:, None]], axis=1)


def _body_motion(gait: Gait, model: CharacterModel, time: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Sway [F, 2] in the heading's frame and rise [F] of the trunk (m) over one period."""
    path, yaw = _nominal(gait, time)
    load = np.zeros((4, len(time)))
    place = np.zeros((4, len(time), 2))
    for leg in range(4):
        since = time / period - gait.phases[leg]
        step = np.floor(since + 1e-9)
        stance = np.clip((since - step) / gait.duty, 0.0, 1.0)
        load[leg] = np.sin(np.pi * stance)
        place[leg] = _turn(_foothold(gait, model, leg, step, period) - path, -yaw)
    total = load.sum(0)
    support = (load[..., None] * place).sum(0) / np.maximum(total, 1e-6)[:, None]  # in flight: under the body
    return pendulum_sway(support, period, gait.height), bounce(total, period)


def leg_angles(foot: np.ndarray, model: CharacterModel, leg: str) -> np.ndarray:
    """Hip, thigh and calf angles [F, 3] (rad) that bring a foot's centre to ``foot`` [F, 3] (m, trunk's frame).

    The hip rolls about x until the leg's plane (at the sideways offset of the thigh) holds the foot; in it, the law of
    cosines gives the calf (bent backward), and thigh and calf together aim at the foot.

    Raises:
        UserError: the foot is out of reach or an angle is outside its range.
    """
    index = [model.body_index(f"{leg}_{part}") for part in ("hip", "thigh", "calf", "foot")]
    hip, thigh, calf, sole = model.local_pos[index]
    side, upper, lower = thigh[1], -calf[2], -sole[2]
    x, y, z = (foot - hip).T
    reach = np.sqrt(np.maximum(y**2 + z**2 - side**2, 1e-12))  # of the leg, within its plane
    roll = np.arctan2(y, -z) - np.arctan2(side, reach)
    far = np.hypot(x, reach)
    if (far > upper + lower).any():
        raise UserError(f"leg {leg} cannot reach {far.max():.3f} m, it is {upper + lower:.3f} m long")
    calf_angle = -np.arccos(np.clip((far**2 - upper**2 - lower**2) / (2.0 * upper * lower), -1.0, 1.0))
    thigh_angle = np.arctan2(-x, reach) - np.arctan2(lower * np.sin(calf_angle), upper + lower * np.cos(calf_angle))
    angles = np.stack([roll, thigh_angle, calf_angle], axis=1)
    dofs = [model.dof_slices[i].start for i in index[:3]]
    outside = (angles < model.dof_low[dofs]) | (angles > model.dof_high[dofs])
    if outside.any():
        frame, joint = np.argwhere(outside)[0]
        raise UserError(f"leg {leg}: {model.dof_names[dofs[joint]]} would be {angles[frame, joint]:.3f} rad in frame "
                        f"{frame}; allowed are {model.dof_low[dofs[joint]]:.3f} to {model.dof_high[dofs[joint]]:.3f}")
    return angles
