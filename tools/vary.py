"""Make the humanoid's locomotion set: mirrored, faster, slower and curved copies of a few clips.

    python tools/vary.py

Reads data/motions/humanoid, writes data/motions/humanoid/locomotion and data/datasets/dataset_humanoid_locomotion.yaml.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mimickit.anim.motion import MotionClip, load_motion, save_motion
from mimickit.clips.dataset import write_dataset
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, pack, unpack
from mimickit.clips.vary import curve, mirror
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_OK, explains_mistakes

SOURCES = SHIPPED / "data/motions/humanoid"
DATASET = SHIPPED / "data/datasets/dataset_humanoid_locomotion.yaml"

BASES = ("run", "walk", "walker_0walk_forward", "walker_turn_left0", "walker_turn_left1", "walker_turn_right0",
         "walker_turn_right1")
SPEEDS = {"run_slow": ("run", 0.85), "run_fast": ("run", 1.1), "walk_slow": ("walk", 0.8), "walk_fast": ("walk", 1.15),
          "walker_slow": ("walker_0walk_forward", 0.8), "walker_fast": ("walker_0walk_forward", 1.15)}
CURVES = {"run_left0": ("run", 0.4), "run_left1": ("run", 0.9),
          "walk_left0": ("walk", 0.4), "walk_left1": ("walk", 0.9)}
RUN_WEIGHT = 2.0  # running is rarer in the sources, as frequent in the set


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
    write_dataset(args.dataset, "Walking, running and turning of the humanoid. Written by tools/vary.py.",
                  {path: RUN_WEIGHT if name.startswith("run") else 1.0 for name, path in files.items()})
    print(f"{len(files) - len(BASES)} clips written to {args.out_dir}, {len(files)} listed in {args.dataset}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
