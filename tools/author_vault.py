"""Author the vaults: a speed vault of the humanoid, two kong vaults in a row of the G1, over the boxes of their envs.

    python tools/author_vault.py humanoid g1

A running clip leads up to the jump and on from the landing. In between a few key poses, spread over time, make a rough
reference; trajectory optimisation (mimickit/clips/spacetime.py) turns it into a motion whose hands rest on the boxes,
whose feet rest on the ground, and which falls freely in between. The boxes are read from data/envs/vault_*_env.yaml.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import mujoco
import torch
from torch import Tensor

from mimickit.anim.motion import load_motion
from mimickit.clips.authoring import monotone, turns_between
from mimickit.clips.check import HEADER, save_checked
from mimickit.clips.cleanup import repeated
from mimickit.clips.feet import feet_of, stances
from mimickit.clips.retarget import resampled, smoothed
from mimickit.clips.shape import ASSETS, CHARACTERS, Motion, Shape, pack, unpack
from mimickit.clips.spacetime import Box, Contact, Task, optimise
from mimickit.config import load_layered
from mimickit.util import rotations as rot
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_FAILED, EXIT_OK, UserError, explains_mistakes
from mimickit.util.names import check_known

FPS = 60.0
RUN_FAITH, MEETING_FAITH, KEY_FAITH = 1.0, 0.3, 0.1
MEETING = 12  # frames of the run next to the vault which may change more
SMOOTH = 0.015  # s, standard deviation of the run's low-pass
LEAD = 3  # frames of the run that count as key poses at both ends

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """A key pose, ``frame`` frames after the take-off, in the direction of the run.

    x from the first box's centre, z (m) of the root; roll, pitch, yaw (rad); joints by name: a number or three.
    """

    frame: int
    x: float
    z: float
    joints: dict[str, float | Vector]
    roll: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0


@dataclass(frozen=True)
class Hold:
    """A hand rests on a box, at x, y from its centre, in frames first .. last after the take-off."""

    side: str
    box: int
    x: float
    y: float
    first: int
    last: int


@dataclass(frozen=True)
class Stand:
    """Both feet stand beside y, at x from the first box's centre (ankles), in frames first .. last."""

    x: float
    half_track: float
    first: int
    last: int


@dataclass(frozen=True)
class Vault:
    """One vault. Frames of the run are those of its clip at 60 fps; ``take_off`` and ``touch_down`` are foot events."""

    char: str
    run: str  # clip
    env: str
    out: str
    heading: float  # rad, of the run in the world
    take_off: int  # last frame of a stance
    touch_down: int  # first frame of a stance, in the run's next period
    approach: int  # frames
    run_out: int
    frames: int  # from take-off to touch-down
    start_x: float  # m, of the root at the take-off from the first box's centre
    end_x: float  # m, of the root at the touch-down
    y: float  # m, of the path from the first box's centre, to the left
    poses: tuple[Pose, ...]
    holds: tuple[Hold, ...]
    hand: dict[str, tuple[str, tuple[float, float, float], float]]  # side -> body, point in it (m), radius (m)
    feet: tuple[str, str]
    sole: tuple[tuple[float, float, float], tuple[float, float, float]]  # heel and toe of a foot's body
    ankle: float  # m above the ground
    stands: tuple[Stand, ...] = ()
    flights: tuple[tuple[int, int], ...] = ()  # (first, last) frames in which nothing is touched
    apart: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()  # parts of the names of bodies kept off each other


def human(arm: Vector, elbow: float, other_arm: Vector, torso: Vector, lead: Vector, lead_knee: float, trail: Vector,
          trail_knee: float) -> dict[str, float | Vector]:
    """Joints of a pose of the humanoid with the left hand on the box; the right leg leads."""
    return {"left_upper_arm": arm, "left_lower_arm": elbow, "right_upper_arm": other_arm, "right_lower_arm": 0.85,
            "torso": torso, "head": (0.2, 0.0, 0.0), "right_thigh": lead, "right_shin": lead_knee, "left_thigh": trail,
            "left_shin": trail_knee}


def g1(hip: tuple[float, float], knee: tuple[float, float], ankle: tuple[float, float] = (0.0, 0.0), waist: float = 0.0,
       shoulder: float = 0.0, elbow: float = 1.3, out: float = 0.15) -> dict[str, float | Vector]:
    """Joints of a pose of the G1; pairs are left, right; arms alike. Hips: positive bends the thigh forward."""
    joints: dict[str, float | Vector] = {"waist_pitch_joint": waist}
    for i, side in enumerate(("left", "right")):
        sign = 1 - 2 * i
        joints |= {f"{side}_hip_pitch_joint": -hip[i], f"{side}_knee_joint": knee[i],
                   f"{side}_ankle_pitch_joint": ankle[i], f"{side}_shoulder_pitch_joint": shoulder,
                   f"{side}_shoulder_roll_joint": sign * out, f"{side}_elbow_joint": elbow}
    return joints


SPEED_VAULT = Vault(
    char="humanoid", run="humanoid_run", env="vault_humanoid_env", out="humanoid_speed_vault", heading=0.0,
    take_off=33, touch_down=48, approach=60, run_out=48, frames=32, start_x=-0.95, end_x=0.85, y=-0.15,
    poses=(
        Pose(9, -0.40, 0.93, human(
            arm=(-0.45, 0.0, -0.6), elbow=-0.3, other_arm=(1.0, 0.0, -0.4), torso=(-0.25, 0.2, 0.0),
            lead=(-0.5, -1.2, 0.0), lead_knee=0.5, trail=(0.0, 0.1, 0.0), trail_knee=1.0), roll=-0.6, pitch=0.2),
        Pose(16, 0.0, 0.97, human(
            arm=(-0.2, 0.0, 0.0), elbow=-0.2, other_arm=(0.7, 0.0, 0.0), torso=(-0.4, 0.2, 0.0),
            lead=(-0.45, -1.4, 0.0), lead_knee=0.4, trail=(0.0, -1.2, 0.0), trail_knee=1.4), roll=-0.95, pitch=0.1),
        Pose(22, 0.32, 0.95, human(
            arm=(-0.4, 0.0, 0.5), elbow=-0.2, other_arm=(0.8, 0.0, 0.3), torso=(-0.3, 0.25, 0.0),
            lead=(-0.2, -1.2, 0.0), lead_knee=0.4, trail=(0.0, -1.5, 0.0), trail_knee=1.3), roll=-0.65, pitch=0.1),
    ),
    holds=(Hold("left", 0, 0.0, 0.30, 10, 21),),
    hand={"left": ("left_hand", (0.0, 0.0, 0.0), 0.04)},
    feet=("right_foot", "left_foot"), sole=((-0.0435, 0.0, -0.05), (0.1335, 0.0, -0.05)), ankle=0.05,
    flights=((1, 9), (22, 31)),
    apart=((("left_thigh", "left_shin", "left_foot"), ("right_thigh", "right_shin", "right_foot")),
           (("lower_arm", "hand"), ("thigh", "shin"))),
)

DOUBLE_KONG = Vault(
    char="g1", run="g1_run", env="vault_g1_env", out="g1_double_kong", heading=math.pi,
    take_off=33, touch_down=48, approach=58, run_out=48, frames=74, start_x=-0.85, end_x=2.02, y=0.0,
    poses=(
        Pose(9, -0.47, 0.80, g1((-0.1, 0.3), (1.0, 1.1), waist=0.3, shoulder=-1.5), pitch=0.7),
        Pose(16, -0.17, 0.85, g1((1.9, 1.9), (2.1, 2.1), waist=0.35, shoulder=-0.95), pitch=0.6),
        Pose(23, 0.12, 0.83, g1((2.1, 2.1), (2.0, 2.0), waist=0.3, shoulder=-0.2), pitch=0.35),
        Pose(30, 0.40, 0.68, g1((1.1, 1.1), (0.8, 0.8), (-0.1, -0.1), 0.2, -0.5), pitch=0.2),
        Pose(37, 0.64, 0.62, g1((1.2, 1.2), (1.2, 1.2), (-0.3, -0.3), 0.3, -1.2), pitch=0.5),
        Pose(44, 0.86, 0.70, g1((0.5, 0.5), (0.5, 0.5), (0.2, 0.2), 0.3, -1.6), pitch=0.7),
        Pose(50, 1.08, 0.80, g1((1.2, 1.2), (1.9, 1.9), waist=0.35, shoulder=-1.2), pitch=0.65),
        Pose(56, 1.32, 0.84, g1((2.1, 2.1), (2.1, 2.1), waist=0.35, shoulder=-0.6), pitch=0.5),
        Pose(64, 1.62, 0.82, g1((1.7, 1.9), (1.4, 1.8), waist=0.3, shoulder=-0.3), pitch=0.3),
    ),
    holds=(Hold("left", 0, 0.0, 0.25, 9, 20), Hold("right", 0, 0.0, -0.25, 9, 20),
           Hold("left", 1, 0.06, 0.25, 46, 57), Hold("right", 1, 0.06, -0.25, 46, 57)),
    hand={"left": ("left_wrist_yaw_link", (0.13, -0.02, 0.0), 0.035),
          "right": ("right_wrist_yaw_link", (0.13, 0.02, 0.0), 0.035)},
    feet=("left_ankle_roll_link", "right_ankle_roll_link"), sole=((-0.035, 0.0, -0.035), (0.115, 0.0, -0.035)),
    ankle=0.035, stands=(Stand(0.56, 0.10, 30, 44),), flights=((1, 8), (21, 29), (45, 45), (58, 73)),
    apart=((("shoulder_yaw", "elbow", "wrist_pitch", "wrist_yaw"), ("hip_yaw", "knee", "ankle_roll")),
           (("left_hip_yaw", "left_knee", "left_ankle_roll"), ("right_hip_yaw", "right_knee", "right_ankle_roll")),
           (("torso_link",), ("hip_yaw", "knee"))),
)
VAULTS = {vault.char: vault for vault in (SPEED_VAULT, DOUBLE_KONG)}


def read_boxes(env_file: Path) -> list[Box]:
    """The boxes of an env file, in its order.

    Raises:
        AssetMissingError, UserError: it is missing or not valid.
    """
    boxes = []
    for item in load_layered(env_file)["objects"]:
        model = mujoco.MjModel.from_xml_path(str(SHIPPED / item["file"]))
        boxes.append(Box(tuple(map(float, item["pos"])), tuple(map(float, model.geom_size[0]))))
    return boxes


def in_run_frame(box: Box, heading: float) -> Box:
    """The box as seen with the run along x; headings are multiples of 180 degrees."""
    c, s = math.cos(heading), math.sin(heading)
    x, y, z = box.centre
    return Box((c * x + s * y, c * y - s * x, z), box.half)


def straight_run(vault: Vault, shape: Shape) -> Motion:
    """Five periods of the run at 60 fps, its path along x."""
    motion = unpack(load_motion(SHIPPED / "data/motions" / vault.char / f"{vault.run}.pkl"), shape)
    motion = smoothed(resampled(repeated(motion, 7), FPS), SMOOTH)
    period = (len(motion.root_pos) - 1) // 7
    keep = slice(period, 6 * period + 1)
    motion = replace(motion, root_pos=motion.root_pos[keep], root_rot=motion.root_rot[keep],
                     joint_rot=motion.joint_rot[keep])
    stride = motion.root_pos[-1] - motion.root_pos[0]
    aside = rot.yaw_quat(-torch.atan2(stride[1], stride[0]))
    return replace(motion, root_pos=rot.quat_rotate(aside, motion.root_pos),
                   root_rot=rot.quat_mul(aside, motion.root_rot), loops=False)


def make_task(vault: Vault, shape: Shape, boxes: list[Box]) -> tuple[Task, int]:
    """The vault as a task in the run's frame, and the frame of its take-off."""
    run = straight_run(vault, shape)
    period = (len(run.root_pos) - 1) // 5
    off = 2 * period + vault.take_off
    down = 2 * period + vault.touch_down
    origin = torch.tensor(boxes[0].centre, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.0])
    before, after = slice(off - vault.approach, off + 1), slice(down, down + vault.run_out + 1)

    def placed(frame: int, x: float) -> Tensor:
        """What moves the run so that its root is at x (and on the path) in this frame."""
        return origin + torch.tensor([x, vault.y, 0.0]) - run.root_pos[frame] * torch.tensor([1.0, 1.0, 0.0])

    first, second = placed(off, vault.start_x), placed(down, vault.end_x)
    count = vault.approach + vault.frames + vault.run_out + 1
    takes, lands = vault.approach, vault.approach + vault.frames
    root_pos = torch.zeros(count, 3, dtype=torch.float64)
    turns = torch.zeros(count, 1 + shape.character.num_joints, 4, dtype=torch.float64)
    run_turns = torch.cat([run.root_rot.unsqueeze(1), run.joint_rot], dim=1)
    root_pos[:takes + 1], root_pos[lands:] = run.root_pos[before] + first, run.root_pos[after] + second
    turns[:takes + 1], turns[lands:] = run_turns[before], run_turns[after]

    times = [*range(takes - LEAD, takes + 1), *(takes + pose.frame for pose in vault.poses),
             *range(lands, lands + LEAD + 1)]
    key_pos = torch.stack([origin + torch.tensor([pose.x, vault.y, pose.z]) for pose in vault.poses])
    key_turns = torch.stack([_key_turns(pose, shape) for pose in vault.poses])
    edge = [slice(takes - LEAD, takes + 1), slice(lands, lands + LEAD + 1)]
    at = torch.arange(takes + 1, lands, dtype=torch.float64)
    root_pos[takes + 1:lands] = monotone(times, torch.cat([root_pos[edge[0]], key_pos, root_pos[edge[1]]]), at)
    turns[takes + 1:lands] = turns_between(times, torch.cat([turns[edge[0]], key_turns, turns[edge[1]]]), at)
    reference = Motion(root_pos, turns[:, 0], turns[:, 1:], FPS, False)

    falls, pushes = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    for begin, end in vault.flights:
        falls[takes + begin:takes + end + 1] = True
    for hold in vault.holds:
        pushes[takes + hold.first:takes + hold.last + 1] = True
    faith = torch.full((count,), KEY_FAITH, dtype=torch.float64)
    faith[:takes - MEETING], faith[lands + MEETING:] = RUN_FAITH, RUN_FAITH
    faith[takes - MEETING:takes], faith[lands:lands + MEETING] = MEETING_FAITH, MEETING_FAITH
    contacts = [*_run_contacts(vault, shape, reference, takes, lands), *_stand_contacts(vault, shape, origin, takes),
                *_hand_contacts(vault, shape, boxes, takes)]
    names = shape.character.body_names
    apart = [tuple([i for i, name in enumerate(names) if any(part in name for part in parts)] for parts in pair)
             for pair in vault.apart]
    return Task(reference, contacts, boxes, falls, pushes, faith, apart), takes


def _key_turns(pose: Pose, shape: Shape) -> Tensor:
    """Rotations [1 + J, 4] of a pose: the root's, then the joints'."""
    model = shape.character.model
    dofs = torch.zeros(model.num_dofs, dtype=torch.float64)
    for name, value in pose.joints.items():
        if isinstance(value, tuple):
            dofs[model.dof_slices[model.body_index(name)]] = torch.tensor(value, dtype=torch.float64)
        elif name in model.dof_names:
            dofs[model.dof_names.index(name)] = value
        else:
            dofs[model.dof_slices[model.body_index(name)]] = value
    root = rot.euler_to_quat(*(torch.tensor(a, dtype=torch.float64) for a in (pose.roll, pose.pitch, pose.yaw)))
    return torch.cat([root.unsqueeze(0), shape.character.dof_to_rot(dofs)])


def _run_contacts(vault: Vault, shape: Shape, reference: Motion, takes: int, lands: int) -> list[Contact]:
    """Feet of the run stay where they stand."""
    feet = feet_of(reference, shape)
    contacts = []
    for foot, intervals in enumerate(stances(feet, shape, FPS)):
        for first, last in intervals:
            if first > takes and last < lands:
                continue
            last = takes if first <= takes < last else last
            first = lands if first < lands <= last else first
            for point in vault.sole:
                point = torch.tensor(point, dtype=torch.float64)
                at = slice(first, last + 1)
                target = feet.pos[at, foot] + rot.quat_rotate(feet.rot[at, foot],
                                                              point.expand(last + 1 - first, 3))
                contacts.append(Contact(shape.feet[foot], point, target, first, last))
    return contacts


def _stand_contacts(vault: Vault, shape: Shape, origin: Tensor, takes: int) -> list[Contact]:
    contacts = []
    for stand in vault.stands:
        for body, sign in zip(shape.feet, (1.0, -1.0)):
            ankle = origin + torch.tensor([stand.x, vault.y + sign * stand.half_track, vault.ankle])
            for point in vault.sole:
                point = torch.tensor(point, dtype=torch.float64)
                contacts.append(Contact(body, point, ankle + point, takes + stand.first, takes + stand.last))
    return contacts


def _hand_contacts(vault: Vault, shape: Shape, boxes: list[Box], takes: int) -> list[Contact]:
    contacts = []
    for hold in vault.holds:
        body, point, radius = vault.hand[hold.side]
        box = boxes[hold.box]
        target = torch.tensor([box.centre[0] + hold.x, box.centre[1] + hold.y, box.top + radius], dtype=torch.float64)
        contacts.append(Contact(shape.character.model.body_index(body), torch.tensor(point, dtype=torch.float64),
                                target, takes + hold.first, takes + hold.last))
    return contacts


def author(vault: Vault, shape: Shape, iterations: int) -> Motion:
    """The vault in the world of its env."""
    boxes = [in_run_frame(box, vault.heading) for box in read_boxes(SHIPPED / f"data/envs/{vault.env}.yaml")]
    task, _ = make_task(vault, shape, boxes)
    motion = optimise(task, shape, iterations)
    turn = rot.yaw_quat(torch.tensor(vault.heading, dtype=torch.float64))
    return replace(motion, root_pos=rot.quat_rotate(turn, motion.root_pos),
                   root_rot=rot.quat_mul(turn, motion.root_rot))


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("characters", nargs="+", metavar="CHARACTER", help=f"of {', '.join(VAULTS)}")
    parser.add_argument("--out-dir", type=Path, help="default: data/motions/CHARACTER of the project")
    parser.add_argument("--iterations", type=int, default=300,
                        help="of the optimisation, at each of its stages, at least 1 (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.iterations < 1:
        raise UserError(f"--iterations {args.iterations}: at least 1")
    check_known(args.characters, VAULTS, "there is no vault for")
    print(HEADER)
    clean = []
    for name in args.characters:
        vault, shape = VAULTS[name], Shape(ASSETS / CHARACTERS[name])
        path = (args.out_dir or SHIPPED / "data/motions" / name) / f"{vault.out}.pkl"
        clean.append(save_checked(path, pack(author(vault, shape, args.iterations), shape), shape))
    return EXIT_OK if all(clean) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
