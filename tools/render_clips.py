"""Renders clips as strips of pictures, drawn by the physics engine's viewer.

    python tools/render_clips.py data/motions/g1/g1_walk.pkl data/motions/go2/go2_pace.pkl --out sheet.png

One row per clip, evenly spaced over its length. The character follows from the clip's folder, or is named with --char.
Objects of an environment stand where it puts them with --env (vaults). Nothing is simulated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from mimickit.clips.check import character_of
from mimickit.clips.render import rendered_strip
from mimickit.engines.engine import StaticObject
from mimickit.envs.env_builder import load_env_config
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import atomic_path


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--out", type=Path, required=True, help="picture: png")
    parser.add_argument("--char", type=Path, help="character file, instead of the folder's")
    parser.add_argument("--env", type=Path, help="environment yaml whose objects are drawn too")
    parser.add_argument("--pictures", type=int, default=8, help="pictures a clip, at least 1 (8)")
    args = parser.parse_args(argv)
    if args.pictures < 1:
        raise UserError(f"--pictures {args.pictures}: at least 1")
    if args.out.suffix != ".png":
        raise UserError(f"--out {args.out}: the picture must end in .png")
    placed = load_env_config(args.env).objects if args.env is not None else ()
    objects = [StaticObject(one.file, tuple(one.pos), tuple(one.rot)) for one in placed]
    rows = [rendered_strip(clip, args.char or character_of(clip), objects, args.pictures) for clip in args.clips]
    from PIL import Image

    with atomic_path(args.out) as temporary:
        Image.fromarray(np.concatenate(rows)).quantize(128).save(temporary, format="PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
