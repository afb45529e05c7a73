"""Make the Go2's clips: gaits in closed form (mimickit/clips/gaits.py).

    python tools/gaits.py --out-dir data/motions/go2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import save_motion
from mimickit.clips.check import measure
from mimickit.clips.gaits import Gait, make_gait
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_OK, explains_mistakes
from mimickit.util.names import check_known

TROT, PACE, AMBLE = (0.0, 0.5, 0.5, 0.0), (0.05, 0.55, 0.0, 0.5), (0.75, 0.25, 0.5, 0.0)
GAITS: dict[str, Gait] = {
    "go2_walk": Gait(AMBLE, 0.68, 1.4, 0.50, 0.045),
    "go2_walk0": Gait(AMBLE, 0.72, 1.1, 0.30, 0.045),
    "go2_walk1": Gait(AMBLE, 0.70, 1.3, 0.40, 0.045),
    "go2_walk2": Gait(AMBLE, 0.66, 1.5, 0.60, 0.045),
    "go2_walk3": Gait(AMBLE, 0.64, 1.7, 0.70, 0.045),
    "go2_amble": Gait(AMBLE, 0.58, 1.8, 0.80, 0.045),
    "go2_pace": Gait(PACE, 0.54, 1.8, 0.70, 0.045, track=0.11),
    "go2_trot": Gait(TROT, 0.50, 2.2, 1.00, 0.05),
    "go2_run": Gait(TROT, 0.42, 2.8, 1.50, 0.05),
    "go2_canter": Gait((0.60, 0.33, 0.33, 0.0), 0.42, 2.5, 1.40, 0.05),
    "go2_turn_left": Gait(TROT, 0.55, 2.0, 0.40, 0.045, yaw_rate=0.9),
    "go2_turn_right": Gait(TROT, 0.55, 2.0, 0.40, 0.045, yaw_rate=-0.9),
}


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out-dir", type=Path, default=SHIPPED / "data/motions/go2",
                        help="default: data/motions/go2 of the project")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help=f"only these of {', '.join(GAITS)}")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    check_known(args.clips or (), GAITS, "there is no gait")
    char_file = ASSETS / CHARACTERS["go2"]
    shape = Shape(char_file)
    model = load_character_model(char_file)
    foot_radius = float(shape.radius[shape.body == shape.feet[0]].max())
    for name in args.clips or GAITS:
        clip = make_gait(GAITS[name], model, foot_radius)
        save_motion(args.out_dir / f"{name}.pkl", clip)
        report = measure(clip, shape)
        print(f"{name}: {clip.num_frames} frames, {report.root_speed:.2f} m/s, slide {report.slide:.2f} m/s, "
              f"fastest joint {report.max_speed:.1f} rad/s")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
