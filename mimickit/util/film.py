"""A film on disk: an mp4 file written picture by picture, and a few of its pictures as PNG."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from mimickit.util.files import atomic_path

MAX_RATE = "1400k"  # bits/s of a film: ten seconds stay below 2 MB


class Film:
    """An mp4 file (H.264, yuv420p), which appears under its name when :meth:`close` has finished it.

    Args:
        path: mp4 file to write.
        fps: pictures per second.
        width, height: pixels, even numbers, as yuv420p needs.
        num_png: how many pictures to keep as PNG beside it, evenly spaced over the film.
    """

    def __init__(self, path: Path | str, fps: float, width: int, height: int, num_png: int = 4) -> None:
        import av

        self.path = Path(path)
        self.fps, self.width, self.height = float(fps), width, height
        self.frames = 0
        self._png = _EvenlySpaced(num_png)
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._container = av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1000))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": "22", "preset": "fast", "maxrate": MAX_RATE, "bufsize": MAX_RATE}

    def add(self, image: np.ndarray) -> None:
        """Append a picture, uint8 RGB [height, width, 3]."""
        import av

        for packet in self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
            self._container.mux(packet)
        self._png.offer(self.frames, image)
        self.frames += 1

    def close(self) -> dict:
        """Finish the files.

        Returns:
            ``file``, ``frames``, ``fps``, ``width``, ``height``, ``png`` (list of files), as in ``result.json``.
        """
        from PIL import Image

        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._stack.close()
        files = []
        for frame, image in self._png.chosen():
            file = self.path.with_name(f"{self.path.stem}_{frame:05d}.png")
            with atomic_path(file) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")
            files.append(str(file))
        return {
            "file": str(self.path), "frames": self.frames, "fps": self.fps,
            "width": self.width, "height": self.height, "png": files,
        }

    def abandon(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Remove the unfinished file, after an exception."""
        self._container.close()
        self._stack.__exit__(kind, error, trace)


class _EvenlySpaced:
    """Keeps ``count`` evenly spaced items of a stream of unknown length."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stride = 1
        self._kept: list[tuple[int, np.ndarray]] = []
        self._last: tuple[int, np.ndarray] | None = None

    def offer(self, index: int, item: np.ndarray) -> None:
        self._last = (index, item)
        if index % self._stride == 0:
            self._kept.append((index, item))
        if len(self._kept) > 8 * max(self._count, 1):
            self._stride *= 2
            self._kept = [pair for pair in self._kept if pair[0] % self._stride == 0]

    def chosen(self) -> list[tuple[int, np.ndarray]]:
        if self._last is None or self._count < 1:
            return []
        pool = dict((*self._kept, self._last))
        wanted = np.linspace(0, self._last[0], self._count)
        indices = sorted({min(pool, key=lambda i: abs(i - w)) for w in wanted})
        return [(i, pool[i]) for i in indices]
