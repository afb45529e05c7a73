"""Pictures of a clip: poses side by side, drawn as sticks (:func:`draw_sheet`) or rendered (:func:`rendered_strip`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mimickit.anim.character import Character
from mimickit.anim.motion import MotionClip
from mimickit.anim.motion_lib import MotionLib
from mimickit.clips.shape import Shape, unpack
from mimickit.engines.engine import StaticObject, WorldSpec
from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE, load_engine_config
from mimickit.util import rotations as rot

SIZE = (640, 400)  # pixels of a picture before cropping
CROP = (190, 70, 450, 330)  # to the character, which the camera follows
CELL = 170  # pixels
COLORS = {"left": (200, 60, 50), "right": (40, 80, 190), "middle": (60, 60, 60)}
VIEWS = (((1, 0), "side"), ((0, 1), "front"))  # horizontal axis of the picture in the ground plane


def _color(name: str) -> tuple[int, int, int]:
    low = name.lower()
    if low.startswith(("left", "l_", "fl_", "rl_")):
        return COLORS["left"]
    return COLORS["right"] if low.startswith(("right", "r_", "fr_", "rr_")) else COLORS["middle"]


def draw_sheet(clip: MotionClip, shape: Shape, path: Path, poses: int = 12) -> None:
    """Draw ``poses`` poses, evenly spaced in time, from the right side and from the front (left limbs red).

    Axes are the world's; the picture follows the root horizontally. Ground: the grey line. Sole and collision points
    are dots.
    """
    from PIL import Image, ImageDraw

    pick = torch.linspace(0, clip.num_frames - 1, min(poses, clip.num_frames)).round().long()
    motion = unpack(MotionClip(clip.loop_mode, clip.fps, clip.frames[pick.numpy()]), shape)
    pos, turn = shape.kinematics(motion)
    model = shape.character.model
    reach = float((pos - motion.root_pos.unsqueeze(1)).norm(dim=-1).max()) + 0.1
    scale = CELL / (2.0 * reach)
    bottom = min(float(pos[..., 2].min()), 0.0) - 0.08
    top = float(pos[..., 2].max()) + 0.15
    height = int((top - bottom) * scale)
    image = Image.new("RGB", (CELL * len(pick), (height + 14) * len(VIEWS)), "white")
    draw = ImageDraw.Draw(image)
    dots = pos[:, shape.body] + rot.quat_rotate(turn[:, shape.body], shape.centre)
    for line, (axis, view) in enumerate(VIEWS):
        y0 = (height + 14) * line
        for i in range(len(pick)):
            def place(p, i=i, y0=y0, axis=axis):
                side = (p[0] - motion.root_pos[i, 0]) * axis[0] + (p[1] - motion.root_pos[i, 1]) * axis[1]
                return CELL * (i + 0.5) + float(side) * scale, y0 + height - float(p[2] - bottom) * scale

            ground = place((motion.root_pos[i, 0], motion.root_pos[i, 1], 0.0))[1]
            draw.line([(CELL * i, ground), (CELL * (i + 1), ground)], fill=(190, 190, 190))
            for p in dots[i]:
                x, y = place(p)
                draw.point((x, y), fill=(150, 150, 150))
            for body in range(1, model.num_bodies):
                draw.line([place(pos[i, model.parents[body]]), place(pos[i, body])],
                          fill=_color(model.body_names[body]), width=3)
            draw.text((CELL * i + 3, y0 + height), f"{view} {pick[i].item() / clip.fps:.2f} s", fill=(0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@torch.no_grad()
def rendered_strip(clip: Path, char: Path, objects: Sequence[StaticObject], pictures: int) -> np.ndarray:
    """Pictures side by side, evenly spaced over the clip, as the engine's viewer draws the character: uint8 RGB."""
    from mimickit.engines.newton_engine import NewtonEngine
    from mimickit.engines.newton_viewer import VideoRecorder

    engine = NewtonEngine(WorldSpec(char, objects=tuple(objects)), load_engine_config(DEFAULT_ENGINE_FILE), 1, "cpu")
    character = Character.load(char, "cpu")
    library = MotionLib(clip, character)
    row = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = VideoRecorder(engine, Path(folder) / "x.mp4", 30, *SIZE, camera_mode="track", num_png=0)
        for share in np.linspace(0.0, 0.999, pictures):
            frame = library.frame(torch.tensor([0]), library.lengths[:1] * share)
            pos, turn = character.forward_kinematics(frame.root_pos, frame.root_rot, frame.joint_rot)
            engine.body_pos.copy_(pos)
            engine.body_rot.copy_(turn)
            left, top, right, bottom = CROP
            row.append(recorder.capture()[top:bottom, left:right])
        recorder.close()
    engine.close()
    return np.concatenate(row, axis=1)
