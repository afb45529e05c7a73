"""What a person may do to environment 0 while watching: push it, start anew, take another checkpoint."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mimickit.envs.env import Env
from mimickit.util.failures import UserError

PUSH = 1.0  # m/s
HARDEST = 4.0  # m/s


class Panel:
    """Controls for a viewer; called in every frame, between steps.

    Args:
        models: model files by name; with fewer than two there is no choice.
        shown: the name of the one that acts.
        load: makes another one act.

    Attributes:
        used: what a person did, in words.
    """

    def __init__(self, env: Env, models: Mapping[str, Path], shown: str, load: Callable[[Path], None]) -> None:
        self._env, self._models, self._shown, self._load = env, models, shown, load
        self._pushable = not (env.terms.kinematic or env.engine.spec.fixed_root)
        self._speed = PUSH
        self._problem = ""
        self._turn = random.Random(0)  # the run's own random numbers stay as they are
        self.used: set[str] = set()

    def __call__(self, ui: Any) -> None:
        """Show the episode's time, the root's speed and the controls, and do what was asked for; ``ui`` as Dear ImGui.
        """
        time = f"{self._env.steps[0].item() * self._env.dt:.2f} s"
        if not self._pushable:
            ui.text(time)
        else:
            ui.text(f"{time}, {torch.linalg.vector_norm(self._env.engine.root_vel[0]).item():.2f} m/s")
            _, self._speed = ui.slider_float("Push (m/s)", self._speed, 0.0, HARDEST)
            if ui.button("Push"):
                angle = self._turn.uniform(0.0, 2.0 * math.pi)
                push(self._env, (self._speed * math.cos(angle), self._speed * math.sin(angle), 0.0))
                self.used.add("pushes")
        for name in self._models if len(self._models) > 1 else ():
            if ui.radio_button(name, name == self._shown) and name != self._shown:
                self._take(name)
        if self._problem:
            ui.text(self._problem)

    def reset(self) -> None:
        """Begin a new episode."""
        self._env.reset(1)
        self.used.add("episodes that ended early")

    def _take(self, name: str) -> None:
        try:
            self._load(self._models[name])
            self._shown, self._problem = name, ""
            self.used.add("other checkpoints")
        except UserError as error:  # training has deleted it, or is another one
            self._problem = str(error)


def push(env: Env, velocity: tuple[float, float, float]) -> None:
    """Add a velocity (m/s, world axes) to all of environment 0's character before the next step."""
    env.engine.root_vel[0] += env.engine.root_vel.new_tensor(velocity)
    env.engine.reset_mask[0] = True  # physics goes on from the state in the engine's buffers
