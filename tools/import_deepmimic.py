"""Convert DeepMimic's humanoid clips (json) into this project's clips (.pkl), and prepare them for imitation.

    python tools/import_deepmimic.py --out-dir data/motions/humanoid

Without further arguments it reads the clips inside the installed pybullet package (pip install pybullet==3.2.7).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mimickit.anim.motion import LoopMode, MotionClip
from mimickit.clips.check import HEADER, save_checked
from mimickit.clips.cleanup import clean
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape
from mimickit.util import rotations as rot
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_OK, AssetMissingError, UserError, explains_mistakes
from mimickit.util.names import check_known

CHARACTER = ASSETS / CHARACTERS["humanoid"]
# clips whose standing feet slide faster than 0.15 m/s as recorded
PINNED = frozenset({"humanoid_backflip", "humanoid_dance_a", "humanoid_dance_b", "humanoid_roll", "humanoid_spin"})
SOURCE_COLUMNS = 44
QUATERNIONS = (4, 8, 12, 16, 21, 25, 30, 35, 39)  # columns at which the source's quaternions begin


@dataclass(frozen=True)
class Source:
    """A DeepMimic clip: whether it loops, and its rows float64 [F, 44] (columns: see :func:`convert`)."""

    name: str
    loop: bool
    rows: np.ndarray


def find_clips() -> Path:
    """Folder with the clips of the installed pybullet package (found without importing it).

    Raises:
        AssetMissingError: pybullet is not installed.
    """
    spec = importlib.util.find_spec("pybullet_data")
    folder = Path(spec.origin).parent / "data/motions" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise AssetMissingError("the pybullet package with DeepMimic's clips is not installed: pip install "
                                "pybullet==3.2.7, or name files or folders of clips on the command line")
    return folder


def list_clips(paths: list[Path]) -> dict[str, Path]:
    """Clip names (``humanoid_walk``) and files below the given files or folders; other characters are left out.

    Raises:
        AssetMissingError: a path does not exist.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise AssetMissingError(f"not found: {', '.join(missing)}")
    found = {}
    for path in paths:
        files = [path] if path.is_file() else [*path.glob("humanoid3d_*.txt"), *path.glob("walker/*.txt")]
        for file in sorted(files):
            prefix = "walker_" if file.parent.name == "walker" else ""
            found["humanoid_" + prefix + file.stem.removeprefix("humanoid3d_")] = file
    return dict(sorted(found.items()))


def read_source(path: Path, name: str) -> Source:
    """Read a DeepMimic json clip.

    Raises:
        UserError: it is not one, or its rows are not 44 finite numbers.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = np.array(data["Frames"], dtype=np.float64)
        loop = data.get("Loop", "none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a DeepMimic humanoid clip: {type(error).__name__}: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != SOURCE_COLUMNS or not np.isfinite(rows).all():
        raise UserError(f"{path}: expected frames of {SOURCE_COLUMNS} finite numbers, found shape {rows.shape}")
    if loop not in ("wrap", "none"):
        raise UserError(f"{path}: Loop is '{loop}', allowed are wrap and none")
    return Source(name, loop == "wrap", rows)


def _quat(wxyz: np.ndarray) -> torch.Tensor:
    """Source quaternions [F, 4] (w x y z; Y up, X forward, Z right) -> unit xyzw with Z up, Y left."""
    w, x, y, z = wxyz.T
    return rot.quat_normalize(torch.from_numpy(np.stack([x, -z, y, w], axis=-1)))


def _even(rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Frames per second, and rows at even times: clips with a longer frame in between are interpolated."""
    durations = rows[:, 0]
    step = float(np.median(durations[:-1])) if len(rows) > 1 else 1.0
    fps = round(1.0 / step) if abs(1.0 / step - round(1.0 / step)) < 0.05 else 1.0 / step
    if len(rows) < 2 or np.abs(durations[:-1] - step).max() < 1e-3 * step:
        return float(fps), rows
    times = np.concatenate([[0.0], np.cumsum(durations[:-1])])
    count = round(times[-1] * fps) + 1
    at = np.minimum(np.arange(count) / fps, times[-1])
    low = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(rows) - 2)
    blend = (at - times[low]) / (times[low + 1] - times[low])
    even = rows[low] + blend[:, None] * (rows[low + 1] - rows[low])
    for i in QUATERNIONS:
        ends = [torch.from_numpy(rows[k, i:i + 4]) for k in (low, low + 1)]
        even[:, i:i + 4] = rot.slerp(*map(rot.quat_normalize, ends), torch.from_numpy(blend))
    return float(fps), even


def convert(source: Source) -> MotionClip:
    """Change of axes, rest pose and packing; nothing is corrected. Unevenly timed frames are resampled.

    The source has Y up, X forward, Z right, quaternions w x y z, arms hanging at rest. Its row: 0 duration, 1:4 root
    position, 4:8 root rotation, 8:12 chest, 12:16 neck, 16:20 right hip, 20 right knee, 21:25 right ankle, 25:29 right
    shoulder, 29 right elbow, 30:34 left hip, 34 left knee, 35:39 left ankle, 39:43 left shoulder, 43 left elbow.
    The humanoid rests with its arms spread: a shoulder is the source's times a quarter turn about X.
    """
    fps, rows = _even(source.rows)
    half = math.sqrt(0.5)
    right_quarter = torch.tensor([half, 0.0, 0.0, half], dtype=torch.float64)

    def exp(column: int, then: torch.Tensor | None = None) -> np.ndarray:
        quat = _quat(rows[:, column:column + 4])
        return rot.quat_to_exp_map(quat if then is None else rot.quat_mul(quat, then)).numpy()

    frames = np.concatenate([
        rows[:, [1, 3, 2]] * (1, -1, 1), exp(4),  # root
        exp(8), exp(12),  # abdomen, neck
        exp(25, right_quarter), rows[:, 29:30], exp(39, rot.quat_conj(right_quarter)), -rows[:, 43:44],  # arms
        exp(16), -rows[:, 20:21], exp(21),  # right leg
        exp(30), -rows[:, 34:35], exp(35),  # left leg
    ], axis=1)
    clamp = "_turn_" in source.name  # a loop would not go on in the new heading
    mode = LoopMode.WRAP if source.loop and not clamp else LoopMode.CLAMP
    return MotionClip(mode, fps, frames.astype(np.float32))


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[2])
    parser.add_argument("sources", nargs="*", type=Path, metavar="PATH",
                        help="json clips, or folders laid out as in the package (default: the package's clips)")
    parser.add_argument("--out-dir", type=Path, default=SHIPPED / "data/motions/humanoid",
                        help="default: data/motions/humanoid of the project")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these, for example humanoid_walk")
    parser.add_argument("--no-postprocess", action="store_true",
                        help="convert faithfully: leave seams, sunken feet and hyperextended knees as recorded")
    parser.add_argument("--list", action="store_true", help="print the clips that were found, write nothing")
    args = parser.parse_args(arguments)
    _run(args)
    return EXIT_OK


def _run(args: argparse.Namespace) -> None:
    found = list_clips(args.sources or [find_clips()])
    check_known(args.clips or (), found, "there is no clip")
    wanted = {name: path for name, path in found.items() if not args.clips or name in args.clips}
    if args.list:
        print("\n".join(f"{name}  {path}" for name, path in wanted.items()))
        return
    torch.set_num_threads(1)
    shape = Shape(CHARACTER)
    print(HEADER)
    for name, path in wanted.items():
        clip = convert(read_source(path, name))
        if not args.no_postprocess:
            clip = clean(clip, shape, pin_feet=name in PINNED)
        save_checked(args.out_dir / f"{name}.pkl", clip, shape)


if __name__ == "__main__":
    sys.exit(main())
