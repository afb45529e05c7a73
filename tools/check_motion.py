"""Check motion clips: do they fit their character, keep off the ground, stand firmly, loop without a jerk?

    python tools/check_motion.py                          # every clip below data/motions
    python tools/check_motion.py my_clip.pkl --char data/assets/g1/g1.xml --sheet /tmp

The character follows from the folder (data/motions/g1 -> g1), or from --char. Prints a table. An error makes a clip
unusable (unreadable, of another character, not in metres with Z up); a warning marks an unclean one, which policies can
still learn from. Exit code 1 if a clip has an error (with --strict, which this project's own clips pass, a warning), 2
for wrong arguments. --sheet draws a strip of poses per clip (NAME.png) to look at.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mimickit.anim.motion import load_motion
from mimickit.clips.check import (
    HEADER,
    MOTIONS,
    character_of,
    errors,
    list_clips,
    load_exemptions,
    measure,
    problems,
    row,
)
from mimickit.clips.render import draw_sheet
from mimickit.clips.shape import Shape
from mimickit.util.failures import EXIT_FAILED, EXIT_OK, UserError, explains_mistakes


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=lines[0], epilog=lines[2])
    parser.add_argument("clips", nargs="*", type=Path, metavar="PATH",
                        help="clips, or folders searched for clips (default: data/motions)")
    parser.add_argument("--char", type=Path, metavar="XML", help="character file of all clips named")
    parser.add_argument("--sheet", type=Path, metavar="DIR", help="draw a strip of poses per clip into this folder")
    parser.add_argument("--strict", action="store_true", help="a warning decides the exit code too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed = _check(args)
    return EXIT_FAILED if "error" in failed or (args.strict and failed) else EXIT_OK


def _check(args: argparse.Namespace) -> set[str]:
    """Print the table and what was found; returns the levels found, of ``error`` and ``warning``."""
    exemptions = load_exemptions()
    shapes: dict[Path, Shape] = {}
    levels: set[str] = set()
    lines = []
    print(HEADER)
    for path in list_clips(args.clips or [MOTIONS]):
        char_file = args.char or character_of(path)
        if char_file not in shapes:
            shapes[char_file] = Shape(char_file)
        shape = shapes[char_file]
        try:
            clip = load_motion(path, shape.character.model)
        except UserError as error:
            levels.add("error")
            lines.append(f"error: {error}")
            continue
        report = measure(clip, shape)
        unusable, unclean = errors(report), problems(report, exemptions.get(path.stem))
        level = "error" if unusable else "warning" if unclean else ""
        levels |= {level} - {""}
        print(row(path.stem, report, level or ("exempt" if path.stem in exemptions else "ok")), flush=True)
        lines += [f"error: {path}: {text}" for text in unusable]
        lines += [f"warning: {path}: {text}" for text in unclean if text not in unusable]
        if args.sheet:
            draw_sheet(clip, shape, args.sheet / f"{path.stem}.png")
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    return levels


if __name__ == "__main__":
    sys.exit(main())
