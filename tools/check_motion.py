"""Check motion clips: do they fit their character, keep off the ground, stand firmly, loop without a jerk?

    python tools/check_motion.py                          # every clip below data/motions
    python tools/check_motion.py my_clip.pkl --char data/assets/g1/g1.xml --sheet /tmp

The character follows from the folder (data/motions/g1 -> g1), or from --char. Prints a table. An error is what makes a
clip unusable (it cannot be read, does not fit, is not in metres with Z up), a warning what makes it unclean: policies
learn from such clips too. Exit code 1 if a clip has an error (with --strict, which this project's own clips pass, a
warning), 2 for wrong arguments. --sheet draws a strip of poses per clip (NAME.png), to be looked at by a person.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimickit.anim.motion import load_motion
from mimickit.config import Config, build, load_yaml
from mimickit.util.failures import EXIT_FAILED, EXIT_OK, AssetMissingError, UserError
from tools.command import explains_mistakes
from tools.contact_sheet import draw_sheet
from tools.measure import Report, measure
from tools.shape import ASSETS, CHARACTERS, PROJECT, Shape

MOTIONS = PROJECT / "data/motions"
EXEMPTIONS = MOTIONS / "exemptions.yaml"

FPS_RANGE = (10.0, 240.0)
MAX_HINGE_VIOLATION = 1e-3  # rad
MAX_JOINT_SPEED = 40.0  # rad/s; a faster one is a jump between two frames
MAX_ROOT_TURN = 40.0  # rad/s
MAX_ROOT_SPEED = 10.0  # m/s
MAX_SINK = 0.02  # m, lowest point below the ground
MAX_HOVER = 0.05  # m, lowest point of the whole clip above the ground
MAX_SLIDE = 0.15  # m/s
MAX_SEAM_ROT, MAX_SEAM_POS = 0.05, 0.01  # rad, m
UNUSABLE_HEIGHT, UNUSABLE_SPEED = 0.25, 100.0  # m off the ground, m/s of the root: other units, or another axis is up


class Exemption(Config):
    """What one clip may exceed, and why."""

    reason: str = Field(min_length=10)
    max_slide: float = Field(MAX_SLIDE, gt=MAX_SLIDE, lt=0.5, description="m/s")


class Exemptions(Config):
    clips: dict[str, Exemption] = Field(description="file name without suffix -> what it may exceed")


def load_exemptions(path: Path = EXEMPTIONS) -> dict[str, Exemption]:
    """Exemptions by clip name; none if there is no such file. Raises UserError if it is not valid."""
    return build(Exemptions, load_yaml(path), str(path)).clips if path.is_file() else {}


def errors(report: Report) -> list[str]:
    """What makes a clip unusable, in words with numbers."""
    hint = "is Z up, are the units metres?"
    rules = [
        (report.frames < 2, f"{report.frames} frame; needed are at least 2"),
        (abs(report.lowest) > UNUSABLE_HEIGHT,
         f"its lowest point is {report.lowest:.2f} m from the ground (usable: {UNUSABLE_HEIGHT:g}; {hint})"),
        (report.root_speed > UNUSABLE_SPEED,
         f"the root moves with {report.root_speed:.0f} m/s (usable: {UNUSABLE_SPEED:g}; {hint})"),
    ]
    return [text for broken, text in rules if broken]


def problems(report: Report, exemption: Exemption | None = None) -> list[str]:
    """What is wrong with a clip, in words with numbers, errors among it; empty if it is clean."""
    max_slide = exemption.max_slide if exemption else MAX_SLIDE
    rules = [
        (report.frames < 2, f"{report.frames} frame; needed are at least 2"),
        (not FPS_RANGE[0] <= report.fps <= FPS_RANGE[1],
         f"fps {report.fps:g} outside {FPS_RANGE[0]:g}..{FPS_RANGE[1]:g}"),
        (report.hinge_violation > MAX_HINGE_VIOLATION,
         f"{report.worst_hinge} exceeds its range by {report.hinge_violation:.3f} rad"),
        (report.max_speed > MAX_JOINT_SPEED, f"a joint jumps: {report.max_speed:.1f} rad/s > {MAX_JOINT_SPEED:g}"),
        (report.root_turn > MAX_ROOT_TURN, f"the root jumps: {report.root_turn:.1f} rad/s > {MAX_ROOT_TURN:g}"),
        (report.root_speed > MAX_ROOT_SPEED, f"the root jumps: {report.root_speed:.1f} m/s > {MAX_ROOT_SPEED:g}"),
        (report.lowest < -MAX_SINK, f"sinks {-report.lowest:.3f} m into the ground (allowed {MAX_SINK:g}; is Z up, "
                                    "are the units metres?)"),
        (report.lowest > MAX_HOVER, f"never comes closer to the ground than {report.lowest:.3f} m (allowed "
                                    f"{MAX_HOVER:g}; is Z up, are the units metres?)"),
        (report.slide > max_slide, f"standing feet slide with {report.slide:.2f} m/s > {max_slide:g}"),
        (report.seam_rot > MAX_SEAM_ROT, f"the loop's ends are {report.seam_rot:.3f} rad apart > {MAX_SEAM_ROT:g}"),
        (report.seam_pos > MAX_SEAM_POS, f"the loop's ends differ by {report.seam_pos:.3f} m in height > "
                                         f"{MAX_SEAM_POS:g}"),
    ]
    return [text for broken, text in rules if broken]


def character_of(path: Path) -> Path:
    """Character file of a clip, from the nearest folder that names one.

    Raises:
        UserError: none does.
    """
    for folder in path.resolve().parents:
        if folder.name in CHARACTERS:
            return ASSETS / CHARACTERS[folder.name]
    raise UserError(f"{path}: no folder of this path names a character ({', '.join(CHARACTERS)}); use --char FILE.xml")


def list_clips(paths: list[Path]) -> list[Path]:
    """Clip files named, or below the folders named.

    Raises:
        AssetMissingError: a path does not exist. UserError: there is no clip at all.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise AssetMissingError(f"not found: {', '.join(missing)}")
    clips = []
    for path in paths:
        clips += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".pkl", ".npz"))
    if not clips:
        raise UserError(f"no clips (.pkl, .npz) below {', '.join(map(str, paths))}")
    return clips


HEADER = ("| clip | frames | fps | loop | lowest foot m | lowest m | slide m/s | seam rad | seam m | joint rad/s | "
          "root m/s | verdict |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")


def row(name: str, report: Report, verdict: str) -> str:
    """A line of the table."""
    def shown(value: float, digits: int) -> str:
        return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"

    cells = [name, report.frames, f"{report.fps:g}", report.loop, shown(report.lowest_foot, 3), shown(report.lowest, 3),
             shown(report.slide, 2), shown(report.seam_rot, 3), shown(report.seam_pos, 3), shown(report.max_speed, 1),
             shown(report.root_speed, 1), verdict]
    return f"| {' | '.join(map(str, cells))} |"


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
