"""Does a video show what it should? Decodes it and measures; needs PyAV and numpy, nothing of the simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

UNIFORM_STD = 2.0  # grey levels; below it a frame is a blank
COLOR_SPREAD = 40  # largest minus smallest channel from which a pixel counts as coloured (ground and sky are grey)
CHARACTER_SHARE = 5e-4  # of the pixels
VISIBLE_FRAMES = 0.9  # share of frames in which the character must be visible
CHANGED_LEVELS = 24  # grey levels by which a pixel must change to count as changed
MOVED_SHARE = 5e-4  # of the pixels, between frames a fifth of a second apart


def check_video(path: Path | str, expected_frames: int) -> dict:
    """Decode a video of a character on neutral ground and verify its content.

    Args:
        expected_frames: how many frames it must have.

    Returns:
        ``frames``, ``fps``, ``width``, ``height``, ``contrast`` (smallest standard deviation of grey levels of a
        frame), ``character_share`` (median share of coloured pixels), ``visible_frames`` (share of frames that show
        the character), ``movement`` (largest share of pixels that changed within a fifth of a second).

    Raises:
        ValueError: the file cannot be decoded, or what it shows is wrong; the message says which measure failed.
    """
    path = Path(path)
    frames, fps, width, height = _measure(path)
    count = len(frames["contrast"])
    if count != expected_frames:
        raise ValueError(f"{path}: {count} frames decoded, expected {expected_frames}")
    if count == 0:
        raise ValueError(f"{path}: no frames")
    measures = {
        "frames": count,
        "fps": fps,
        "width": width,
        "height": height,
        "contrast": float(np.min(frames["contrast"])),
        "character_share": float(np.median(frames["colored"])),
        "visible_frames": float(np.mean(np.array(frames["colored"]) >= CHARACTER_SHARE)),
        "movement": float(max(frames["changed"], default=0.0)),
    }
    if measures["contrast"] < UNIFORM_STD:
        frame = int(np.argmin(frames["contrast"]))
        raise ValueError(f"{path}: frame {frame} is blank (standard deviation {measures['contrast']:.2f} grey levels)")
    if measures["visible_frames"] < VISIBLE_FRAMES:
        raise ValueError(
            f"{path}: the character is visible in {measures['visible_frames']:.0%} of the frames, "
            f"needed {VISIBLE_FRAMES:.0%} (coloured pixels: median share {measures['character_share']:.5f})"
        )
    if measures["movement"] < MOVED_SHARE:
        raise ValueError(f"{path}: nothing moves (largest share of changed pixels {measures['movement']:.6f})")
    return measures


def _measure(path: Path) -> tuple[dict[str, list[float]], float, int, int]:
    import av

    measures: dict[str, list[float]] = {"contrast": [], "colored": [], "changed": []}
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0.0)
            interval = max(1, round(fps / 5))
            recent: list[np.ndarray] = []
            width = height = 0
            for frame in container.decode(stream):
                image = frame.to_ndarray(format="rgb24")
                height, width = image.shape[:2]
                grey = image.mean(axis=2)
                spread = image.max(axis=2).astype(np.int16) - image.min(axis=2)
                measures["contrast"].append(float(grey.std()))
                measures["colored"].append(float((spread > COLOR_SPREAD).mean()))
                if len(recent) == interval:
                    old = recent.pop(0)
                    measures["changed"].append(float((np.abs(grey - old) > CHANGED_LEVELS).mean()))
                recent.append(grey)
            if len(recent) > 1 and not measures["changed"]:  # shorter than the interval
                measures["changed"].append(float((np.abs(recent[-1] - recent[0]) > CHANGED_LEVELS).mean()))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    return measures, fps, width, height
