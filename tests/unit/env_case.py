"""Environments of the humanoid on the fake engine, and clips made for the purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.config import load_layered
from mimickit.envs.env_builder import build_env, make_env_config
from tests.unit.fake_engine import FakeEngine, engine_config

ROOT = Path(__file__).resolve().parents[2]
CHAR_FILE = ROOT / "data/assets/humanoid/humanoid.xml"


def write_clip(path: Path, frames: int = 31, fps: int = 30, loop: LoopMode = LoopMode.WRAP, speed: float = 0.5) -> Path:
    """A humanoid that glides along X (m/s) and swings an elbow; 1 s unless said otherwise."""
    data = np.zeros((frames, 34), dtype=np.float32)
    time = np.arange(frames) / fps
    data[:, 0] = speed * time
    data[:, 2] = 0.9
    data[:, 15] = 0.5 + 0.4 * np.sin(2 * np.pi * time / time[-1])
    save_motion(path, MotionClip(loop, float(fps), data))
    return path


def settings(name: str, **changes) -> dict:
    """The shipped settings of the humanoid's environment ``name``, with absolute paths and changes."""
    data = load_layered(ROOT / f"data/envs/{name}_humanoid_env.yaml")
    return data | {"char_file": str(CHAR_FILE)} | {k: str(v) if isinstance(v, Path) else v for k, v in changes.items()}


def make_env(name: str, num_envs: int = 4, physics: dict | None = None, **changes):
    """An environment on the fake engine."""
    config = make_env_config(settings(name, **changes), f"{name}_humanoid_env.yaml")
    return build_env(config, engine_config(**(physics or {})), num_envs, "cpu", make_engine=FakeEngine)
