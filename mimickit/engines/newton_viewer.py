"""Pictures of world 0: video rendered off-screen with OpenGL (EGL, no X server), or live in a viewer.

The picture has its own small model (ground, character, reference character, objects) on the CPU and reads nothing but
the engine's public body poses, so that it costs the same for one world and for thousands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import newton
import numpy as np
import torch
import warp as wp

from mimickit.engines.engine import StaticObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.engines.kernel_cache import cache_key, compile_lock
from mimickit.engines.newton_model import add_objects, build_world
from mimickit.util.failures import DisplayError
from mimickit.util.film import Film

if TYPE_CHECKING:
    from mimickit.engines.newton_engine import NewtonEngine

REFERENCE_COLOR = (0.3, 0.5, 0.1)
GROUND_COLOR = (0.42, 0.42, 0.42)
SKY_COLOR = (0.78, 0.79, 0.80)
CAMERA_OFFSET = np.array([0.0, -9.2, 4.7])  # m, from the root's place on the ground
CAMERA_TARGET_HEIGHT = 1.0  # m
CAMERA_FIELD_OF_VIEW = 20.0  # degrees, vertical: from far away, a character and its reference are seen from one side
SHADOW_BLUR = 6.0  # width of the soft edge, Newton's units (3 by itself)
CLOSE_UP = 1.35  # height of the picture in sizes of the character, as it stands at first: kicks and jumps need room
SMALLEST = 0.6  # m, size of a character for this purpose
ABOVE = 1.12  # height of a character in heights of its highest body's origin
AT_REST = 0.1  # m by which the root may rise before a close-up follows
LINE_WIDTH = 2.0  # pixels
PAUSED_FRAME = 1 / 60  # s, between looks at a paused viewer
WINDOW_KEYS = "ENTER pauses or resumes, SPACE makes one step and then pauses, ESC closes"

CameraMode = Literal["track", "still"]
Poses = tuple[torch.Tensor, torch.Tensor]  # positions [..., 3] m and rotations [..., 4] xyzw, world frame
Lines = tuple[torch.Tensor, torch.Tensor, tuple[float, float, float]]  # from, to [k, 3] m, world frame; RGB in [0, 1]

DISPLAY_HELP = (
    "Off-screen rendering is not possible here ({reason}). It needs EGL: install the Debian packages libegl1 libgl1 "
    "libgl1-mesa-dri (and the Python package pyglet). PYGLET_HEADLESS=1 is set by the program before pyglet is "
    "imported; a program that imports pyglet itself must set it too. Without pictures: --video false"
)
WINDOW_HELP = (
    "No window can be opened here ({reason}). It needs a display (DISPLAY or WAYLAND_DISPLAY) with OpenGL 3.3; "
    "--visualize false does without, --video true records off screen instead"
)


def open_viewer(width: int, height: int, headless: bool = True):
    """A ``newton.viewer.ViewerGL`` with the keys of :func:`newton_keys`, off screen or in a window.

    Like every viewer of world 0 it can ``look`` from one point [3] (m) to another, and ``follow`` what has moved by
    [3] m.

    Raises:
        DisplayError: OpenGL does not work on this machine; the message names the packages.
    """
    if headless:
        os.environ["PYGLET_HEADLESS"] = "1"
    try:
        import pyglet

        pyglet.options["headless"] = headless
        from newton.viewer import ViewerGL

        class Viewer(ViewerGL):
            def on_key_press(self, symbol: int, modifiers: int) -> None:
                for key in newton_keys(symbol, self.is_paused()):
                    super().on_key_press(key, modifiers)

            def look(self, position: np.ndarray, target: np.ndarray) -> None:
                direction = target - position
                pitch = np.degrees(np.arctan2(direction[2], np.hypot(direction[0], direction[1])))
                yaw = np.degrees(np.arctan2(direction[1], direction[0]))
                self.set_camera(wp.vec3(*position), pitch=float(pitch), yaw=float(yaw))

            def follow(self, moved: np.ndarray) -> None:  # keep whatever offset and direction a person has chosen
                position = np.array(self.camera.pos, dtype=float) + moved
                self.set_camera(wp.vec3(*position), pitch=self.camera.pitch, yaw=self.camera.yaw)

        viewer = Viewer(width=width, height=height, headless=headless)
        _set_scene(viewer)
        return viewer
    except Exception as error:  # the libraries below raise a dozen types, ImportError and plain Exception among them
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        text = DISPLAY_HELP if headless else WINDOW_HELP
        raise DisplayError(text.format(reason=reason)) from error


def newton_keys(symbol: int, paused: bool) -> tuple[int, ...]:
    """What to press on Newton's viewer, one after the other, when a person presses a key of ours.

    In Newton SPACE pauses or resumes, and the full stop makes one step of a paused viewer. Going through its keys
    keeps its panel (Pause, Step) true, and leaves keys typed into the panel alone.

    Args:
        symbol: pyglet's number of the key.
        paused: whether the viewer is paused now.
    """
    from pyglet.window import key

    if symbol in (key.ENTER, key.NUM_ENTER):
        return (key.SPACE,)
    if symbol == key.SPACE:
        return (key.PERIOD,) if paused else (key.SPACE, key.PERIOD)
    return (symbol,)


def picture_key(show_reference: bool) -> str:
    """Name of the kernels that pictures need."""
    return cache_key("viewer", show_reference)


class Scene:
    """World 0 in a viewer: the character, its reference beside it, objects, and a camera that follows.

    Args:
        engine: whose world 0 is shown; only ``spec``, ``config``, ``body_pos`` and ``body_rot`` are read.
        open_it: opens the viewer.
        aspect: width / height of the picture.
        show_reference: draw a second character, posed by what :meth:`draw` is given.
        ref_offset: [3] m, added to the reference character's positions.
        markers: drawn objects of one body each, posed by what :meth:`draw` is given.
        close_up: the character fills the picture.
    """

    def __init__(
        self, engine: NewtonEngine, open_it: Callable[[], Any], aspect: float = 1.5, camera_mode: CameraMode = "track",
        show_reference: bool = False, ref_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        markers: Sequence[StaticObject] = (), close_up: bool = False,
    ) -> None:
        self._engine = engine
        self._camera_mode = camera_mode
        self._close_up, self._aspect = close_up, aspect
        self._root_height = 0.0  # m, at first
        self._show_reference = show_reference
        self._ref_offset = np.asarray(ref_offset, np.float32)
        self._num_bodies = len(engine.body_names)
        self._num_markers = len(markers)
        self._looks_at: np.ndarray | None = None  # m, the point on the ground that the camera was last moved to
        with wp.ScopedDevice("cpu"), compile_lock(picture_key(show_reference), what="picture"):
            self.viewer = open_it()
            model = _picture_model(engine.spec, engine.config, show_reference, markers)
            self.viewer.set_model(model)
            self.viewer.set_world_offsets((0.0, 0.0, 0.0))
            self._state = model.state()
            # bodies behind the character, the reference and the markers stand still where the model put them
            self._body_q = self._state.body_q.numpy().copy()
            self._render(0.0)  # loads the kernels
        self._looks_at = None

    def draw(
        self, time: float, reference: Poses | None = None, markers: Sequence[Poses] = (), lines: Sequence[Lines] = (),
    ) -> None:
        """Render the engine's body poses at ``time`` (s), each marker's position [3] and rotation [4], and lines."""
        b = self._num_bodies
        self._body_q[:b] = _to_numpy(self._engine.body_pos[0], self._engine.body_rot[0])
        if self._show_reference:
            if reference is None:
                raise ValueError("a picture with a reference character needs its poses in every frame")
            self._body_q[b : 2 * b] = _to_numpy(*reference)
            self._body_q[b : 2 * b, :3] += self._ref_offset
        if len(markers) != self._num_markers:
            raise ValueError(f"this picture has {self._num_markers} markers, {len(markers)} poses given")
        for i, pose in enumerate(markers, start=2 * b if self._show_reference else b):
            self._body_q[i] = _to_numpy(*pose)
        with wp.ScopedDevice("cpu"):
            self._render(time, lines)

    def _render(self, time: float, lines: Sequence[Lines] = ()) -> None:
        self._state.body_q.assign(self._body_q)
        self._place_camera(self._body_q[:self._num_bodies, :3])
        self.viewer.begin_frame(time)
        self.viewer.log_state(self._state)
        self.viewer.log_lines("lines", *_line_arrays(lines))
        self.viewer.end_frame()

    def _place_camera(self, bodies: np.ndarray) -> None:
        root = bodies[0]
        ground = np.array([root[0], root[1], 0.0])
        if self._close_up and self._looks_at is not None:
            ground[2] = max(0.0, root[2] - self._root_height - AT_REST)
        if self._looks_at is None:
            self._root_height = float(root[2])
            target, offset = np.array([0.0, 0.0, CAMERA_TARGET_HEIGHT]), CAMERA_OFFSET
            if self._close_up:
                beside = self._ref_offset if self._show_reference else np.zeros(3)
                target, offset = close_up(bodies, beside, self._aspect)
            self.viewer.look(ground + offset, ground + target)
        elif self._camera_mode == "track":
            self.viewer.follow(ground - self._looks_at)
        self._looks_at = ground


def close_up(bodies: np.ndarray, beside: np.ndarray, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a close-up looks, and from where: [3] m each, from the root's place on the ground.

    Args:
        bodies: [B, 3] m, positions of the character's bodies.
        beside: [3] m, from the character to the reference, which is in the picture too; 0 without one.
        aspect: width / height of the picture.
    """
    spread = bodies.max(axis=0) - bodies.min(axis=0)
    height = ABOVE * float(bodies[:, 2].max())
    size = max(SMALLEST, height, float(np.hypot(*spread[:2])))
    target = np.array([0.5 * beside[0], 0.5 * beside[1], 0.56 * height])
    across = max(CLOSE_UP * size, (float(np.hypot(*beside[:2])) + size) / aspect)
    backwards = CAMERA_OFFSET - np.array([0.0, 0.0, CAMERA_TARGET_HEIGHT])
    distance = 0.5 * across / np.tan(np.radians(0.5 * CAMERA_FIELD_OF_VIEW))
    return target, target + distance * backwards / np.linalg.norm(backwards)


class VideoRecorder:
    """Renders world 0 frame by frame into an mp4 file (H.264, yuv420p), plus a few PNG frames beside it.

    The file appears under its name when :meth:`close` has finished it. As a context manager it closes, or removes the
    unfinished file after an exception.

    Args:
        engine: whose world 0 is shown.
        path: mp4 file to write.
        fps: frames per second of the video; the control frequency shows real time.
        width, height: pixels; odd numbers are lowered by one, as yuv420p needs.
        camera_mode: ``track`` follows the root's x and y, ``still`` stays where it began.
        show_reference: draw a second character, posed by what :meth:`capture` is given.
        ref_offset: [3] m, added to the reference character's positions.
        markers: drawn objects of one body each, posed by what :meth:`capture` is given.
        num_png: how many PNG frames to keep, evenly spaced over the video.
        close_up: the character fills the picture, as far as what it does in its first frame tells.

    Raises:
        DisplayError: no off-screen OpenGL here.
    """

    def __init__(
        self,
        engine: NewtonEngine,
        path: Path | str,
        fps: float,
        width: int = 854,
        height: int = 480,
        camera_mode: CameraMode = "track",
        show_reference: bool = False,
        ref_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        markers: Sequence[StaticObject] = (),
        num_png: int = 4,
        close_up: bool = False,
    ) -> None:
        size = width - width % 2, height - height % 2
        self._scene = Scene(engine, lambda: open_viewer(*size), width / height, camera_mode, show_reference, ref_offset,
                            markers, close_up)
        self._film = Film(path, fps, *size, num_png)

    @property
    def frames(self) -> int:
        """How many have been captured."""
        return self._film.frames

    def capture(
        self, reference: Poses | None = None, markers: Sequence[Poses] = (), lines: Sequence[Lines] = (),
    ) -> np.ndarray:
        """Render one frame from the engine's body poses and append it.

        Args:
            reference: poses of the reference character's bodies; needed when ``show_reference`` was asked for.
            markers: position [3] and rotation [4] of every marker.
            lines: straight lines, as many as there are now.

        Returns:
            The frame, uint8 RGB [height, width, 3].
        """
        self._scene.draw(self._film.frames / self._film.fps, reference, markers, lines)
        image = np.ascontiguousarray(self._scene.viewer.get_frame(render_ui=False).numpy())
        self._film.add(image)
        return image

    def close(self) -> dict:
        """Finish the files; returns as :meth:`mimickit.util.film.Film.close`."""
        self._scene.viewer.close()
        return self._film.close()

    def __enter__(self) -> VideoRecorder:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.close()
            return
        self._film.abandon(kind, error, trace)
        self._scene.viewer.close()


class LiveWindow:
    """World 0 in a viewer that a person commands: a window, or a page in a browser.

    In a window ENTER pauses or resumes; SPACE makes one control step, then pauses; ESC closes. The mouse, the arrow
    keys and WASDQE move the camera, also during a pause (Newton's viewer).

    Args:
        scene: what is shown.
        dt: s, a control step.
        panel: called in every frame with the viewer's controls, as Dear ImGui has them.
        reset: called between frames when a person wants a new episode.
    """

    def __init__(self, scene: Scene, dt: float, panel: Callable[[Any], None] = lambda ui: None,
                 reset: Callable[[], None] | None = None) -> None:
        self._scene, self._dt, self._time = scene, dt, 0.0
        scene.viewer.register_ui_callback(panel)
        scene.viewer.set_reset_callback(reset)

    @property
    def closed(self) -> bool:
        """Whether the window was closed."""
        return not self._scene.viewer.is_running()

    def show(self, picture: Callable[[], tuple] = tuple, stopped: Callable[[], bool] = lambda: False) -> None:
        """Show the engine's body poses; returns when the next step is wanted, the window closed, or ``stopped()``.

        Args:
            picture: what else changes from frame to frame, as :meth:`Scene.draw` takes it after the time.
        """
        self._draw(picture)
        while not (self._scene.viewer.should_step() or self.closed or stopped()):
            time.sleep(PAUSED_FRAME)
            self._draw(picture)
        self._time += self._dt

    def _draw(self, picture: Callable[[], tuple]) -> None:
        self._scene.draw(self._time, *picture())

    def close(self) -> None:
        """Close the window."""
        self._scene.viewer.close()


def _picture_model(
    spec: WorldSpec, config: EngineConfig, show_reference: bool, markers: Sequence[StaticObject]
) -> newton.Model:
    """Ground, character, optional reference character, markers, objects; bodies in this order."""
    scene = newton.ModelBuilder()
    scene.add_ground_plane(color=GROUND_COLOR)
    builder, _ = build_world(replace(spec, objects=(), free_objects=()), config)
    scene.add_builder(builder)
    if show_reference:
        builder, _ = build_world(replace(spec, objects=(), free_objects=(), color=REFERENCE_COLOR), config)
        scene.add_builder(builder)
    add_objects(scene, (*markers, *spec.objects))
    return scene.finalize(device="cpu")


def _set_scene(viewer) -> None:
    """A neutral sky over a grey ground: characters, and what marks their goals and bodies, are all that is coloured.

    ``check_video`` relies on it.
    """
    viewer.camera.fov = CAMERA_FIELD_OF_VIEW
    renderer = viewer.renderer
    renderer.line_width = LINE_WIDTH
    renderer.shadow_radius = SHADOW_BLUR
    renderer.sky_upper = renderer.sky_lower = renderer.background_color = SKY_COLOR


def _line_arrays(lines: Sequence[Lines]) -> tuple[wp.array | None, wp.array | None, wp.array | None]:
    """Begins, ends and colours of all lines as Newton's ``log_lines`` takes them; ``None`` where there are no lines."""
    if not sum(len(begin) for begin, _, _ in lines):
        return None, None, None
    begins, ends = (np.concatenate([x[i].detach().cpu().numpy() for x in lines]) for i in (0, 1))
    colors = np.concatenate([np.tile(np.float32(color), (len(begin), 1)) for begin, _, color in lines])
    begins, ends, colors = (wp.array(x, dtype=wp.vec3, device="cpu") for x in (begins, ends, colors))
    return begins, ends, colors


def _to_numpy(pos: torch.Tensor, rot: torch.Tensor) -> np.ndarray:
    """Poses as Newton stores them, [..., 7]."""
    return torch.cat((pos, rot), dim=-1).detach().cpu().numpy()
