"""The humanoid's clips for other bodies: robots by inverse kinematics, SMPL by copied rotations.

Robots of hinges (:func:`retarget_robot`): the source is scaled by leg length; its feet are set further apart by a part
of the difference of hip widths and pinned where they stand (:mod:`mimickit.clips.feet`); then, frame by frame,
differential inverse kinematics (mink on MuJoCo, DAQP solver) brings feet, pelvis, chest, elbows and hands as near to
their targets as the joints' ranges allow. All joints are smoothed, and the legs solved once more. SMPL
(:func:`retarget_smpl`) has the humanoid's limbs: rotations are copied, those of chest and neck spread over the longer
chains, and legs solved in closed form for the pinned feet. Looping clips are treated as three periods in a row, of
which the middle one is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mimickit.anim.motion import LoopMode, MotionClip
from mimickit.clips.cleanup import repeated, solve_legs
from mimickit.clips.feet import Feet, feet_of, levelled, lock, soles, stances
from mimickit.clips.filters import blur, envelope, lerp_rows, resample_grid, slerp_rows
from mimickit.clips.shape import Motion, Shape, compiled, pack, unpack
from mimickit.util import rotations as rot
from mimickit.util.failures import UserError

FPS = 60.0
FLATTEN, UPRIGHT = 0.9, 0.96  # of a standing foot's tilt; cosine of the tilt up to which a foot stands
TILT_SCALED, TILT_FREE = 0.03, 0.15  # m: the tilt of long feet is scaled below this height, is free above that
NEAR_GROUND = 0.15  # m, a foot lower than this may stretch its leg only so far:
SMPL_REACH = 0.985  # of a leg's length
TRACK_WIDENING = 0.6  # of the difference of hip widths
SMOOTH = 0.025  # s, standard deviation of the low-pass of source and joints, but for:
SMOOTH_CLIPS = {"run": 0.012, "jump": 0.012}
BENT_KNEE = 0.06  # rad; a straight leg would stick there
ITERATIONS, FIRST_ITERATIONS, DAMPING, STEP = 12, 150, 0.05, 0.02
FOOT_COST, PELVIS_COST, TORSO_COST, ARM_COST = (50.0, 10.0), ((4.0, 4.0, 6.0), 3.0), 1.0, 1.0
POSTURE = (("knee", 0.5), ("calf", 0.5), ("wrist", 0.4), ("waist", 0.15), ("shoulder", 0.12), ("upper_arm", 0.12),
           ("hip_yaw", 0.1), ("hip_roll", 0.1), ("thigh", 0.1), ("", 0.02))  # first match counts
FINAL_PELVIS_COST, FINAL_POSTURE, FINAL_LEG_POSTURE = 20.0, 1.0, 0.4
FREE_FOOT = 2e-3  # of its cost, for a foot in the air: there, smooth joints count
PINNED, FREE = 0.03, 0.12  # m, heights of a sole between which a foot becomes free
HAND_HEIGHT = 0.05  # m, lowest target of a hand
SINK_ALLOWED = 0.01  # m, of other bodies than feet
HUMAN = {"left": ("left_upper_arm", "left_lower_arm", "left_hand"),
         "right": ("right_upper_arm", "right_lower_arm", "right_hand")}


@dataclass(frozen=True)
class Robot:
    """Names of a robot's parts; sides are left, right (as its feet in ``mimickit.clips.shape.FEET``)."""

    char: str  # folder below data/motions
    prefix: str  # of its clips
    torso: str  # body that carries the shoulders
    hips: tuple[str, str]  # bodies of the first leg joints
    tracks: tuple[str, str]  # bodies right above the feet at rest
    arms: tuple[tuple[str, str, str], tuple[str, str, str]]  # bodies at shoulder, elbow, hand
    knees: tuple[str, str]  # dofs
    leg_joints: tuple[str, ...]  # what the names of leg dofs contain
    lower: float  # m, pelvis below the scaled one
    reach: float  # of a leg's length, the most it stretches near the ground
    outward: float  # m, elbows and hands away from the trunk
    clips: tuple[str, ...]


CLIPS = ("walk", "walk_b", "run", "jump", "walker_turn_left0", "walker_turn_left1", "walker_turn_right0",
         "walker_turn_right1")
SOURCE_NAMES = {"walk_b": "walker_0walk_forward"}
ROBOTS = {robot.char: robot for robot in (
    Robot("g1", "g1", "torso_link", ("left_hip_pitch_link", "right_hip_pitch_link"),
          ("left_hip_yaw_link", "right_hip_yaw_link"),
          (("left_shoulder_roll_link", "left_elbow_link", "left_wrist_yaw_link"),
           ("right_shoulder_roll_link", "right_elbow_link", "right_wrist_yaw_link")),
          ("left_knee_joint", "right_knee_joint"), ("hip", "knee", "ankle"), 0.015, 0.98, 0.12,
          (*CLIPS, "kick", "punch", "spinkick", "cartwheel")),
    Robot("hightorque_pi_plus", "pi_plus", "base_link", ("l_hip_pitch_link", "r_hip_pitch_link"),
          ("l_thigh_link", "r_thigh_link"),
          (("l_shoulder_roll_link", "l_elbow_link", "l_wrist_link"),
           ("r_shoulder_roll_link", "r_elbow_link", "r_wrist_link")),
          ("l_calf_joint", "r_calf_joint"), ("hip", "thigh", "calf", "ankle"), 0.007, 0.98, 0.05, CLIPS),
)}
SMPL_CLIPS = (*CLIPS, "kick", "punch", "spinkick")


def resampled(motion: Motion, fps: float) -> Motion:
    """The motion at (about) another rate; its length is kept."""
    low, part, fps = resample_grid(len(motion.root_pos), motion.fps, fps)
    turns = slerp_rows(torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1), low, part)
    return replace(motion, root_pos=lerp_rows(motion.root_pos, low, part), root_rot=turns[:, 0], joint_rot=turns[:, 1:],
                   fps=fps)


def smoothed(motion: Motion, sigma: float) -> Motion:
    """The motion with root and joints low-passed along time (standard deviation ``sigma`` s); ends are held."""
    def mean(quats: Tensor) -> Tensor:
        flips = (quats[1:] * quats[:-1]).sum(-1, keepdim=True).sign().cumprod(0)
        quats = torch.cat([quats[:1], quats[1:] * flips])
        return rot.quat_normalize(blur(quats.flatten(1), sigma * motion.fps, loops=False).view_as(quats))

    return replace(motion, root_pos=blur(motion.root_pos, sigma * motion.fps, loops=False),
                   root_rot=mean(motion.root_rot), joint_rot=mean(motion.joint_rot))


def lengthened(motion: Motion) -> Motion:
    """Three periods of a looping clip; a clamped one unchanged."""
    return repeated(motion, 3) if motion.loops else motion


def shortened(motion: Motion) -> Motion:
    """The middle one of three periods, starting above the world's origin, with equal ends. A clamped clip is only
    moved."""
    if motion.loops:
        period = (len(motion.root_pos) - 1) // 3
        keep = slice(period, 2 * period + 1)
        motion = replace(motion, root_pos=motion.root_pos[keep].clone(), root_rot=motion.root_rot[keep].clone(),
                         joint_rot=motion.joint_rot[keep].clone())
        motion.root_rot[-1], motion.joint_rot[-1] = motion.root_rot[0], motion.joint_rot[0]
        motion.root_pos[-1, 2] = motion.root_pos[0, 2]
    start = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64) * motion.root_pos[0]
    return replace(motion, root_pos=motion.root_pos - start)


def _rest(shape: Shape) -> Tensor:
    """Body positions [B, 3] (m) with all joints at zero and the root at the origin."""
    model = shape.character.model
    turn = torch.zeros(1, model.num_joints, 4, dtype=torch.float64)
    turn[..., 3] = 1.0
    unit = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    return shape.character.forward_kinematics(torch.zeros(1, 3, dtype=torch.float64), unit, turn)[0][0]


def _scaled_feet(source: Motion, human: Shape, shape: Shape, scale: float, widen: float) -> Feet:
    """Targets for the feet of ``shape`` (left, right): scaled soles, further apart by ``widen`` m each, pinned.

    Near the ground, feet that are longer than the scaled human's are tilted less. The lowest point of a foot is as high
    as the human's, scaled.
    """
    feet = feet_of(source, human)  # right, left
    middle = (soles(feet, human) * scale)[:, [1, 0]]
    side = rot.quat_rotate(rot.heading_quat(source.root_rot), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    middle += torch.stack([side, -side], dim=1) * widen
    heights = human.sole_heights(feet.pos, feet.rot)[:, [1, 0]]
    near = ((TILT_FREE - heights) / (TILT_FREE - TILT_SCALED)).clamp(0.0, 1.0)
    turn = levelled(feet.rot[:, [1, 0]], near * (1.0 - min(1.0, scale * human.foot_length() / shape.foot_length())))
    pos = middle - rot.quat_rotate(turn, shape.sole)
    pos[..., 2] += scale * heights - shape.sole_heights(pos, turn)
    when = stances(feet, human, source.fps, UPRIGHT)[::-1]
    return lock(Feet(pos, turn), shape, source.fps, FLATTEN, when)


def within_reach(root: Tensor, turn: Tensor, feet: Feet, hips: Tensor, reach: Tensor, shape: Shape,
                 fps: float) -> Tensor:
    """Root positions [F, 3], lowered smoothly where a leg near the ground would have to be (almost) straight.

    Args:
        root: [F, 3] m, root's positions; turn: [F, 4], its rotations.
        hips: [2, 3] m, hip joints in the root's frame; reach: [2] m, the most that the legs may stretch.
    """
    leg = feet.pos - root.unsqueeze(1) - rot.quat_rotate(turn.unsqueeze(1), hips)
    allowed = (reach**2 - leg[..., :2].square().sum(-1)).clamp_min(0.0).sqrt()
    near = shape.sole_heights(feet.pos, feet.rot) < NEAR_GROUND
    drop = torch.where(near, -leg[..., 2] - allowed, 0.0).amax(1).clamp_min(0.0)
    lowered = root.clone()
    lowered[:, 2] -= envelope(drop, fps, loops=False)
    return lowered


def held(feet: Feet, shape: Shape) -> Tensor:
    """How firmly a foot is held in place [F, 2]: 1 on the ground, 0 in the air."""
    part = ((FREE - shape.sole_heights(feet.pos, feet.rot)) / (FREE - PINNED)).clamp(0.0, 1.0)
    return part * part * (3.0 - 2.0 * part)


def lift_out(motion: Motion, shape: Shape) -> Tensor:
    """How far to lift the root [F] (m), smoothly, so that no body other than the feet sinks into the ground."""
    others = [b for b in range(shape.character.num_bodies) if not any(b in parts for parts in shape.foot_parts)]
    depth = (-SINK_ALLOWED - shape.heights(*shape.kinematics(motion))[:, others].amin(1)).clamp_min(0.0)
    return envelope(depth, motion.fps, loops=False)


@dataclass(frozen=True)
class Targets:
    """World poses to reach, F frames: positions [F, 3] or [F, 2, 3] (left, right), rotations [F, 4]; knee [F, 2]."""

    feet: Feet
    pelvis_pos: Tensor
    pelvis_rot: Tensor
    torso_rot: Tensor
    elbows: Tensor
    hands: Tensor
    knees: Tensor


def make_targets(source: Motion, human: Shape, shape: Shape, robot: Robot) -> Targets:
    """Where a robot's parts should be for each frame of the humanoid's motion."""
    rest, model = _rest(shape), shape.character.model
    human_rest, names = _rest(human), human.character.model
    pos, turn = human.kinematics(source)

    def at(name: str) -> Tensor:
        return rest[model.body_index(name)]

    hip, track, foot = at(robot.hips[0]), at(robot.tracks[0]), rest[shape.feet[0]]
    human_thigh, human_foot = human_rest[names.body_index("left_thigh")], human_rest[names.body_index("left_foot")]
    scale = float((hip[2] - foot[2]) / (human_thigh[2] - human_foot[2]))
    widen = TRACK_WIDENING * float(track[1] - scale * human_thigh[1])
    human_ankle, ankle = -float(human.sole[0, 2]), -float(shape.sole[0, 2])

    hips = source.root_pos * scale
    hips[:, 2] = scale * (source.root_pos[:, 2] - human_ankle) + ankle - robot.lower
    pelvis_pos = hips - rot.quat_rotate(source.root_rot, torch.stack([0 * hip[2], 0 * hip[2], hip[2]]).expand_as(hips))
    feet = _scaled_feet(source, human, shape, scale, widen)
    reach = robot.reach * (hip[2] - foot[2]).repeat(2)
    sides = torch.stack([torch.stack([hip[0], y, hip[2]]) for y in (track[1], -track[1])])
    pelvis_pos = within_reach(pelvis_pos, source.root_rot, feet, sides, reach, shape, source.fps)
    torso_rot = turn[:, names.body_index("torso")]
    torso = pelvis_pos + rot.quat_rotate(source.root_rot, at(robot.torso).expand_as(hips))
    elbows, hands = [], []
    for side, arm in enumerate(robot.arms):
        bones = [pos[:, names.body_index(name)] for name in HUMAN[("left", "right")[side]]]
        shoulder, elbow, hand = (at(name) for name in arm)
        outward = torch.tensor([0.0, (1.0, -1.0)[side] * robot.outward, 0.0], dtype=torch.float64)
        start = torso + rot.quat_rotate(torso_rot, (shoulder - at(robot.torso)).expand_as(torso))
        elbows.append(start + rot.normalize(bones[1] - bones[0]) * (elbow - shoulder).norm()
                      + rot.quat_rotate(torso_rot, outward.expand_as(torso)))
        hands.append(elbows[-1] + rot.normalize(bones[2] - bones[1]) * (hand - elbow).norm())
        hands[-1][:, 2].clamp_min_(HAND_HEIGHT)
    knee = [names.dof_slices[names.body_index(f"{side}_shin")].start for side in ("left", "right")]
    return Targets(feet, pelvis_pos, source.root_rot, torso_rot,
                   torch.stack(elbows, 1), torch.stack(hands, 1), human.character.rot_to_dof(source.joint_rot)[:, knee])


def _mink() -> ModuleType:
    try:
        import daqp  # noqa: F401  (the solver that mink is told to use)
        import mink
    except ImportError as error:
        raise UserError(f"retargeting to robots needs mink with the DAQP solver ({error}): pip install -e .[tools]"
                        ) from None
    return mink


class Solver:
    """Differential inverse kinematics of one robot."""

    def __init__(self, robot: Robot, shape: Shape):
        self.mink, self.robot, self.shape = _mink(), robot, shape
        self.model = compiled(shape.character.model.file)
        self.names = shape.character.model.dof_names
        self.knees = [self.names.index(name) for name in robot.knees]
        for knee in robot.knees:
            self.model.joint(knee).range[0] = max(BENT_KNEE, self.model.joint(knee).range[0])
        self.legs = np.array([any(part in name for part in robot.leg_joints) for name in self.names])

    def _frame(self, body: int | str, position: float | tuple[float, ...], orientation: float):
        name = body if isinstance(body, str) else self.shape.character.body_names[body]
        return self.mink.FrameTask(name, "body", position_cost=position, orientation_cost=orientation)

    def _pose(self, turn: Tensor | None, pos: Tensor):
        quat = [1.0, 0.0, 0.0, 0.0] if turn is None else turn[[3, 0, 1, 2]].tolist()
        return self.mink.SE3.from_rotation_and_translation(self.mink.SO3(np.array(quat)), pos.numpy())

    def follow(self, targets: Targets) -> np.ndarray:
        """Joint positions [F, 7 + D] (MuJoCo's order: position, quaternion wxyz, hinges) that approach all
        targets."""
        robot = self.robot
        feet = [self._frame(body, *FOOT_COST) for body in self.shape.feet]
        pelvis = self._frame(0, *PELVIS_COST)
        torso = self._frame(robot.torso, 0.0, TORSO_COST)
        elbows = [self._frame(arm[1], ARM_COST, 0.0) for arm in robot.arms]
        hands = [self._frame(arm[2], ARM_COST, 0.0) for arm in robot.arms]
        cost = [next(c for part, c in POSTURE if part in name) for name in self.names]
        posture = self.mink.PostureTask(self.model, cost=np.array([0.0] * 6 + cost))
        tasks = [*feet, pelvis, torso, *elbows, *hands, posture]
        low, high = (self.shape.character.model.dof_low, self.shape.character.model.dof_high)
        start = np.concatenate([targets.pelvis_pos[0], targets.pelvis_rot[0][[3, 0, 1, 2]],
                                np.clip(np.zeros(len(low)), low + 0.01, high - 0.01)])
        start[[7 + k for k in self.knees]] = 0.5
        configuration = self.mink.Configuration(self.model, q=start)
        rows = []
        for i in range(len(targets.pelvis_pos)):
            for side in (0, 1):
                feet[side].set_target(self._pose(targets.feet.rot[i, side], targets.feet.pos[i, side]))
                elbows[side].set_target(self._pose(None, targets.elbows[i, side]))
                hands[side].set_target(self._pose(None, targets.hands[i, side]))
            pelvis.set_target(self._pose(targets.pelvis_rot[i], targets.pelvis_pos[i]))
            torso.set_target(self._pose(targets.torso_rot[i], targets.pelvis_pos[i]))
            wanted = np.zeros(self.model.nq)
            wanted[3] = 1.0
            wanted[[7 + k for k in self.knees]] = targets.knees[i]
            posture.set_target(wanted)
            self._iterate(configuration, tasks, ITERATIONS if i else FIRST_ITERATIONS)
            rows.append(configuration.q.copy())
        return np.stack(rows)

    def pin(self, rows: np.ndarray, feet: Feet) -> np.ndarray:
        """The legs of ``rows`` [F, 7 + D] solved again, so that feet near the ground are exactly in place."""
        hold = held(feet, self.shape).numpy()
        tasks = [self._frame(body, *FOOT_COST) for body in self.shape.feet]
        pelvis = self._frame(0, FINAL_PELVIS_COST, FINAL_PELVIS_COST)
        cost = np.concatenate([np.zeros(6), np.where(self.legs, FINAL_LEG_POSTURE, FINAL_POSTURE)])
        posture = self.mink.PostureTask(self.model, cost=cost)
        configuration = self.mink.Configuration(self.model, q=rows[0])
        out = []
        for i, wanted in enumerate(rows):
            for side in (0, 1):
                tasks[side].set_target(self._pose(feet.rot[i, side], feet.pos[i, side]))
                part = hold[i, side] + (1.0 - hold[i, side]) * FREE_FOOT
                tasks[side].set_position_cost(part * FOOT_COST[0])
                tasks[side].set_orientation_cost(part * FOOT_COST[1])
            pelvis.set_target(self._pose(torch.from_numpy(wanted[[4, 5, 6, 3]]), torch.from_numpy(wanted[:3])))
            posture.set_target(wanted)
            self._iterate(configuration, [*tasks, pelvis, posture], ITERATIONS)
            out.append(configuration.q.copy())
        return np.stack(out)

    def _iterate(self, configuration, tasks: list, count: int) -> None:
        limits = [self.mink.ConfigurationLimit(self.model)]
        for _ in range(count):
            velocity = self.mink.solve_ik(configuration, tasks, STEP, "daqp", damping=DAMPING, limits=limits)
            configuration.integrate_inplace(velocity, STEP)


def retarget_robot(clip: MotionClip, human: Shape, shape: Shape, robot: Robot, smooth: float = SMOOTH) -> MotionClip:
    """The humanoid's clip for a robot of hinges, at about 60 frames per second.

    Raises:
        UserError: mink or DAQP is not installed.
    """
    source = smoothed(resampled(lengthened(unpack(clip, human)), FPS), smooth)
    targets = make_targets(source, human, shape, robot)
    solver = Solver(robot, shape)
    rows = solver.follow(targets)

    def as_motion(rows: np.ndarray) -> Motion:
        values = torch.from_numpy(rows)
        return Motion(values[:, :3], values[:, [4, 5, 6, 3]], shape.character.dof_to_rot(values[:, 7:]), source.fps,
                      source.loops)

    motion = smoothed(as_motion(rows), smooth)
    rows[:, :3], rows[:, 3:7] = motion.root_pos, motion.root_rot[:, [3, 0, 1, 2]]
    rows[:, 7:] = blur(torch.from_numpy(rows[:, 7:]), smooth * source.fps, loops=False)
    rows[:, 2] += lift_out(as_motion(rows), shape).numpy()
    motion = as_motion(solver.pin(rows, targets.feet))
    packed = pack(shortened(motion), shape)
    return MotionClip(LoopMode.WRAP if source.loops else LoopMode.CLAMP, round(source.fps, 6), packed.frames)


def retarget_smpl(clip: MotionClip, human: Shape, shape: Shape, smooth: float = SMOOTH) -> MotionClip:
    """The humanoid's clip for the SMPL body, at about 60 frames per second."""
    source = smoothed(resampled(lengthened(unpack(clip, human)), FPS), smooth)
    rest, human_rest = _rest(shape), _rest(human)
    model, names = shape.character.model, human.character.model

    def leg(positions: Tensor, body_model, hip: str, ankle: str) -> float:
        return float((positions[body_model.body_index(hip)] - positions[body_model.body_index(ankle)]).norm())

    scale = leg(rest, model, "L_Hip", "L_Ankle") / leg(human_rest, names, "left_thigh", "left_foot")
    hip = 0.5 * (rest[model.body_index("L_Hip")] + rest[model.body_index("R_Hip")])
    widen = TRACK_WIDENING * float(rest[model.body_index("L_Hip")][1]
                                   - scale * human_rest[names.body_index("left_thigh")][1])
    feet = _scaled_feet(source, human, shape, scale, widen)
    root = source.root_pos * scale
    root[:, 2] = scale * (source.root_pos[:, 2] + float(human.sole[0, 2])) - float(shape.sole[0, 2])
    root = root - rot.quat_rotate(source.root_rot, hip.expand_as(root))
    hips = torch.stack([rest[model.body_index(name)] for name in ("L_Hip", "R_Hip")])
    length = torch.tensor([leg(rest, model, f"{side}_Hip", f"{side}_Ankle") for side in "LR"], dtype=torch.float64)
    root = within_reach(root, source.root_rot, feet, hips, SMPL_REACH * length, shape, source.fps)

    turn = torch.zeros(len(root), model.num_joints, 4, dtype=torch.float64)
    turn[..., 3] = 1.0

    def put(bodies: tuple[str, ...], source_body: str) -> None:
        """A joint's rotation, spread evenly over ``bodies``."""
        exp_map = rot.quat_to_exp_map(source.joint_rot[:, names.body_index(source_body) - 1]) / len(bodies)
        for body in bodies:
            turn[:, model.body_index(body) - 1] = rot.exp_map_to_quat(exp_map)

    put(("Torso", "Spine", "Chest"), "torso")
    put(("Neck", "Head"), "head")
    for letter, side in (("L", "left"), ("R", "right")):
        for body, human_body in (("Shoulder", "upper_arm"), ("Elbow", "lower_arm"), ("Hip", "thigh"), ("Knee", "shin"),
                                 ("Ankle", "foot")):
            put((f"{letter}_{body}",), f"{side}_{human_body}")
    motion = solve_legs(Motion(root, source.root_rot, turn, source.fps, source.loops), feet, shape)
    lift = lift_out(motion, shape)
    root[:, 2] += lift
    raised = feet.pos.clone()
    raised[..., 2] += lift.unsqueeze(1) * (1.0 - held(feet, shape))
    return pack(shortened(solve_legs(replace(motion, root_pos=root), Feet(raised, feet.rot), shape)), shape)
