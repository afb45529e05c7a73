"""Mistakes that show only once the world is built (others: tests/unit/mistakes.py): one line, exit code 2."""

import pickle
import sys
from pathlib import Path

import pytest

from mimickit import run

ROOT = Path(__file__).resolve().parents[2]
CASE = ["--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
        "--devices", "cpu", "--num_envs", "1", "--visualize", "false", "--max_iters", "1"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs the program with some flags before the case's own; returns the message that it refuses them with."""
    def message(*argv):
        monkeypatch.chdir(ROOT)
        assert run.main([*argv, *CASE, "--out_dir", str(tmp_path / "out")]) == 2
        text = capfd.readouterr().err
        assert "Traceback" not in text
        line, = (line for line in text.splitlines() if line.startswith("error: "))
        return line

    return message


def test_wrong_dof_count_in_a_clip(tmp_path, refused):
    clip = tmp_path / "short.pkl"
    clip.write_bytes(pickle.dumps({"loop_mode": 0, "fps": 30, "frames": [[0.0] * 33] * 3}))
    text = refused("--set", f"env.motion_file={clip}")
    assert "short.pkl" in text and "33" in text and "34" in text


def test_no_off_screen_rendering(tmp_path, monkeypatch, refused):
    """A machine without EGL: its loader is missing when pyglet asks for it."""
    fake = tmp_path / "fake" / "pyglet"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('Library \"EGL\" not found.')\n")
    monkeypatch.syspath_prepend(fake.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyglet"]:
        monkeypatch.delitem(sys.modules, name)
    text = refused("--mode", "test", "--test_episodes", "1", "--video", "true")
    assert "libegl1 libgl1 libgl1-mesa-dri" in text and 'Library "EGL" not found' in text
