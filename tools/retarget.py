"""Retarget the humanoid's clips to other bodies: G1, Pi Plus and SMPL (mimickit/clips/retarget.py).

    pip install -e .[tools]
    python tools/retarget.py g1 hightorque_pi_plus smpl
    python tools/retarget.py g1 --clips walk --source-dir my_humanoid_clips --out-dir /tmp
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mimickit.anim.motion import load_motion
from mimickit.clips.check import HEADER, save_checked
from mimickit.clips.retarget import (
    ROBOTS,
    SMOOTH,
    SMOOTH_CLIPS,
    SMPL_CLIPS,
    SOURCE_NAMES,
    retarget_robot,
    retarget_smpl,
)
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_OK, explains_mistakes
from mimickit.util.names import check_known

SOURCES = SHIPPED / "data/motions/humanoid"


@explains_mistakes
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("characters", nargs="+", metavar="CHARACTER", help=f"of {', '.join([*ROBOTS, 'smpl'])}")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="humanoid clips without prefix, for example walk "
                                                                   "(default: the set that is shipped)")
    parser.add_argument("--source-dir", type=Path, default=SOURCES, help="default: data/motions/humanoid")
    parser.add_argument("--out-dir", type=Path, help="default: data/motions/CHARACTER of the project")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    known = [*ROBOTS, "smpl"]
    check_known(args.characters, known, "there is no retargeting to")
    human = Shape(ASSETS / CHARACTERS["humanoid"])
    print(HEADER)
    for char in args.characters:
        shape = Shape(ASSETS / CHARACTERS[char])
        robot = ROBOTS.get(char)
        for name in args.clips or (robot.clips if robot else SMPL_CLIPS):
            clip = load_motion(args.source_dir / f"humanoid_{SOURCE_NAMES.get(name, name)}.pkl")
            smooth = SMOOTH_CLIPS.get(name, SMOOTH)
            made = (retarget_robot(clip, human, shape, robot, smooth) if robot
                    else retarget_smpl(clip, human, shape, smooth))
            file = (args.out_dir or SHIPPED / "data/motions" / char) / f"{robot.prefix if robot else char}_{name}.pkl"
            save_checked(file, made, shape)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
