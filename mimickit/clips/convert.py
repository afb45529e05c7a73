"""What the converters of foreign motion files share: options, and the choice of frames."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.util.failures import EXIT_OK, AssetMissingError, UserError, explains_mistakes
from mimickit.util.names import missing_file

ENDINGS = (".pkl", ".npz")
LOOP_MODES = {"wrap": LoopMode.WRAP, "clamp": LoopMode.CLAMP}


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options of every converter; ``doc`` is the program's docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--input_file", type=Path, required=True)
    parser.add_argument("--output_file", type=Path, required=True, help=".pkl or .npz")
    parser.add_argument("--loop", choices=tuple(LOOP_MODES), default="wrap", help="what happens past the end "
                                                                                  "(default: wrap)")
    parser.add_argument("--start_frame", type=int, default=0, help="first frame used (default: 0)")
    parser.add_argument("--end_frame", type=int, default=-1, help="frame behind the last one used (default: -1, all)")
    parser.add_argument("--output_fps", type=float, default=-1.0,
                        help="resample to about this rate, keeping the length (default: -1, as the source)")
    return parser


def frame_range(args: argparse.Namespace, frames: int) -> slice:
    """The frames asked for.

    Raises:
        UserError: the range is empty, or the source does not have these frames.
    """
    end = frames if args.end_frame == -1 else args.end_frame
    if not 0 <= args.start_frame < end <= frames:
        raise UserError(f"--start_frame {args.start_frame} --end_frame {args.end_frame}: {args.input_file} has "
                        f"{frames} frames; expected 0 <= start < end <= {frames} (or end -1)")
    return slice(args.start_frame, end)


def wanted_fps(args: argparse.Namespace, fps: float) -> float:
    """The rate asked for. Raises UserError if it is not -1 or positive."""
    if args.output_fps == -1.0:
        return fps
    if not args.output_fps > 0:
        raise UserError(f"--output_fps {args.output_fps:g}: expected a positive number, or -1 for the source's rate")
    return args.output_fps


@explains_mistakes
def run(convert: Callable[[argparse.Namespace], MotionClip], args: argparse.Namespace) -> int:
    """Convert, save, and print what was written; returns the exit code."""
    if args.output_file.suffix not in ENDINGS:
        raise UserError(f"--output_file {args.output_file}: clips can end in {', '.join(ENDINGS)}")
    if not os.path.exists(args.input_file):
        raise AssetMissingError(f"input file not found: {missing_file(args.input_file)}")
    clip = convert(args)
    save_motion(args.output_file, clip)
    print(f"{args.output_file}: {clip.num_frames} frames at {clip.fps:g} fps, {clip.frames.shape[1] - 6} dofs, "
          f"{clip.loop_mode.name.lower()}. Check it: python tools/check_motion.py {args.output_file} --char FILE.xml")
    return EXIT_OK
