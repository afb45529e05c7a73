"""Whether a clip is fit for training: :func:`measure` measures it, :func:`problems` compares with limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from mimickit.anim.mjcf import JointKind
from mimickit.anim.motion import MotionClip, save_motion
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, unpack
from mimickit.config import Config, build, load_yaml
from mimickit.util import rotations as rot
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import missing_file

MOTIONS = SHIPPED / "data/motions"
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
STANCE_HEIGHT, STANCE_SPEED = 0.02, 0.5  # m, m/s: below both, in two frames running, a foot stands


@dataclass(frozen=True)
class Report:
    """Measures of a clip (SI units)."""

    frames: int
    fps: float
    loop: str  # wrap, clamp
    lowest_foot: float  # m, lowest point of the feet over the clip (nan: the feet are not known)
    lowest: float  # m, the same of all bodies
    slide: float  # m/s, mean horizontal speed of the soles of standing feet (nan: none stands)
    seam_rot: float  # rad, widest gap of a joint or the root between first and last frame (0 for clamped clips)
    seam_pos: float  # m, gap of the root's height (0 for clamped clips)
    max_speed: float  # rad/s, fastest joint
    root_speed: float  # m/s, fastest the root moves between two frames
    root_turn: float  # rad/s, fastest the root turns
    hinge_violation: float  # rad, how far a hinge exceeds its range
    worst_hinge: str  # its name (empty: none does)


def measure(clip: MotionClip, shape: Shape) -> Report:
    """Measure a clip, which must fit the character; see :class:`Report`."""
    motion = unpack(clip, shape)
    pos, turn = shape.kinematics(motion)
    heights = shape.heights(pos, turn)
    slide, lowest_foot = float("nan"), float("nan")
    if shape.feet:
        low = shape.foot_heights(heights)
        lowest_foot = low.min().item()
        soles = pos[:, shape.feet] + rot.quat_rotate(turn[:, shape.feet], shape.sole)
        moves = torch.diff(soles, dim=0) * clip.fps
        stands = (low[:-1] < STANCE_HEIGHT) & (low[1:] < STANCE_HEIGHT) & (moves.norm(dim=-1) < STANCE_SPEED)
        if stands.any():
            slide = moves[..., :2].norm(dim=-1)[stands].mean().item()
    all_rot = torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1)
    velocity = shape.character.dof_velocity(motion.joint_rot[:-1], motion.joint_rot[1:], 1.0 / clip.fps)
    steps = torch.diff(motion.root_pos, dim=0).norm(dim=-1) * clip.fps
    turns = rot.quat_diff_angle(motion.root_rot[:-1], motion.root_rot[1:]) * clip.fps
    violation, hinge = _hinge_violation(clip.frames[:, 6:], shape)
    return Report(
        frames=clip.num_frames, fps=clip.fps, loop="wrap" if motion.loops else "clamp",
        lowest_foot=lowest_foot, lowest=heights.min().item(), slide=slide,
        seam_rot=rot.quat_diff_angle(all_rot[0], all_rot[-1]).max().item() if motion.loops else 0.0,
        seam_pos=abs((motion.root_pos[-1] - motion.root_pos[0])[2].item()) if motion.loops else 0.0,
        max_speed=_largest(velocity.abs()), root_speed=_largest(steps), root_turn=_largest(turns),
        hinge_violation=violation, worst_hinge=hinge,
    )


def _largest(values: torch.Tensor) -> float:
    return values.max().item() if values.numel() else 0.0


def _hinge_violation(dofs: np.ndarray, shape: Shape) -> tuple[float, str]:
    """Largest excess of a hinge over its range, and its name. Spherical joints are left out: a clip holds their
    exponential map, the range belongs to three hinges."""
    model = shape.character.model
    hinges = [s.start for s, kind in zip(model.dof_slices, model.joint_kinds) if kind is JointKind.HINGE]
    if not hinges:
        return 0.0, ""
    excess = np.maximum(model.dof_low[hinges] - dofs[:, hinges], dofs[:, hinges] - model.dof_high[hinges]).max(0)
    worst = int(excess.argmax())
    return max(float(excess[worst]), 0.0), model.dof_names[hinges[worst]] if excess[worst] > 0 else ""


# --- rules ----------------------------------------------------------------------------------------------------------


class Exemption(Config):
    """What one clip may exceed, and why."""

    reason: str = Field(min_length=10)
    max_slide: float = Field(MAX_SLIDE, gt=MAX_SLIDE, lt=0.5, description="m/s")


class Exemptions(Config):
    clips: dict[str, Exemption] = Field(description="file name without suffix -> what it may exceed")


def load_exemptions(path: Path = EXEMPTIONS) -> dict[str, Exemption]:
    """Exemptions by clip name; none without the file. Raises UserError if it is invalid."""
    return build(Exemptions, load_yaml(path), str(path)).clips if path.is_file() else {}


def errors(report: Report) -> list[str]:
    """What makes a clip unusable, in words with numbers."""
    hint = "is Z up, are the units metres?"
    rules = [
        (report.frames < 2, f"{report.frames} frame; at least 2 are required"),
        (abs(report.lowest) > UNUSABLE_HEIGHT,
         f"its lowest point is {report.lowest:.2f} m from the ground (usable: {UNUSABLE_HEIGHT:g}; {hint})"),
        (report.root_speed > UNUSABLE_SPEED,
         f"the root moves with {report.root_speed:.0f} m/s (usable: {UNUSABLE_SPEED:g}; {hint})"),
    ]
    return [text for broken, text in rules if broken]


def problems(report: Report, exemption: Exemption | None = None) -> list[str]:
    """All that is wrong with a clip, errors included, in words with numbers; empty if it is clean."""
    max_slide = exemption.max_slide if exemption else MAX_SLIDE
    rules = [
        (report.frames < 2, f"{report.frames} frame; at least 2 are required"),
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
    """The named clip files, and those below the named folders.

    Raises:
        AssetMissingError: a path does not exist. UserError: there is no clip at all.
    """
    missing = [missing_file(path) for path in paths if not path.exists()]
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
    """One line of the table."""
    def shown(value: float, digits: int) -> str:
        return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"

    cells = [name, report.frames, f"{report.fps:g}", report.loop, shown(report.lowest_foot, 3), shown(report.lowest, 3),
             shown(report.slide, 2), shown(report.seam_rot, 3), shown(report.seam_pos, 3), shown(report.max_speed, 1),
             shown(report.root_speed, 1), verdict]
    return f"| {' | '.join(map(str, cells))} |"


def save_checked(path: Path, clip: MotionClip, shape: Shape) -> bool:
    """Save a clip and print its line of the table (below :data:`HEADER`); whether it is clean."""
    save_motion(path, clip)
    report = measure(clip, shape)
    found = problems(report)
    print(row(path.stem, report, "; ".join(found) or "ok"), flush=True)
    return not found
