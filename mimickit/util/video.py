"""Does a video show what it should? Decodes it and measures; needs PyAV and numpy, nothing of the simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

UNIFORM_STD = 2.0  # grey levels; below it a frame is a blank
COLOR_SPREAD = 40  # largest minus smallest channel from which a pixel that is not red counts as the character's (ground
# and sky are grey, what marks goals and bodies is red)
CHARACTER_SHARE = 5e-4  # of the pixels
VISIBLE_FRAMES = 0.9  # share of frames in which the character must be visible
CHANGED_LEVELS = 24  # grey levels by which a pixel must change to count as changed
MOVED_SHARE = 5e-4  # of the pixels, between frames a fifth of a second apart
LOOKED_AT = 300  # of a longer video's frames only about so many pairs are looked at; all are decoded and counted


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
    frames, count, fps, width, height = _measure(path, max(1, expected_frames // LOOKED_AT))
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
        frame = frames["index"][int(np.argmin(frames["contrast"]))]
        raise ValueError(f"{path}: frame {frame} is blank (standard deviation {measures['contrast']:.2f} grey levels)")
    if measures["visible_frames"] < VISIBLE_FRAMES:
        raise ValueError(
            f"{path}: the character is visible in {measures['visible_frames']:.0%} of the frames, "
            f"needed {VISIBLE_FRAMES:.0%} (coloured pixels: median share {measures['character_share']:.5f})"
        )
    if measures["movement"] < MOVED_SHARE:
        raise ValueError(f"{path}: nothing moves (largest share of changed pixels {measures['movement']:.6f})")
    return measures


def _measure(path: Path, stride: int) -> tuple[dict[str, list], int, float, int, int]:
    """Measures of every ``stride``-th frame and of those a fifth of a second later; frame count, fps, width, height."""
    import av

    measures: dict[str, list] = {"index": [], "contrast": [], "colored": [], "changed": []}
    count = width = height = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0.0)
            interval = max(1, round(fps / 5))
            recent: dict[int, np.ndarray] = {}  # frame number -> grey levels
            for index, frame in enumerate(container.decode(stream)):
                count += 1
                width, height = frame.width, frame.height
                if index % stride not in (0, interval % stride):
                    continue
                image = frame.to_ndarray(format="rgb24")[::2, ::2].astype(np.int16)
                grey = image.sum(axis=2) / 3.0
                most = image[..., 1:].max(axis=2)
                colored = (most - image.min(axis=2) > COLOR_SPREAD) & (most > image[..., 0])
                measures["index"].append(index)
                measures["contrast"].append(float(grey.std()))
                measures["colored"].append(float(colored.mean()))
                if index - interval in recent:
                    measures["changed"].append(_changed(recent[index - interval], grey))
                recent[index] = grey
                recent = {i: g for i, g in recent.items() if i > index - interval}
            if len(recent) > 1 and not measures["changed"]:  # shorter than the interval
                measures["changed"].append(_changed(recent[min(recent)], recent[max(recent)]))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    return measures, count, fps, width, height


def _changed(old: np.ndarray, new: np.ndarray) -> float:
    return float((np.abs(new - old) > CHANGED_LEVELS).mean())
