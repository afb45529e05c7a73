"""Renders clips as strips of pictures, as the physics engine's viewer shows the character.

    python tools/render_clips.py data/motions/g1/g1_walk.pkl data/motions/go2/go2_pace.pkl --out sheet.png

One row a clip, evenly spaced over its length. The character follows from the clip's folder, or is named with --char.
Objects of an environment stand where it puts them with --env (vaults). Nothing is simulated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from mimickit.anim.character import Character
from mimickit.anim.motion_lib import MotionLib
from mimickit.engines.engine import StaticObject, WorldSpec
from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE, load_engine_config
from mimickit.envs.env_builder import load_env_config
from mimickit.util.failures import UserError
from mimickit.util.files import atomic_path
from tools.check_motion import character_of
from tools.command import explains_mistakes

SIZE = (640, 400)  # pixels of a picture before cropping
CROP = (190, 70, 450, 330)  # around the character, which the camera follows


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
    rows = [render(clip, args.char or character_of(clip), args.env, args.pictures) for clip in args.clips]
    from PIL import Image

    with atomic_path(args.out) as temporary:
        Image.fromarray(np.concatenate(rows)).quantize(128).save(temporary, format="PNG", optimize=True)
    return 0


@torch.no_grad()
def render(clip: Path, char: Path, env: Path | None, pictures: int) -> np.ndarray:
    """One row of pictures, uint8 RGB."""
    from mimickit.engines.newton_engine import NewtonEngine
    from mimickit.engines.newton_viewer import VideoRecorder

    objects = load_env_config(env).objects if env is not None else ()
    spec = WorldSpec(char, objects=tuple(StaticObject(o.file, tuple(o.pos), tuple(o.rot)) for o in objects))
    engine = NewtonEngine(spec, load_engine_config(DEFAULT_ENGINE_FILE), 1, "cpu")
    character = Character.load(char, "cpu")
    library = MotionLib(clip, character)
    row = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = VideoRecorder(engine, Path(folder) / "x.mp4", 30, *SIZE, camera_mode="track", num_png=0)
        for share in np.linspace(0.0, 0.999, pictures):
            frame = library.frame(torch.tensor([0]), library.lengths[:1] * share)
            pos, rot = character.forward_kinematics(frame.root_pos, frame.root_rot, frame.joint_rot)
            engine.body_pos.copy_(pos)
            engine.body_rot.copy_(rot)
            left, top, right, bottom = CROP
            row.append(recorder.capture()[top:bottom, left:right])
        recorder.close()
    engine.close()
    return np.concatenate(row, axis=1)


if __name__ == "__main__":
    sys.exit(main())
