"""World 0 in a browser, with Newton's viser viewer: live, or one episode as a page that needs no server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
import warp as wp
from newton.viewer import ViewerViser

from mimickit.engines.newton_viewer import CAMERA_FIELD_OF_VIEW, Lines, Poses, Scene
from mimickit.util.failures import UserError
from mimickit.util.files import write_text

LOOPBACK = "127.0.0.1"
CONTROLS = "Policy"  # title of the panel's part that is ours
UP = np.array([0.0, 0.0, 1.0])


class WebViewer(ViewerViser):
    """Newton's viewer for browsers. The camera belongs to the person; the world moves so that it keeps following.

    Args:
        host: address to serve on.
        port: to serve on, or the next free one; 0: any.

    Raises:
        UserError: ``host`` is no address of this machine.
    """

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        try:
            socket.create_server((host, 0)).close()  # viser would try for ever
        except OSError as error:
            raise UserError(f"--host {host}: cannot serve there: {error}") from None
        rich.reconfigure(quiet=True)  # viser prints banners whatever one says
        super().__init__(host=host, port=port, label="MimicKit", verbose=False)
        self.picking_enabled = False  # its forces would act on the picture, not on the physics
        self._viewer_option_handles["picking_enabled"].visible = False
        self._shift = np.zeros(3)  # m, by which the world is moved
        self.address = f"http://{host}:{self.server.get_port()}/"

    def look(self, position: np.ndarray, target: np.ndarray) -> None:
        """Look from one point [3] (m) to another, which a person turns around."""
        self._set_camera_request(position, target, UP, fov=CAMERA_FIELD_OF_VIEW)

    def follow(self, moved: np.ndarray) -> None:
        """Keep what has moved by [3] m where it is in the picture."""
        self._shift -= moved
        self.set_layer_transform(self.layer.layer_id, tuple(self._shift))

    def log_lines(self, name: str, starts: Any, ends: Any, *others: Any, **named: Any) -> None:
        """As Newton's, which leaves lines where they are."""
        if starts is not None:
            starts, ends = (wp.array(x.numpy() + self._shift, dtype=wp.vec3, device="cpu") for x in (starts, ends))
        super().log_lines(name, starts, ends, *others, **named)

    def register_ui_callback(self, callback: Callable[[Any], None], position: Any = "side") -> None:
        """As Newton's, with our title."""
        self._example_gui_folder = self.server.gui.add_folder(CONTROLS, order=1.0)
        super().register_ui_callback(callback, position)


class PageRecorder:
    """Records world 0 frame by frame into one HTML file: a scene to turn and play, without a server or network.

    Args:
        path: file to write.
        fps: frames per second; the control frequency plays in real time.
        scene: arguments of :class:`~mimickit.engines.newton_viewer.Scene` after the viewer.
    """

    def __init__(self, engine: Any, path: Path, fps: float, **scene: Any) -> None:
        self._path, self._fps, self._frames = path, fps, 0
        self._scene = Scene(engine, WebViewer, **scene)
        self._recording = self._scene.viewer.server.get_scene_serializer()

    def capture(
        self, reference: Poses | None = None, markers: Sequence[Poses] = (), lines: Sequence[Lines] = (),
    ) -> None:
        """Append a frame of the engine's body poses; arguments as of ``VideoRecorder.capture``."""
        self._scene.draw(self._frames / self._fps, reference, markers, lines)
        self._recording.insert_sleep(1.0 / self._fps)
        self._frames += 1

    def close(self) -> dict[str, Any]:
        """Finish the file; returns ``file``, ``frames`` and ``fps``, as in ``result.json``."""
        write_text(self._path, self._recording.as_html())
        self._scene.viewer.close()
        return {"file": str(self._path), "frames": self._frames, "fps": self._fps}
