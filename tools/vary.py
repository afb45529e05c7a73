"""Make more clips out of few: mirrored, faster, slower, curved. Writes the humanoid's locomotion set.

    python tools/vary.py

Reads data/motions/humanoid, writes data/motions/humanoid/locomotion and data/datasets/dataset_humanoid_locomotion.yaml.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimickit.anim.motion import MotionClip, load_motion, save_motion
from mimickit.util import rotations as rot
from mimickit.util.failures import EXIT_OK, UserError
from mimickit.util.files import write_text
from tools.clip_cleanup import repeated, solve_legs
from tools.command import explains_mistakes
from tools.feet import Feet, feet_of, lock
from tools.shape import ASSETS, CHARACTERS, PROJECT, Motion, Shape, pack, unpack

GRAVITY = 9.81  # m/s^2
SIDES = (("left_", "right_"), ("L_", "R_"), ("l_", "r_"), ("FL_", "FR_"), ("RL_", "RR_"))
SOURCES = PROJECT / "data/motions/humanoid"
DATASET = PROJECT / "data/datasets/dataset_humanoid_locomotion.yaml"

BASES = ("run", "walk", "walker_0walk_forward", "walker_turn_left0", "walker_turn_left1", "walker_turn_right0",
         "walker_turn_right1")
SPEEDS = {"run_slow": ("run", 0.85), "run_fast": ("run", 1.1), "walk_slow": ("walk", 0.8), "walk_fast": ("walk", 1.15),
          "walker_slow": ("walker_0walk_forward", 0.8), "walker_fast": ("walker_0walk_forward", 1.15)}
CURVES = {"run_left0": ("run", 0.4), "run_left1": ("run", 0.9),
          "walk_left0": ("walk", 0.4), "walk_left1": ("walk", 0.9)}
CURVE_TIME = 2.5  # s, at least
RUN_WEIGHT = 2.0  # running is rarer in the sources, as frequent in the set


def mirror(motion: Motion, shape: Shape) -> Motion:
    """The motion seen in a mirror that stands along the x axis: left and right limbs change places.

    A reflection at the plane y = 0 takes a position to (x, -y, z) and a rotation (x, y, z, w) to (-x, y, -z, w).

    Raises:
        UserError: a limb has no counterpart that moves the same way.
    """
    names, kinds = shape.character.body_names, shape.character.model.joint_kinds
    partner = [_partner(name) for name in names]
    lonely = [name for name, kind, other in zip(names, kinds, partner)
              if other not in names or kinds[names.index(other)] is not kind]
    if lonely:
        raise UserError(f"{shape.character.model.file} cannot be mirrored: {', '.join(lonely)} has no counterpart with "
                        "a joint of the same kind")
    order = torch.tensor([names.index(other) - 1 for other in partner[1:]])
    flip = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return replace(motion, root_pos=motion.root_pos * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64),
                   root_rot=motion.root_rot * flip, joint_rot=motion.joint_rot[:, order] * flip)


def _partner(name: str) -> str:
    for left, right in SIDES:
        if name.startswith(left):
            return right + name.removeprefix(left)
        if name.startswith(right):
            return left + name.removeprefix(right)
    return name


def curve(motion: Motion, yaw_rate: float, shape: Shape) -> Motion:
    """A looping straight motion led along a circle, for at least ``CURVE_TIME`` s; clamped.

    Frame by frame the motion is turned by ``yaw_rate`` (rad/s) times its time and its path is bent; the body leans into
    the curve until gravity and centrifugal force point along it (tan lean = speed * yaw rate / g); the feet, turned but
    not leaned, are pinned to the ground where they stand, and the legs solved.
    """
    period = (len(motion.root_pos) - 1) / motion.fps
    motion = repeated(motion, math.ceil(CURVE_TIME / period))
    angle = yaw_rate * torch.arange(len(motion.root_pos), dtype=torch.float64) / motion.fps
    steps = torch.diff(motion.root_pos, dim=0)
    bent = rot.quat_rotate(rot.yaw_quat(0.5 * (angle[1:] + angle[:-1])), steps)
    root_pos = motion.root_pos[:1] + torch.cat([torch.zeros_like(steps[:1]), bent.cumsum(0)])
    turn = rot.yaw_quat(angle)
    feet = feet_of(motion, shape)
    feet = Feet(root_pos.unsqueeze(1) + rot.quat_rotate(turn.unsqueeze(1), feet.pos - motion.root_pos.unsqueeze(1)),
                rot.quat_mul(turn.unsqueeze(1), feet.rot))

    distance = (motion.root_pos[-1] - motion.root_pos[0])[:2]
    speed = distance.norm() / (len(angle) - 1) * motion.fps
    direction = torch.cat([distance / distance.norm(), torch.zeros(1, dtype=torch.float64)])
    lean = -torch.atan(speed * yaw_rate / GRAVITY).expand(len(angle))
    tilt = rot.axis_angle_to_quat(rot.quat_rotate(turn, direction.expand(len(angle), 3)), lean)
    upright = torch.zeros_like(root_pos)
    upright[:, 2] = root_pos[:, 2]
    root_pos = root_pos - upright + rot.quat_rotate(tilt, upright)
    motion = replace(motion, root_pos=root_pos, root_rot=rot.quat_mul(tilt, rot.quat_mul(turn, motion.root_rot)),
                     loops=False)
    return solve_legs(motion, lock(feet, shape, motion.fps), shape)


def variations(clips: dict[str, MotionClip], shape: Shape) -> dict[str, MotionClip]:
    """New clips by name, from the clips named in ``BASES``."""
    made = {}
    for name, (base, factor) in SPEEDS.items():
        made[name] = replace(clips[base], fps=clips[base].fps * factor)
    for name, (base, rate) in CURVES.items():
        made[name] = pack(curve(unpack(clips[base], shape), rate, shape), shape)
        made[name.replace("left", "right")] = pack(curve(unpack(clips[base], shape), -rate, shape), shape)
    for name, clip in {**clips, **made}.items():
        made[f"{name}_mirror"] = pack(mirror(unpack(clip, shape), shape), shape)
    return made


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source-dir", type=Path, default=SOURCES, help="default: data/motions/humanoid")
    parser.add_argument("--out-dir", type=Path, default=SOURCES / "locomotion",
                        help="default: data/motions/humanoid/locomotion")
    parser.add_argument("--dataset", type=Path, default=DATASET, metavar="YAML",
                        help="default: data/datasets/dataset_humanoid_locomotion.yaml")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = Shape(ASSETS / CHARACTERS["humanoid"])
    files = {name: args.source_dir / f"humanoid_{name}.pkl" for name in BASES}
    clips = {name: load_motion(path) for name, path in files.items()}
    for name, clip in variations(clips, shape).items():
        files[name] = args.out_dir / f"humanoid_{name}.pkl"
        save_motion(files[name], clip)
    write_text(args.dataset, _dataset(files))
    print(f"{len(files) - len(BASES)} clips written to {args.out_dir}, {len(files)} listed in {args.dataset}")
    return EXIT_OK


def _dataset(files: dict[str, Path]) -> str:
    lines = ["# Walking, running and turning of the humanoid. Written by tools/vary.py.", "motions:"]
    for name, path in files.items():
        path = path.resolve()
        place = path.relative_to(PROJECT).as_posix() if path.is_relative_to(PROJECT) else path.as_posix()
        lines.append(f"  - {{file: {place}, weight: {RUN_WEIGHT if name.startswith('run') else 1.0}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
