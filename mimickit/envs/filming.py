"""Pictures of environment 0: a video of one episode, or a live window. Asked after every step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mimickit.engines.engine import StaticObject
from mimickit.envs.base import DoneFlag
from mimickit.envs.env import Env


class EpisodeVideo:
    """Records the first episode of environment 0 as mp4 and a few PNG frames.

    Args:
        max_steps: end the video after so many control steps although the episode goes on.

    Raises:
        DisplayError: no off-screen OpenGL here.
    """

    closed = False  # a recording has no window to close

    def __init__(self, env: Env, path: Path, width: int, height: int, max_steps: int | None = None) -> None:
        from mimickit.engines.newton_viewer import VideoRecorder

        arguments = look(env)
        self._recorder = VideoRecorder(env.engine, path, 1.0 / env.dt, width, height, **arguments,
                                       close_up=arguments["camera_mode"] == "track")
        self._max_steps = max_steps
        self._steps = 0
        self._ended = False

    def step(self, env: Env) -> None:
        """Add the picture of the step just made. The step that ends the episode shows the next start: left out."""
        self._ended = self._ended or int(env.done[0]) != DoneFlag.NULL or self._steps == self._max_steps
        if not self._ended:
            self._recorder.capture(*picture(env))
            self._steps += 1

    def close(self) -> dict:
        """Finish the files; returns what ``result.json`` says about the video."""
        return self._recorder.close()


class Window:
    """A live window on environment 0, slowed down to real time. For its keys see ``newton_viewer.LiveWindow``.

    Raises:
        DisplayError: no window can be opened here.
    """

    def __init__(self, env: Env) -> None:
        from mimickit.engines.newton_viewer import LiveWindow

        self._window = LiveWindow(env.engine, **look(env))
        self._next = time.monotonic()

    @property
    def closed(self) -> bool:
        """Whether the window was closed: the run should end."""
        return self._window.closed

    def step(self, env: Env) -> None:
        """Show the step just made; waits until its time has come, and while the viewer is paused."""
        self._next = max(self._next + env.dt, time.monotonic() - env.dt)
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._window.show(*picture(env))

    def close(self) -> None:
        """Close the window; there is no video to report."""
        self._window.close()


def look(env: Env) -> dict[str, Any]:
    """Arguments of a viewer: camera, reference, and what the environment's markers look like."""
    markers = [StaticObject(m.file, tuple(m.pos.tolist()), tuple(m.rot.tolist()), m.color) for m in env.markers()]
    return {**env.view, "markers": markers}


def picture(env: Env) -> tuple[Any, ...]:
    """What changes from picture to picture: poses of reference and markers, lines."""
    return env.reference_pose(), [(marker.pos, marker.rot) for marker in env.markers()], env.lines()
