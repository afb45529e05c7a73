"""Pictures of environment 0: a recording of one episode, or live. Asked after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mimickit.engines.engine import StaticObject
from mimickit.envs.base import DoneFlag
from mimickit.envs.env import Env
from mimickit.envs.panel import Panel

BESIDE_CONTROLS = 0.8  # width / height of what a browser's controls leave free, and as much on the other side


class Episode:
    """Records the first episode of environment 0: as mp4 with a few PNG frames, as a page to turn and play, or both.

    Args:
        recorders: by what ``result.json`` calls them, see :func:`video` and :func:`page`.
        max_steps: end the recording after so many control steps although the episode goes on.
    """

    closed = False  # a recording has no window to close

    def __init__(self, recorders: Mapping[str, Any], max_steps: int | None = None) -> None:
        self._recorders, self._max_steps = recorders, max_steps
        self._steps = 0
        self._ended = False

    def step(self, env: Env, stopped: Callable[[], bool] = lambda: False) -> None:
        """Add the picture of the step just made. The step that ends the episode shows the next start: left out."""
        self._ended = self._ended or int(env.done[0]) != DoneFlag.NULL or self._steps == self._max_steps
        if not self._ended:
            for recorder in self._recorders.values():
                recorder.capture(*picture(env))
            self._steps += 1

    def close(self) -> dict[str, dict]:
        """Finish the files; returns what ``result.json`` says about each."""
        return {name: recorder.close() for name, recorder in self._recorders.items()}


def video(env: Env, path: Path, width: int, height: int) -> Any:
    """A recorder of an mp4 file. Raises DisplayError: no off-screen OpenGL here."""
    from mimickit.engines.newton_viewer import VideoRecorder

    return VideoRecorder(env.engine, path, 1.0 / env.dt, width, height, **look(env), close_up=tracks(env))


def page(env: Env, path: Path) -> Any:
    """A recorder of an HTML file."""
    from mimickit.engines.web_viewer import PageRecorder

    return PageRecorder(env.engine, path, 1.0 / env.dt, **look(env), close_up=tracks(env))


class Window:
    """Environment 0 live, in a window or a browser, slowed down to real time.

    For the keys of a window see ``newton_viewer.LiveWindow``.

    Args:
        panel: what a person may do.
        address: host and port to serve a page on; None opens a window.

    Raises:
        DisplayError: no window can be opened here.
        UserError: nothing can be served there.
    """

    def __init__(self, env: Env, panel: Panel, address: tuple[str, int] | None = None) -> None:
        from mimickit.engines.newton_viewer import WINDOW_KEYS, LiveWindow, Scene, open_viewer

        if address is None:
            scene = Scene(env.engine, lambda: open_viewer(1280, 720, headless=False), **look(env))
            print(f"window: {WINDOW_KEYS}", flush=True)
        else:
            from mimickit.engines.web_viewer import WebViewer

            scene = Scene(env.engine, lambda: WebViewer(*address), BESIDE_CONTROLS, **look(env), close_up=tracks(env))
            print(f"watch: {scene.viewer.address} (Ctrl-C ends)", flush=True)
        self._window, self._panel = LiveWindow(scene, env.dt, panel, panel.reset), panel
        self._next = time.monotonic()

    @property
    def closed(self) -> bool:
        """Whether the window was closed: the run should end."""
        return self._window.closed

    def step(self, env: Env, stopped: Callable[[], bool] = lambda: False) -> None:
        """Show the step just made; waits until its time has come, and while the viewer is paused."""
        self._next = max(self._next + env.dt, time.monotonic() - env.dt)
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._window.show(partial(picture, env), stopped)

    def close(self) -> dict[str, dict]:
        """Close the window; there is no recording to report."""
        self._window.close()
        if self._panel.used:
            print(f"note: what was measured is no test: there were {', '.join(sorted(self._panel.used))}", flush=True)
        return {}


def tracks(env: Env) -> bool:
    """Whether the camera follows the character."""
    return env.view["camera_mode"] == "track"


def look(env: Env) -> dict[str, Any]:
    """Arguments of a viewer: camera, reference, and what the environment's markers look like."""
    markers = [StaticObject(m.file, tuple(m.pos.tolist()), tuple(m.rot.tolist()), m.color) for m in env.markers()]
    return {**env.view, "markers": markers}


def picture(env: Env) -> tuple[Any, ...]:
    """What changes from picture to picture: poses of reference and markers, lines."""
    return env.reference_pose(), [(marker.pos, marker.rot) for marker in env.markers()], env.lines()
