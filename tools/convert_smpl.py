"""Convert a SMPL motion (AMASS .npz) into a clip of the character data/assets/smpl/smpl.xml.

    python tools/convert_smpl.py --input_file amass/walk_poses.npz --output_file data/motions/smpl/my_walk.pkl

The source holds poses [F, >= 66] (axis-angle of SMPL's joints, the root first), trans [F, 3] (m, Z up) and
mocap_framerate or fps. SMPL, SMPL-H and SMPL-X are read; fingers, jaw and eyes are left out. The body's shape is that
of the character, so heights may need --z_correction:

    none       as recorded
    calibrate  one shift for the whole clip, which puts its lowest point on the ground (default)
    full       each frame is shifted to touch the ground: for motions without flight on uneven floors
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mimickit.anim.motion import LoopMode, MotionClip, read_clip_file
from mimickit.anim.plain_data import RefusedError, read_npz
from mimickit.clips.convert import LOOP_MODES, frame_range, make_parser, run, wanted_fps
from mimickit.clips.filters import lerp_rows, resample_grid, slerp_rows
from mimickit.clips.shape import ASSETS, CHARACTERS, Motion, Shape, pack
from mimickit.util import rotations as rot
from mimickit.util.failures import UserError
from mimickit.util.reading import FPS_RANGE, MAX_FRAME_VALUE

JOINTS = ("Pelvis", "L_Hip", "R_Hip", "Torso", "L_Knee", "R_Knee", "Spine", "L_Ankle", "R_Ankle", "Chest", "L_Toe",
          "R_Toe", "Neck", "L_Thorax", "R_Thorax", "Head", "L_Shoulder", "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist",
          "R_Wrist", "L_Hand", "R_Hand")  # SMPL's order
BODY_COLUMNS, SMPL_COLUMNS = 66, 72  # without and with SMPL's two hand joints
RATES = ("mocap_framerate", "mocap_frame_rate", "fps")


def read_smpl(path: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Axis-angles [F, 24, 3] in SMPL's rest axes, translation [F, 3] (m), frames per second.

    Raises:
        UserError: the file is not a SMPL motion.
    """
    data = read_clip_file(path)
    if not data.startswith(b"PK"):
        raise UserError(f"{path} is not a SMPL motion: no .npz archive; pickles and other formats are not read")
    try:
        archive = read_npz(data, ("poses", "trans", *RATES), path)
        rate = next((key for key in RATES if key in archive), None)
        if rate is None:
            raise UserError(f"{path} names no frame rate ({', '.join(RATES)})")
        poses = np.array(archive["poses"], dtype=np.float64)
        trans, fps = np.array(archive["trans"], dtype=np.float64), float(archive[rate].reshape(()))
    except (RefusedError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a SMPL motion (.npz with poses, trans, frame rate): {error}") from None
    if poses.ndim != 2 or poses.shape[1] < BODY_COLUMNS or trans.shape != (len(poses), 3) or not len(poses):
        raise UserError(f"{path}: expected poses [F, >= {BODY_COLUMNS}] and trans [F, 3], found {poses.shape} and "
                        f"{trans.shape}")
    low, high = FPS_RANGE
    if not ((np.abs(poses) <= MAX_FRAME_VALUE).all() and (np.abs(trans) <= MAX_FRAME_VALUE).all()):
        raise UserError(f"{path} holds numbers that are not finite, or beyond {MAX_FRAME_VALUE:g}")
    if not low <= fps <= high:
        raise UserError(f"{path} has the frame rate {fps:g}, which is not positive or not from {low:g} to {high:g}")
    columns = SMPL_COLUMNS if poses.shape[1] == SMPL_COLUMNS else BODY_COLUMNS
    angles = np.zeros((len(poses), SMPL_COLUMNS))
    angles[:, :columns] = poses[:, :columns]
    return torch.from_numpy(angles).unflatten(1, (len(JOINTS), 3)), torch.from_numpy(trans), fps


def to_character(angles: torch.Tensor, trans: torch.Tensor, fps: float, loops: bool, shape: Shape) -> Motion:
    """SMPL's joints as those of the character.

    SMPL rests with x left, y up, z forward; the character with x forward, y left, z up. So a vector (x, y, z) of the
    body becomes (z, x, y), and the root, which turns body axes into those of the world, is followed by the inverse.
    """
    quats = rot.exp_map_to_quat(angles[..., [2, 0, 1]])
    names = shape.character.body_names
    order = torch.tensor([JOINTS.index(name) for name in names[1:]])
    back = torch.tensor([-0.5, -0.5, -0.5, 0.5], dtype=torch.float64)  # takes (x, y, z) of the character to (y, z, x)
    root = rot.quat_mul(rot.exp_map_to_quat(angles[:, 0]), back.expand(len(angles), 4))
    return Motion(trans, root, rot.quat_pos(quats[:, order]), fps, loops)


def convert(args: argparse.Namespace) -> MotionClip:
    """The clip that the options ask for; errors as :func:`read_smpl`, or frames that do not exist."""
    angles, trans, fps = read_smpl(args.input_file)
    keep = frame_range(args, len(angles))
    shape = Shape(ASSETS / CHARACTERS["smpl"])
    loops = LOOP_MODES[args.loop] is LoopMode.WRAP
    motion = to_character(angles[keep], trans[keep], fps, loops, shape)
    low, part, fps = resample_grid(len(motion.root_pos), fps, wanted_fps(args, fps))
    motion = Motion(lerp_rows(motion.root_pos, low, part), slerp_rows(motion.root_rot.unsqueeze(1), low, part)[:, 0],
                    slerp_rows(motion.joint_rot, low, part), fps, loops)
    lowest = shape.heights(*shape.kinematics(motion)).amin(1)
    drop = {"none": torch.zeros_like(lowest), "calibrate": lowest.min().expand_as(lowest), "full": lowest}
    root_pos = motion.root_pos.clone()
    root_pos[:, 2] -= drop[args.z_correction]
    return pack(replace(motion, root_pos=root_pos), shape)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--z_correction", choices=("none", "calibrate", "full"), default="calibrate",
                        help="how heights are set right (default: calibrate)")
    return run(convert, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
