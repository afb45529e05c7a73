"""Converters of foreign motion files."""

import pickle
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from mimickit.anim.motion import LoopMode, load_motion
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, unpack
from mimickit.util import rotations as rot
from tools import convert_gmr, convert_smpl

G1 = ASSETS / CHARACTERS["g1"]


def gmr(frames=5, **changes):
    """1 m/s forward, turning by 0.1 rad a frame, the first joint by 0.2."""
    step = np.arange(frames, dtype=np.float64)
    turn = np.zeros((frames, 4))
    turn[:, 2], turn[:, 3] = np.sin(0.05 * step), np.cos(0.05 * step)
    dof = np.zeros((frames, 29))
    dof[:, 0] = 0.2 * step
    pos = np.stack([step / 30, 0 * step, 0 * step + 0.8], axis=1)
    return {"fps": 30, "root_pos": pos, "root_rot": turn, "dof_pos": dof, "local_body_pos": None,
            "link_body_list": ["pelvis"]} | changes


@pytest.fixture
def convert(tmp_path):
    """Run a converter on data; returns exit code and clip (None on failure)."""
    def run(program, data, *options):
        source, target = tmp_path / "in.bin", tmp_path / "out.pkl"
        if isinstance(data, dict) and program is convert_smpl:
            with source.open("wb") as file:
                np.savez(file, **data)
        else:
            source.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
        code = program.main(["--input_file", str(source), "--output_file", str(target), *options])
        return code, load_motion(target) if code == 0 else None
    return run


def test_gmr(convert):
    code, clip = convert(convert_gmr, gmr(), "--char", str(G1))
    assert code == 0 and clip.loop_mode is LoopMode.WRAP and clip.fps == 30 and clip.frames.shape == (5, 35)
    np.testing.assert_allclose(clip.frames[3, :7], (0.1, 0, 0.8, 0, 0, 0.3, 0.6), atol=1e-6)


def test_gmr_resamples(convert):
    _, clip = convert(convert_gmr, gmr(), "--output_fps", "60", "--loop", "clamp")
    assert clip.fps == 60 and clip.num_frames == 9 and clip.loop_mode is LoopMode.CLAMP
    assert clip.length == pytest.approx(4 / 30)
    np.testing.assert_allclose(clip.frames[3, :7], (0.05, 0, 0.8, 0, 0, 0.15, 0.3), atol=1e-6)


def test_gmr_cuts(convert, capsys):
    _, clip = convert(convert_gmr, gmr(), "--start_frame", "1", "--end_frame", "4")
    np.testing.assert_allclose(clip.frames[:, 6], (0.2, 0.4, 0.6), atol=1e-6)
    assert convert(convert_gmr, gmr(), "--start_frame", "5")[0] == 2
    assert "has 5 frames" in capsys.readouterr().err


@pytest.mark.parametrize("data, text", [
    (gmr(root_rot=np.zeros((5, 4))), "quaternion of zeros"),
    (gmr(dof_pos=np.zeros((4, 29))), "5, 5 and 4 frames"),
    (gmr(root_pos=np.full((5, 3), np.nan)), "root_pos must be finite"),
    (gmr(fps="fast"), "fps must be a positive number"),
    ({"fps": 30}, "not a GMR motion"),
    ([1, 2], "expected a dictionary"),
    (b"nonsense", "refused"),
    (gmr(extra=PurePosixPath("x")), "refers to 'pathlib"),
])
def test_gmr_refuses(convert, capsys, data, text):
    assert convert(convert_gmr, data)[0] == 2
    assert text in capsys.readouterr().err


def test_gmr_must_fit_the_character(convert, capsys):
    assert convert(convert_gmr, gmr(dof_pos=np.zeros((5, 23))), "--char", str(G1))[0] == 2
    assert "has 23 dofs" in capsys.readouterr().err
    assert convert(convert_gmr, gmr(), "--output_fps", "0")[0] == 2


@pytest.mark.parametrize("program", [convert_gmr, convert_smpl])
def test_other_endings_are_refused(tmp_path, capsys, program):
    source, target = tmp_path / "in.pkl", tmp_path / "out.txt"
    source.write_bytes(pickle.dumps(gmr()))
    assert program.main(["--input_file", str(source), "--output_file", str(target)]) == 2
    assert "out.txt: clips can end in .pkl, .npz" in capsys.readouterr().err and not target.exists()


def test_missing_input(tmp_path, capsys):
    assert convert_gmr.main(["--input_file", str(tmp_path / "x.pkl"), "--output_file", str(tmp_path / "y.pkl")]) == 2
    assert "input file not found" in capsys.readouterr().err


def amass(frames=3, columns=156, height=1.2, **changes):
    """Standing upright: SMPL's y axis turned up by a quarter turn about x."""
    poses = np.zeros((frames, columns))
    poses[:, 0] = np.pi / 2
    trans = np.zeros((frames, 3))
    trans[:, 2] = height
    return {"poses": poses, "trans": trans, "mocap_framerate": 120.0, "gender": "neutral"} | changes


def test_smpl_stands_upright_and_looks_along_minus_y(convert):
    """With Z up, SMPL's forward axis z becomes -y."""
    code, clip = convert(convert_smpl, amass())
    assert code == 0 and clip.fps == 120 and clip.frames.shape == (3, 75)
    turn = rot.exp_map_to_quat(torch.from_numpy(clip.frames[0, 3:6]).double())
    forward, up = (rot.quat_rotate(turn, torch.tensor(v, dtype=torch.float64)) for v in ([1.0, 0, 0], [0, 0, 1.0]))
    np.testing.assert_allclose(forward, (0, -1, 0), atol=1e-6)
    np.testing.assert_allclose(up, (0, 0, 1), atol=1e-6)


def test_smpl_joints(convert):
    """Knees bend about SMPL's x (left), which is the character's y; columns are sorted by name."""
    data = amass()
    data["poses"][:, 3 * 4] = 0.7  # L_Knee
    data["poses"][:, 3 * 17 + 1] = 0.4  # R_Shoulder about up
    data["poses"][:, 3 * 15 + 2] = 0.3  # Head about forward
    data["poses"][:, 70:] = 0.5  # fingers: left out
    _, clip = convert(convert_smpl, data)
    expected = np.zeros(69)
    expected[9 + 1 - 6], expected[63 + 2 - 6], expected[42 + 0 - 6] = 0.7, 0.4, 0.3
    np.testing.assert_allclose(clip.frames[0, 6:], expected, atol=1e-6)


def test_smpl_hands_of_the_plain_model(convert):
    data = amass(columns=72)
    data["poses"][:, 3 * 22] = 0.2
    _, clip = convert(convert_smpl, data)
    assert clip.frames[0, 57 + 1] == pytest.approx(0.2, abs=1e-6)


def test_smpl_heights(convert):
    shape = Shape(ASSETS / CHARACTERS["smpl"])
    data = amass(frames=2)
    data["trans"][:, 2] = 1.2, 1.3

    def lowest(correction):
        _, clip = convert(convert_smpl, data, "--z_correction", correction)
        return shape.heights(*shape.kinematics(unpack(clip, shape))).amin(1).numpy(), clip.frames[:, 2]

    low, height = lowest("none")
    np.testing.assert_allclose(height, (1.2, 1.3), atol=1e-6)
    assert low[0] > 0.1
    np.testing.assert_allclose(lowest("calibrate")[0], (0.0, 0.1), atol=1e-6)
    np.testing.assert_allclose(lowest("full")[0], (0.0, 0.0), atol=1e-6)


def test_smpl_resamples(convert):
    data = amass(frames=5, fps=np.array(120.0))
    _, clip = convert(convert_smpl, data, "--output_fps", "60", "--loop", "clamp")
    assert clip.fps == 60 and clip.num_frames == 3 and clip.loop_mode is LoopMode.CLAMP


@pytest.mark.parametrize("data, text", [
    (amass(columns=60), "found (3, 60)"),
    (amass(trans=np.zeros((2, 3))), "(2, 3)"),
    (amass(mocap_framerate=-1.0), "not positive"),
    ({k: v for k, v in amass().items() if k != "mocap_framerate"}, "names no frame rate"),
    ({k: v for k, v in amass().items() if k != "poses"}, "not a SMPL motion"),
    (amass(poses=np.array([{}])), "an array of the type |O; arrays of booleans, integers and floats"),
    (b"nonsense", "no .npz archive"),
    ([1, 2], "no .npz archive"),
])
def test_smpl_refuses(convert, capsys, data, text):
    assert convert(convert_smpl, data)[0] == 2
    error = capsys.readouterr().err
    assert text in error and "allow_pickle" not in error
