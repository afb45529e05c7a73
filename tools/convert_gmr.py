"""Convert a motion that GMR (General Motion Retargeting) saved for a robot of hinges into a clip.

    python tools/convert_gmr.py --input_file walk_gmr.pkl --output_file data/motions/g1/my_walk.pkl

The source is a pickled dictionary of fps, root_pos [F, 3] (m), root_rot [F, 4] (x y z w) and dof_pos [F, D] (rad, in
the robot's joint order). It is read without running anything in it. Unlike relabelling, --output_fps resamples.
"""

from __future__ import annotations

import argparse
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import MotionClip, check_dofs, number_rows, read_plain_pickle
from mimickit.clips.convert import LOOP_MODES, frame_range, make_parser, run, wanted_fps
from mimickit.clips.filters import lerp_rows, resample_grid, slerp_rows
from mimickit.util import rotations as rot
from mimickit.util.failures import UserError
from mimickit.util.reading import FPS_RANGE, MAX_FRAME_VALUE


def _array(data: Mapping[str, Any], key: str, columns: int | None, path: Path) -> torch.Tensor:
    try:
        values = number_rows(data.get(key), path, 0, np.float64)
    except UserError as error:
        raise UserError(f"{path} is not a GMR motion: {key}: {error}") from None
    if (columns and values.shape[1] != columns) or not (np.abs(values) <= MAX_FRAME_VALUE).all():
        raise UserError(f"{path}: {key} must be finite numbers [F, {columns or 'D'}], found the shape {values.shape} "
                        f"and {np.abs(values).max(initial=0):g} as the largest number")
    return torch.from_numpy(values)


def convert(args: argparse.Namespace) -> MotionClip:
    """The clip that the options ask for.

    Raises:
        UserError: the file is not a GMR motion, or does not have the frames or dofs.
    """
    path = args.input_file
    data = read_plain_pickle(path)
    if not isinstance(data, Mapping):
        raise UserError(f"{path} is not a GMR motion: it holds a {type(data).__name__}, expected a dictionary")
    pos, dof = _array(data, "root_pos", 3, path), _array(data, "dof_pos", None, path)
    turn = _array(data, "root_rot", 4, path)
    if not len(pos) == len(turn) == len(dof):
        raise UserError(f"{path}: root_pos, root_rot and dof_pos have {len(pos)}, {len(turn)} and {len(dof)} frames")
    if turn.norm(dim=-1).min() < 1e-6:
        raise UserError(f"{path}: root_rot holds a quaternion of zeros")
    fps = data.get("fps")
    if not isinstance(fps, (int, float)) or not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise UserError(f"{path}: fps must be a positive number from 1 to 1000, found {reprlib.repr(fps)}")

    keep = frame_range(args, len(pos))
    low, part, fps = resample_grid(len(pos[keep]), float(fps), wanted_fps(args, float(fps)))
    turn = slerp_rows(rot.quat_normalize(turn[keep]).unsqueeze(1), low, part)[:, 0]
    frames = torch.cat([lerp_rows(pos[keep], low, part), rot.quat_to_exp_map(turn), lerp_rows(dof[keep], low, part)], 1)
    clip = MotionClip(LOOP_MODES[args.loop], fps, frames.numpy().astype(np.float32))
    if args.char:
        check_dofs(clip, load_character_model(args.char), path)
    return clip


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--char", type=Path, metavar="XML", help="make sure that the motion fits this character")
    return run(convert, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
