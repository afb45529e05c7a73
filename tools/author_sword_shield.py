"""Author the sword-and-shield clips: idling, walking, running, stepping aside, turning, attacks; and their datasets.

    python tools/author_sword_shield.py

Writes data/motions/sword_shield and both data/datasets/dataset_humanoid_sword_shield*.yaml. Locomotion takes legs,
root and trunk from the humanoid's clips and adds arms that carry sword and shield, with part of the recorded swing;
side steps and attacks come from planned footsteps, key poses and inverse kinematics (mimickit/clips/authoring.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mimickit.anim.motion import load_motion
from mimickit.clips.authoring import Step, aim_sword, curve_through, reach, turns_through, walk_feet, yaw_of
from mimickit.clips.check import HEADER, save_checked
from mimickit.clips.cleanup import pinned, solve_legs
from mimickit.clips.dataset import write_dataset
from mimickit.clips.feet import Feet, soles
from mimickit.clips.shape import ASSETS, CHARACTERS, Motion, Shape, pack, unpack
from mimickit.clips.vary import curve, mirror
from mimickit.util import rotations as rot
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_FAILED, EXIT_OK, explains_mistakes

SOURCES = SHIPPED / "data/motions/humanoid"
OUT = SHIPPED / "data/motions/sword_shield"
DATASETS = SHIPPED / "data/datasets"
PREFIX = "sword_shield_"
FPS = 60.0
TEMPO = 1.2  # the swings' torques fall with its square
HELD = 0.12  # s, in guard before and after an attack
SWAY = 0.3  # part of the recorded swing of a hand that a carrying hand keeps

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Arms:
    """Where hands and elbows are, and where the blade points; in the torso's frame (x forward, y left, z up; m)."""

    sword_hand: Vector
    blade: Vector
    shield_hand: Vector
    sword_elbow: Vector = (-0.5, -0.6, -1.0)  # direction from the shoulder
    shield_elbow: Vector = (0.1, 1.0, -0.8)


GUARD = Arms((0.27, -0.30, 0.02), (0.42, 0.25, 0.87), (0.33, 0.05, 0.12))
LOW = Arms((0.10, -0.36, -0.18), (0.95, 0.10, 0.15), (0.27, 0.20, -0.02), shield_elbow=(-0.3, 1.0, -0.8))


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Fighter:
    """The armed character, and the unarmed one whose clips it borrows."""

    def __init__(self) -> None:
        self.shape, self.human = Shape(ASSETS / CHARACTERS["sword_shield"]), Shape(ASSETS / CHARACTERS["humanoid"])
        names = self.human.character.body_names
        self.model = self.shape.character.model
        self.wrist = self.model.dof_slices[self.model.body_index("right_hand")]
        self.shared = [(self.joint(name), names.index(name) - 1) for name in names[1:] if name != "right_hand"]

    def joint(self, body: str) -> int:
        return self.model.body_index(body) - 1

    def rest(self, frames: int) -> Tensor:
        turn = torch.zeros(frames, self.model.num_joints, 4, dtype=torch.float64)
        turn[..., 3] = 1.0
        return turn

    def load(self, name: str) -> Motion:
        return unpack(load_motion(SOURCES / f"humanoid_{name}.pkl"), self.human)

    def dress(self, motion: Motion) -> Motion:
        """The unarmed motion with sword and shield in its hands; the wrist at rest."""
        turn = self.rest(len(motion.root_pos))
        for mine, theirs in self.shared:
            turn[:, mine] = motion.joint_rot[:, theirs]
        return replace(motion, joint_rot=turn)

    def pose_arms(self, joint_rot: Tensor, sword_hand: Tensor, blade: Tensor, shield_hand: Tensor, sword_elbow: Tensor,
                  shield_elbow: Tensor) -> Tensor:
        """Joint rotations [F, J, 4] with both arms where they are told to be (see :class:`Arms`; all [F, 3])."""
        out = joint_rot.clone()
        for side, hand, pole in (("right", sword_hand, sword_elbow), ("left", shield_hand, shield_elbow)):
            shoulder, elbow = reach(self.shape, side, hand, pole)
            out[:, self.joint(f"{side}_upper_arm")], out[:, self.joint(f"{side}_lower_arm")] = shoulder, elbow
            if side == "right":
                out[:, self.joint("right_hand")] = aim_sword(
                    rot.quat_mul(shoulder, elbow), blade, self.model.dof_low[self.wrist],
                    self.model.dof_high[self.wrist])
        return out

    def hold(self, arms: Arms, frames: int) -> list[Tensor]:
        fields = (arms.sword_hand, arms.blade, arms.shield_hand, arms.sword_elbow, arms.shield_elbow)
        return [tensor(value).expand(frames, 3).clone() for value in fields]

    def carry(self, motion: Motion, arms: Arms) -> Motion:
        """Arms that carry sword and shield, swaying with the recorded ones (:data:`SWAY` of their swing)."""
        pos, turn = self.shape.kinematics(motion)
        torso = self.model.body_index("torso")
        goals = self.hold(arms, len(pos))
        for goal, side in ((0, "right"), (2, "left")):
            hand = rot.quat_rotate(rot.quat_conj(turn[:, torso]), pos[:, self.model.body_index(f"{side}_hand")]
                                   - pos[:, torso])
            goals[goal] += SWAY * (hand - hand[:-1].mean(0)) * tensor([1.0, 0.4, 0.6])
        return replace(motion, joint_rot=self.pose_arms(motion.joint_rot, *goals))


# -- locomotion ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Gait:
    """Stepping with constant velocity (vx, vy m/s, yaw_rate rad/s), left and right foot half a period apart."""

    vx: float = 0.0
    vy: float = 0.0
    yaw_rate: float = 0.0
    period: float = 1.0
    duty: float = 0.64
    half_track: float = 0.12  # m
    height: float = 0.83  # m, of the root
    lift: float = 0.07


def stepping(gait: Gait, cycles: int, fighter: Fighter, arms: Arms, from_rest: bool = False) -> Motion:
    """A gait with arms that carry: the middle one of ``cycles`` >= 3 periods as a loop, or all, from standing."""
    frames = round(cycles * gait.period * FPS) + 1
    time = torch.arange(frames, dtype=torch.float64) / FPS
    total = cycles * gait.period
    if from_rest:  # speed up and slow down over half a period each
        ramp = 0.5 * gait.period
        rate = torch.minimum(time, total - time).clamp_max(ramp) / ramp
        rate = rate * rate * (3.0 - 2.0 * rate)
        progress = torch.cat([torch.zeros(1, dtype=torch.float64), (0.5 * (rate[1:] + rate[:-1])).cumsum(0) / FPS])
    else:
        rate, progress = torch.ones(frames, dtype=torch.float64), time

    def body(at: float) -> tuple[float, float, float]:
        i = max(0.0, at) * FPS
        low = min(int(i), frames - 2)
        p = float(progress[low] + (i - low) * (progress[low + 1] - progress[low]))
        p = p + min(0.0, at) * float(rate[0])
        yaw = gait.yaw_rate * p
        if abs(gait.yaw_rate) < 1e-9:
            return gait.vx * p, gait.vy * p, yaw
        s, c = math.sin(yaw) / gait.yaw_rate, (1.0 - math.cos(yaw)) / gait.yaw_rate
        return gait.vx * s - gait.vy * c, gait.vx * c + gait.vy * s, yaw

    def foothold(foot: int, at: float) -> tuple[float, float, float]:
        x, y, yaw = body(min(at, total) if from_rest else at)
        side = gait.half_track * (1 if foot else -1)
        return (x - math.sin(yaw) * side + 0.03 * math.cos(yaw), y + math.cos(yaw) * side + 0.03 * math.sin(yaw), yaw)

    stance, swing = gait.duty * gait.period, (1 - gait.duty) * gait.period
    steps, first = [], []
    for foot in (0, 1):
        down = -1.5 * gait.period + foot * 0.5 * gait.period
        first.append(foothold(foot, 0.0 if from_rest else down + 0.5 * stance))
        while down < total + gait.period:
            down += gait.period
            begin = down - swing
            if (begin >= 0.0 and down <= total) or not from_rest:
                steps.append(Step(foot, begin, down, *foothold(foot, down + 0.5 * stance), lift=gait.lift))
    if from_rest:  # the last step of each foot ends where it stands at the end
        for foot in (0, 1):
            last = max((s for s in steps if s.foot == foot), key=lambda s: s.end)
            steps[steps.index(last)] = replace(last, **dict(zip(("x", "y", "yaw"), foothold(foot, total))))
    feet = walk_feet(first, steps, frames, FPS, fighter.shape)
    path = tensor([body(t) for t in time.tolist()])
    wave = 2.0 * math.pi * time / gait.period  # the right foot comes down at 0.5, stands around 0.5 + duty / 2
    beat = wave - math.pi * gait.duty - math.pi
    sway = 0.025 * rate * torch.cos(beat)  # to the right while the right foot stands
    root = torch.stack([path[:, 0] + sway * torch.sin(path[:, 2]), path[:, 1] - sway * torch.cos(path[:, 2]),
                        gait.height + 0.012 * rate * torch.cos(2.0 * beat)], dim=-1)
    turn = rot.yaw_quat(path[:, 2])
    joint_rot = fighter.rest(frames)
    joint_rot[:, fighter.joint("torso")] = rot.exp_map_to_quat(torch.stack(
        [-0.03 * rate * torch.cos(beat), torch.full_like(time, 0.08), 0.05 * rate * torch.sin(beat)], dim=-1))
    joint_rot[:, fighter.joint("head")] = rot.exp_map_to_quat(torch.stack(
        [0.02 * rate * torch.cos(beat), torch.full_like(time, -0.06), -0.04 * rate * torch.sin(beat)], dim=-1))
    goals = fighter.hold(arms, frames)
    goals[0] += torch.stack([0.025 * rate * torch.sin(beat), 0 * rate, 0.012 * rate * torch.cos(2 * beat)], dim=-1)
    goals[2] += torch.stack([-0.02 * rate * torch.sin(beat), 0 * rate, 0.01 * rate * torch.cos(2 * beat)], dim=-1)
    motion = Motion(root, turn, fighter.pose_arms(joint_rot, *goals), FPS, False)
    motion = legs(motion, feet, fighter)
    if from_rest:
        return motion
    period = round(gait.period * FPS)
    keep = slice(period, 2 * period + 1)
    start = motion.root_pos[period] * tensor([1.0, 1.0, 0.0])
    return Motion(motion.root_pos[keep] - start, motion.root_rot[keep], motion.joint_rot[keep], FPS, True)


def legs(motion: Motion, feet: Feet, fighter: Fighter) -> Motion:
    """Legs solved for planned feet; each thigh is first turned with its foot, so that the knee points over the toes."""
    joint_rot = motion.joint_rot.clone()
    for foot, side in enumerate(("right", "left")):
        twist = rot.wrap_angle(yaw_of(feet.rot[:, foot]) - yaw_of(motion.root_rot))
        joint_rot[:, fighter.joint(f"{side}_thigh")] = rot.yaw_quat(twist)
    return solve_legs(replace(motion, joint_rot=joint_rot), feet, fighter.shape)


def reversed_in_time(motion: Motion) -> Motion:
    """The motion played backwards, beginning above the world's origin."""
    root = motion.root_pos.flip(0)
    start = root[:1] * tensor([1.0, 1.0, 0.0])
    return replace(motion, root_pos=root - start, root_rot=motion.root_rot.flip(0), joint_rot=motion.joint_rot.flip(0))


def idle(fighter: Fighter, arms: Arms, shift: float, breath: float, turn: float, period: float = 4.0) -> Motion:
    """Standing in the fighting stance: breathing, weight going from foot to foot (m), looking around (rad); a loop."""
    frames = round(period * FPS) + 1
    wave = 2.0 * math.pi * torch.arange(frames, dtype=torch.float64) / FPS / period
    base = stance_keys(fighter, [Key(0.0, arms)], [], 2)
    hold = replace(base, root_pos=base.root_pos[:1].expand(frames, 3).clone(),
                   root_rot=base.root_rot[:1].expand(frames, 4),
                   joint_rot=base.joint_rot[:1].expand(frames, -1, 4).clone(), loops=True)
    feet = walk_feet(STANCE, [], frames, FPS, fighter.shape)
    hold.root_pos[:, 1] += shift * torch.sin(wave)
    hold.root_pos[:, 2] += 0.006 * torch.cos(2 * wave) - 0.006
    joint_rot = hold.joint_rot

    def also(body: str, exp_map: Tensor) -> None:
        joint = fighter.joint(body)
        joint_rot[:, joint] = rot.quat_mul(joint_rot[:, joint], rot.exp_map_to_quat(exp_map))

    slow, fast = torch.sin(wave), torch.sin(2 * wave)
    also("torso", torch.stack([shift * slow, breath * fast, 0.4 * turn * slow], -1))
    also("head", torch.stack([torch.zeros_like(wave), -breath * fast, turn * slow], -1))
    goals = fighter.hold(arms, frames)
    goals[0][:, 2] += 0.012 * torch.sin(2 * wave + 0.5)
    goals[2][:, 2] += 0.010 * torch.sin(2 * wave + 0.2)
    goals[1][:, 0] += 0.06 * torch.sin(wave)
    return legs(replace(hold, joint_rot=fighter.pose_arms(joint_rot, *goals)), feet, fighter)


# -- attacks ---------------------------------------------------------------------------------------------------------

RIGHT, LEFT = 0, 1
STANCE = ((-0.20, -0.13, -0.55), (0.20, 0.13, 0.0))  # right foot behind, left foot in front: x, y, yaw


@dataclass(frozen=True)
class Key:
    """A key pose: arms, and how pelvis and chest are turned (rad, from facing along x; positive: left, forward)."""

    time: float
    arms: Arms
    pelvis_yaw: float = -0.25
    chest_yaw: float = -0.15  # against the world, as the pelvis
    chest_pitch: float = 0.12
    chest_roll: float = 0.0
    weight: float = 0.5  # on the left foot: 0 right .. 1 left; the pelvis is between the feet accordingly
    height: float = 0.78  # m, of the pelvis


def stance_keys(fighter: Fighter, keys: list[Key], steps: list[Step], frames: int) -> Motion:
    """The clamped motion through key poses, with both feet on the ground but for ``steps``."""
    keys = keys if len(keys) > 1 else [keys[0], replace(keys[0], time=keys[0].time + 1.0)]
    times = [key.time for key in keys]
    feet = walk_feet(STANCE, steps, frames, FPS, fighter.shape)
    numbers = tensor([[k.pelvis_yaw, k.chest_yaw, k.chest_pitch, k.chest_roll, k.weight, k.height] for k in keys])
    pelvis_yaw, chest_yaw, pitch, roll, weight, height = curve_through(times, numbers, frames, FPS).unbind(1)
    ground = soles(feet, fighter.shape)[..., :2]
    support = ground[:, 0] + weight.unsqueeze(-1) * (ground[:, 1] - ground[:, 0])
    facing = feet_heading(feet)
    root_rot = rot.quat_mul(rot.yaw_quat(facing + pelvis_yaw), rot.exp_map_to_quat(
        torch.stack([0.2 * roll, 0.25 * pitch, torch.zeros_like(roll)], dim=-1)))
    root_pos = torch.cat([support - 0.06 * torch.stack([facing.cos(), facing.sin()], -1) * pitch.unsqueeze(-1) * 2,
                          height.unsqueeze(-1)], dim=-1)
    spine = tensor([[k.chest_roll * 0.8, k.chest_pitch * 0.75, 0.0] for k in keys])
    arms = fighter.pose_arms(fighter.rest(len(keys)), *(tensor([getattr(k.arms, name) for k in keys]) for name in
                                                        ("sword_hand", "blade", "shield_hand", "sword_elbow",
                                                         "shield_elbow")))
    joint_rot = fighter.rest(frames)
    for body in ("right_upper_arm", "right_lower_arm", "right_hand", "left_upper_arm", "left_lower_arm"):
        joint_rot[:, fighter.joint(body)] = turns_through(times, arms[:, fighter.joint(body)], frames, FPS)
    lean = curve_through(times, spine, frames, FPS)
    twist = chest_yaw - pelvis_yaw
    torso = rot.quat_mul(rot.yaw_quat(twist), rot.exp_map_to_quat(lean))
    joint_rot[:, fighter.joint("torso")] = torso
    gaze = rot.quat_mul(rot.quat_conj(rot.quat_mul(root_rot, torso)), rot.yaw_quat(facing))
    look = rot.quat_to_exp_map(gaze)
    joint_rot[:, fighter.joint("head")] = rot.exp_map_to_quat(0.8 * look.clamp(-0.6, 0.6))
    return legs(Motion(root_pos, root_rot, joint_rot, FPS, False), feet, fighter)


def feet_heading(feet: Feet) -> Tensor:
    """Where the fighter faces [F] (rad): the mean yaw of the feet, less that of the stance."""
    yaw = [yaw_of(feet.rot[:, i]) for i in (0, 1)]
    return 0.5 * (yaw[0] + yaw[1]) - 0.5 * (STANCE[0][2] + STANCE[1][2])


def arms(sword_hand: Vector, blade: Vector, shield_hand: Vector = (0.28, 0.16, 0.08),
         elbow: Vector = (-0.4, -0.8, -0.8), shield_elbow: Vector = (0.0, 1.0, -0.8)) -> Arms:
    """Arms with elbows where they are in most attacks."""
    return Arms(sword_hand, blade, shield_hand, elbow, shield_elbow)


def attack(fighter: Fighter, keys: list[Key], steps: list[Step], seconds: float) -> Motion:
    """From guard through the keys to guard, all :data:`TEMPO` times slower; clamped."""
    held = [Key(time, GUARD) for time in (0.0, HELD, seconds - HELD, seconds)]
    keys = [replace(key, time=TEMPO * key.time) for key in (*held[:2], *keys, *held[2:])]
    steps = [replace(step, start=TEMPO * step.start, end=TEMPO * step.end) for step in steps]
    return stance_keys(fighter, keys, steps, round(TEMPO * seconds * FPS) + 1)


def lunge(start: float, reach_x: float, back: float) -> list[Step]:
    """The left foot steps forward by ``reach_x`` (m), the right one follows at ``back`` (s)."""
    left, right = STANCE[LEFT], STANCE[RIGHT]
    return [Step(LEFT, start, start + 0.3, left[0] + reach_x, left[1], left[2]),
            Step(RIGHT, back, back + 0.35, right[0] + reach_x, right[1], right[2])]


RAISED = arms((0.02, -0.22, 0.62), (-0.75, 0.15, 0.65), elbow=(0.3, -1.0, 0.0))
CHOPPED = arms((0.42, -0.02, -0.04), (0.80, 0.20, -0.50), (0.14, 0.34, 0.0), elbow=(0.0, -1.0, -0.6))
STRUCK_DOWN = arms((0.52, -0.06, 0.24), (0.90, 0.1, 0.45), (0.20, 0.30, 0.02), elbow=(0.0, -1.0, -0.5))
WOUND_RIGHT = arms((-0.06, -0.52, 0.34), (-0.45, -0.45, 0.80), (0.33, 0.10, 0.14), elbow=(-0.4, -1.0, 0.1))
SLASHED = arms((0.48, -0.16, 0.22), (0.85, -0.35, 0.2), (0.16, 0.34, 0.06), elbow=(0.0, -1.0, -0.3))
WOUND_LEFT = arms((0.26, 0.16, 0.26), (0.10, 0.95, 0.40), (0.08, 0.40, 0.0), elbow=(0.7, -1.0, 0.1))
BACKHAND = arms((0.49, -0.22, 0.22), (0.85, 0.30, 0.15), (0.12, 0.38, 0.02), elbow=(0.1, -1.0, -0.3))
SWUNG_OUT = arms((0.10, -0.58, 0.20), (0.25, -0.90, 0.25), (0.22, 0.24, 0.06), elbow=(-0.4, -1.0, -0.2))
DRAWN = arms((-0.02, -0.34, 0.06), (0.97, 0.08, 0.10), (0.36, 0.10, 0.14), elbow=(-1.0, -0.5, -0.2))
THRUST = arms((0.54, -0.10, 0.20), (0.96, 0.05, 0.05), (0.12, 0.36, 0.04), elbow=(-0.1, -0.8, -0.8))
COILED = arms((0.18, -0.36, 0.0), (0.45, 0.1, 0.88), (0.14, 0.18, 0.12), shield_elbow=(-0.3, 1.0, -0.6))
BASHED = arms((0.05, -0.40, -0.02), (0.45, -0.1, 0.88), (0.44, 0.01, 0.26), shield_elbow=(-0.1, 0.1, -1.0))
BLOCKED = arms((0.08, -0.38, 0.06), (0.2, -0.2, 0.95), (0.32, -0.14, 0.36), shield_elbow=(0.0, 0.3, -1.0))
DIPPED = arms((0.02, -0.46, -0.16), (0.20, -0.50, -0.80), (0.33, 0.10, 0.16), elbow=(-0.8, -0.7, -0.2))
UPPERCUT = arms((0.44, -0.08, 0.52), (0.45, 0.45, 0.77), (0.14, 0.36, 0.02), elbow=(0.3, -1.0, 0.1))


def chop(t: float) -> list[Key]:
    """From overhead: raise, strike down, follow through."""
    return [Key(t + 0.42, RAISED, -0.45, -0.55, -0.10, 0.0, 0.30, 0.82),
            Key(t + 0.65, STRUCK_DOWN, -0.05, 0.15, 0.25, 0.0, 0.60, 0.78),
            Key(t + 0.82, CHOPPED, 0.05, 0.32, 0.42, 0.0, 0.68, 0.76)]


def forehand(t: float) -> list[Key]:
    """From the right to the left."""
    return [Key(t + 0.38, WOUND_RIGHT, -0.60, -0.85, 0.05, 0.08, 0.30, 0.80),
            Key(t + 0.60, SLASHED, -0.05, 0.10, 0.18, 0.0, 0.58, 0.78),
            Key(t + 0.80, WOUND_LEFT, 0.18, 0.55, 0.22, -0.06, 0.68, 0.77)]


def backhand(t: float) -> list[Key]:
    """From the left to the right."""
    return [Key(t + 0.36, WOUND_LEFT, 0.05, 0.40, 0.15, -0.05, 0.35, 0.79),
            Key(t + 0.54, BACKHAND, -0.20, -0.05, 0.20, 0.0, 0.58, 0.78),
            Key(t + 0.70, SWUNG_OUT, -0.45, -0.55, 0.15, 0.06, 0.62, 0.78)]


def thrust(t: float) -> list[Key]:
    return [Key(t + 0.38, DRAWN, -0.55, -0.75, 0.08, 0.0, 0.30, 0.80),
            Key(t + 0.61, THRUST, 0.05, 0.40, 0.28, 0.0, 0.66, 0.76),
            Key(t + 0.71, THRUST, 0.05, 0.40, 0.28, 0.0, 0.66, 0.76)]


def bash(t: float) -> list[Key]:
    return [Key(t + 0.36, COILED, -0.15, 0.15, 0.20, 0.0, 0.35, 0.76),
            Key(t + 0.60, BASHED, -0.50, -0.75, 0.30, 0.0, 0.78, 0.77),
            Key(t + 0.70, BASHED, -0.50, -0.75, 0.30, 0.0, 0.78, 0.77)]


def uppercut(t: float) -> list[Key]:
    return [Key(t + 0.38, DIPPED, -0.60, -0.80, 0.25, 0.10, 0.30, 0.74),
            Key(t + 0.58, SLASHED, -0.15, -0.05, 0.15, 0.0, 0.55, 0.79),
            Key(t + 0.77, UPPERCUT, 0.10, 0.35, -0.02, 0.0, 0.64, 0.84)]


def block(t: float) -> list[Key]:
    low = Key(t + 0.32, BLOCKED, -0.45, -0.45, 0.10, 0.0, 0.40, 0.74)
    return [low, replace(low, time=t + 0.70)]


def attacks(fighter: Fighter) -> dict[str, Motion]:
    step = lunge(0.25, 0.25, 0.75)
    left, right = STANCE[LEFT], STANCE[RIGHT]
    two = [*lunge(0.25, 0.22, 0.78), Step(LEFT, 1.20, 1.48, left[0] + 0.42, left[1], left[2]),
           Step(RIGHT, 1.62, 1.95, right[0] + 0.42, right[1], right[2])]
    back = [Step(RIGHT, 0.10, 0.40, right[0] - 0.35, right[1], right[2]),
            Step(LEFT, 0.42, 0.72, left[0] - 0.35, left[1], left[2])]
    return {
        "atk_overhead": attack(fighter, chop(0.1), step, 1.7),
        "atk_slash_left": attack(fighter, forehand(0.1), step, 1.7),
        "atk_slash_right": attack(fighter, backhand(0.1), step, 1.7),
        "atk_thrust": attack(fighter, thrust(0.1), step, 1.7),
        "atk_uppercut": attack(fighter, uppercut(0.1), step, 1.7),
        "atk_shield_bash": attack(fighter, bash(0.1), step, 1.6),
        "atk_combo_01": attack(fighter, [*forehand(0.1), *backhand(0.82)[1:], *chop(1.18)], two, 2.7),
        "atk_combo_02": attack(fighter, [*bash(0.1), *thrust(0.95)], two, 2.5),
        "block": attack(fighter, block(0.1), [], 1.5),
        "dodge_back": attack(fighter, [Key(0.35, BLOCKED, -0.35, -0.35, 0.05, 0.0, 0.35, 0.77),
                                       Key(0.75, BLOCKED, -0.35, -0.35, 0.12, 0.0, 0.5, 0.77)], back, 1.4),
    }


def locomotion(fighter: Fighter) -> dict[str, Motion]:
    shape = fighter.shape

    def recorded(name: str, carried: Arms, change: Callable[[Motion], Motion] = lambda motion: motion) -> Motion:
        return fighter.carry(fighter.dress(change(fighter.load(name))), carried)

    def slower(factor: float) -> Callable[[Motion], Motion]:
        return lambda motion: replace(motion, fps=motion.fps * factor)

    def curved(rate: float) -> Callable[[Motion], Motion]:
        return lambda motion: curve(motion, rate, fighter.human)

    def mirrored(motion: Motion) -> Motion:
        return mirror(motion, fighter.human)

    strafe = Gait(vy=0.5, height=0.80)
    return {
        "idle": idle(fighter, LOW, 0.02, 0.02, 0.15, 4.0),
        "idle_guard": idle(fighter, GUARD, 0.03, 0.02, 0.08, 3.0),
        "walk_forward": recorded("walk", LOW),
        "walk_forward_guard": recorded("walker_0walk_forward", GUARD),
        "walk_slow": recorded("walk", GUARD, slower(0.8)),
        "walk_fast": recorded("walk", LOW, lambda motion: slower(1.15)(mirrored(motion))),
        "walk_backward": pinned(fighter.carry(fighter.dress(reversed_in_time(slower(0.85)(fighter.load("walk")))),
                                              GUARD), shape),
        "strafe_left": stepping(strafe, 3, fighter, GUARD),
        "strafe_right": stepping(replace(strafe, vy=-0.5), 3, fighter, GUARD),
        "advance": stepping(Gait(vx=0.45, height=0.80), 3, fighter, GUARD),
        "retreat": stepping(Gait(vx=-0.4, height=0.80), 3, fighter, GUARD),
        "run_forward": recorded("run", LOW),
        "run_forward_slow": recorded("run", GUARD, slower(0.85)),
        "run_left": recorded("run", LOW, curved(0.5)),
        "run_right": recorded("run", LOW, lambda motion: mirrored(curved(0.5)(motion))),
        "walk_left": recorded("walk", LOW, curved(0.5)),
        "walk_right": recorded("walk", LOW, lambda motion: mirrored(curved(0.5)(motion))),
        "turn_left0": recorded("walker_turn_left0", GUARD),
        "turn_left1": recorded("walker_turn_left1", LOW),
        "turn_right0": recorded("walker_turn_right0", GUARD),
        "turn_right1": recorded("walker_turn_right1", LOW),
        "turn_in_place_left": stepping(Gait(yaw_rate=1.0, height=0.80), 3, fighter, GUARD, from_rest=True),
        "turn_in_place_right": stepping(Gait(yaw_rate=-1.0, height=0.80), 3, fighter, GUARD, from_rest=True),
    }


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out-dir", type=Path, default=OUT, help="default: data/motions/sword_shield")
    parser.add_argument("--dataset-dir", type=Path, default=DATASETS, help="default: data/datasets")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fighter = Fighter()
    moves, fights = locomotion(fighter), attacks(fighter)
    print(HEADER)
    files = {name: args.out_dir / f"{PREFIX}{name}.pkl" for name in {**moves, **fights}}
    clean = [save_checked(files[name], pack(motion, fighter.shape), fighter.shape)
             for name, motion in {**moves, **fights}.items()]
    written = "Written by tools/author_sword_shield.py."
    write_dataset(args.dataset_dir / "dataset_humanoid_sword_shield_locomotion.yaml",
                  f"Idling, walking, running and turning with sword and shield. {written}",
                  {files[name]: 1.0 for name in moves})
    write_dataset(args.dataset_dir / "dataset_humanoid_sword_shield.yaml",
                  f"Everything with sword and shield; fighting counts twice. {written}",
                  {path: 2.0 if name in fights else 1.0 for name, path in files.items()})
    return EXIT_OK if all(clean) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
