"""Mirrored, faster, curved clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode, load_motion
from mimickit.clips.check import MOTIONS
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, pack, unpack
from mimickit.clips.vary import curve, mirror
from mimickit.util.failures import UserError
from tools.vary import main


@pytest.fixture(scope="module")
def shape():
    return Shape(ASSETS / CHARACTERS["humanoid"])


@pytest.fixture(scope="module")
def walk(shape):
    return unpack(load_motion(MOTIONS / "humanoid/humanoid_walk.pkl"), shape)


def test_mirroring_reflects_every_body(shape, walk):
    names = list(shape.character.body_names)
    pos, turn = shape.kinematics(walk)
    mirrored, mirrored_turn = shape.kinematics(mirror(walk, shape))
    for i, name in enumerate(names):
        other = name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        there = names.index(other)
        np.testing.assert_allclose(mirrored[:, there], pos[:, i] * torch.tensor([1.0, -1.0, 1.0]), atol=1e-9)
        flipped = turn[:, i] * torch.tensor([-1.0, 1.0, -1.0, 1.0])
        assert ((mirrored_turn[:, there] * flipped).sum(-1).abs() > 1 - 1e-9).all()


def test_mirroring_by_hand(shape):
    """Right elbow bent by 1 about z, neck turned left: the left elbow bends by -1, the neck turns right."""
    clip = load_motion(MOTIONS / "humanoid/humanoid_walk.pkl")
    frames = np.zeros((2, 34), np.float32)
    frames[:, 1], frames[:, 15], frames[:, 11], frames[:, 20] = 0.5, 1.0, 0.3, -0.2
    out = pack(mirror(unpack(replace(clip, frames=frames), shape), shape), shape).frames[0]
    expected = np.zeros(34)
    expected[1], expected[19], expected[11], expected[27] = -0.5, -1.0, -0.3, 0.2
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_mirroring_twice_is_nothing(shape, walk):
    twice = mirror(mirror(walk, shape), shape)
    torch.testing.assert_close(twice.joint_rot, walk.joint_rot)
    torch.testing.assert_close(twice.root_pos, walk.root_pos)


def test_a_body_without_counterpart_cannot_be_mirrored():
    """The right wrist, which carries the sword, moves; the left one does not."""
    shape = Shape(ASSETS / CHARACTERS["sword_shield"])
    clip = load_motion(MOTIONS / "humanoid/humanoid_walk.pkl")
    frames = np.zeros((2, 6 + shape.character.num_dofs), np.float32)
    with pytest.raises(UserError, match=r"right_hand, left_hand has no counterpart"):
        mirror(unpack(replace(clip, frames=frames), shape), shape)


@pytest.mark.parametrize("rate", [0.5, -0.5])
def test_curves_turn_lean_and_stand(shape, walk, rate):
    out = curve(walk, rate, shape)
    clip = pack(out, shape)
    assert clip.loop_mode is LoopMode.CLAMP and clip.length >= 2.5
    start, end = clip.frames[0], clip.frames[-1]
    assert end[5] - start[5] == pytest.approx(rate * clip.length, abs=0.03)
    # an arc: its chord has half the turn's direction
    assert np.arctan2(end[1] - start[1], end[0] - start[0]) == pytest.approx(0.5 * rate * clip.length, abs=0.1)
    torso = shape.character.model.body_index("torso")
    pos, _ = shape.kinematics(out)
    left = (pos[0, torso] - out.root_pos[0])[1]  # the walk begins along x
    straight = (shape.kinematics(walk)[0][0, torso] - walk.root_pos[0])[1]
    assert (left - straight) * rate > 0


def test_command_line_makes_the_shipped_set(tmp_path, capsys):
    dataset = tmp_path / "set.yaml"
    assert main(["--out-dir", str(tmp_path / "out"), "--dataset", str(dataset)]) == 0
    assert "35 clips written" in capsys.readouterr().out
    made, shipped = sorted((tmp_path / "out").iterdir()), sorted((MOTIONS / "humanoid/locomotion").iterdir())
    assert [p.name for p in made] == [p.name for p in shipped]
    for a, b in zip(made, shipped):
        np.testing.assert_allclose(load_motion(a).frames, load_motion(b).frames, atol=1e-4)
    assert dataset.read_text().count("- {file: ") == 42
    assert main(["--source-dir", str(tmp_path)]) == 2 and "motion file not found" in capsys.readouterr().err
