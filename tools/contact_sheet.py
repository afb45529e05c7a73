"""Strips of poses of a clip, drawn as sticks: enough to see at a glance whether a motion is what it claims to be."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from mimickit.anim.motion import MotionClip
from mimickit.util import rotations as rot
from tools.shape import Shape, unpack

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
