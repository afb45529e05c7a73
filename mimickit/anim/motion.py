"""Motion clips on disk. Loading never runs code from the file.

A clip is a pickled dictionary with the keys ``loop_mode`` (0 clamp, 1 wrap), ``fps`` and ``frames``: one row per frame,
columns 0..2 root position (m), 3..5 root rotation as exponential map, then the dofs in joint order (hinge: rad;
spherical: exponential map of the rotation relative to rest). The same three keys may stand in an ``.npz`` file.
"""

from __future__ import annotations

import enum
import itertools
import pickle
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimickit.anim.mjcf import CharacterModel
from mimickit.anim.plain_data import RefusedError, read_npz, read_pickle
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import atomic_path
from mimickit.util.logging import warn_once
from mimickit.util.names import missing_file
from mimickit.util.reading import (
    FPS_RANGE,
    MAX_CLIP_BYTES,
    MAX_CLIP_FRAMES,
    MAX_CLIP_NUMBERS,
    MAX_FRAME_VALUE,
    at_most,
    read_bytes,
)

ROOT_COLUMNS = 6  # root position and exponential map
KEYS = ("loop_mode", "fps", "frames")
_ROW_TYPES = frozenset({list, tuple})
_NUMBER_TYPES = frozenset({int, float})  # of the rows of a pickle; bool is neither
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class LoopMode(enum.IntEnum):
    """What happens past the end: stand still, or start again one stride further."""

    CLAMP = 0
    WRAP = 1


@dataclass(frozen=True, eq=False)
class MotionClip:
    """One motion: frames float32 [F, 6 + D] at ``fps`` frames per second (see the module's text for the columns)."""

    loop_mode: LoopMode
    fps: float
    frames: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @property
    def length(self) -> float:
        """Duration in s: (F - 1) / fps. In a WRAP clip the last frame is the first one, a period later."""
        return (len(self.frames) - 1) / self.fps


def load_motion(path: str | Path, model: CharacterModel | None = None) -> MotionClip:
    """Read a clip (``.npz``, else a pickle) without executing anything in it.

    Args:
        model: the character that it must fit. Joints of it whose columns are NaN in every frame are then read as no
            rotation, with a warning; without one they are an error, as any other NaN is.

    Raises:
        AssetMissingError: the file does not exist.
        UserError: it is not a clip: not readable, needs a class, wrong keys, ragged rows, numbers that make no sense,
            no frames, too large, or not the number of dofs that the character has.
    """
    path = Path(path)
    if path.suffix == ".npz":
        data = _refusing(path, read_npz, read_clip_file(path), KEYS, path)
    else:
        data = read_plain_pickle(path)
    if model is None:
        return clip_from_values(data, path)
    clip = clip_from_values(data, path, empty_columns=True)
    check_dofs(clip, model, path)
    return _without_empty_joints(clip, model, path)


def save_motion(path: str | Path, clip: MotionClip) -> None:
    """Write a clip atomically: ``.npz``, else a pickle of plain Python values (it needs no class to be read)."""
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        if Path(path).suffix == ".npz":
            np.savez_compressed(file, loop_mode=int(clip.loop_mode), fps=clip.fps, frames=clip.frames)
        else:
            fps = int(clip.fps) if float(clip.fps).is_integer() else float(clip.fps)
            data = {"loop_mode": int(clip.loop_mode), "fps": fps, "frames": clip.frames.tolist()}
            pickle.dump(data, file, protocol=4)


def check_dofs(clip: MotionClip, model: CharacterModel, path: str | Path) -> None:
    """Make sure that a clip fits a character.

    Raises:
        UserError: naming the clip, the number of dofs it has and the number the character needs.
    """
    found = clip.frames.shape[1] - ROOT_COLUMNS
    if found != model.num_dofs:
        raise UserError(f"motion {path} has {found} dofs (rows of {found + ROOT_COLUMNS} numbers), but character "
                        f"{model.file} has {model.num_dofs} (rows of {model.num_dofs + ROOT_COLUMNS})")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain containers, numbers, text and NumPy arrays holds; nothing in it is executed.

    Raises:
        UserError: it is damaged, too large, or needs anything else.
    """
    return _refusing(path, read_pickle, read_clip_file(path))


def read_clip_file(path: Path) -> bytes:
    """The bytes of a clip's file.

    Raises:
        AssetMissingError: the file does not exist. UserError: it is none, or larger than what is read.
    """
    try:
        return read_bytes(path, MAX_CLIP_BYTES)
    except FileNotFoundError:
        raise AssetMissingError(f"motion file not found: {missing_file(path)} (data/motions/README.md says where clips "
                                "come from)") from None


def _refusing(path: Path, read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except RefusedError as error:
        raise UserError(f"motion {path} was refused: {error}") from None


def clip_from_values(data: Any, path: Path, empty_columns: bool = False) -> MotionClip:
    """A clip from a dictionary of loop_mode, fps and frames that was read from ``path``.

    Args:
        empty_columns: let columns of dofs pass that are NaN in every frame.

    Raises:
        UserError: a key is missing or wrong, rows are ragged, numbers make no sense, or there are no frames.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"motion {path} holds a {type(data).__name__}; expected a dictionary with loop_mode, fps and "
                        "frames")
    missing = [key for key in KEYS if key not in data]
    if missing:
        found = ", ".join(_SHORT.repr(key).strip("'") for key in itertools.islice(data, 20))
        raise UserError(f"motion {path} lacks {', '.join(missing)}; it has {found or 'no keys'}")
    loop_mode, fps = _number(data["loop_mode"], "loop_mode", path), _number(data["fps"], "fps", path)
    if loop_mode not in (0, 1):
        raise UserError(f"motion {path} has loop_mode {loop_mode:g}; allowed are 0 (clamp) and 1 (wrap)")
    low, high = FPS_RANGE
    if not low <= fps <= high:
        raise UserError(f"motion {path} has fps {fps:g}; expected a number from {low:g} to {high:g}")
    return MotionClip(LoopMode(int(loop_mode)), fps, _frames(data["frames"], path, empty_columns))


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(()).item()
    if isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.complexfloating)):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    raise UserError(f"motion {path}: {key} must be a number, found {type(value).__name__}")


def _frames(rows: Any, path: Path, empty_columns: bool) -> np.ndarray:
    """Frames [F, C] float32, all of them numbers that a character can have.

    Raises:
        UserError: naming the first frame that is wrong.
    """
    frames = number_rows(rows, path, ROOT_COLUMNS, np.float32)
    if frames.min() >= -MAX_FRAME_VALUE and frames.max() <= MAX_FRAME_VALUE:  # not where there is a NaN
        return frames
    if empty_columns:
        empty = np.isnan(frames[:, ROOT_COLUMNS:]).all(axis=0)
        checked = np.where(np.append(np.zeros(ROOT_COLUMNS, bool), empty), np.float32(0), frames)
    else:
        checked = frames
    bad = np.argwhere(~(np.abs(checked) <= MAX_FRAME_VALUE))
    if len(bad):
        frame, column = bad[0]
        value = frames[frame, column]
        what = f"is {value:g}; allowed are -{MAX_FRAME_VALUE:g} to {MAX_FRAME_VALUE:g}"
        raise UserError(f"motion {path}: frame {frame}, column {column} "
                        f"{what if np.isfinite(value) else 'is not finite'} (as are {len(bad) - 1} more)")
    return frames


def number_rows(rows: Any, path: Path, least: int, dtype: type[np.floating]) -> np.ndarray:
    """Rows of at least ``least`` numbers out of a file, an array or lists of numbers: [F, C] of ``dtype``, F > 0.

    Raises:
        UserError: something else, ragged rows, or more than the limits of :mod:`mimickit.util.reading`.
    """
    if isinstance(rows, np.ndarray) and rows.ndim:
        return _from_array(rows, path, least, dtype)
    if isinstance(rows, (list, tuple)):
        return _from_rows(rows, path, least, dtype)
    raise UserError(f"motion {path} has no frames, but a {type(rows).__name__} for them")


def _from_array(rows: np.ndarray, path: Path, least: int, dtype: type[np.floating]) -> np.ndarray:
    if rows.dtype.kind not in "iuf":
        raise UserError(f"motion {path}: its frames are of the type {rows.dtype}; needed are numbers")
    if len(rows) == 0:
        raise UserError(f"motion {path} has no frames")
    if rows.ndim != 2:
        raise UserError(f"motion {path}: frames must be rows of numbers, found the shape {list(rows.shape)}")
    _check_size(len(rows), rows.shape[1], path)
    if rows.shape[1] < least:
        raise _ragged(0, rows.shape[1], rows.shape[1], path, least)
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=dtype, order="C")


def _from_rows(rows: list | tuple, path: Path, least: int, dtype: type[np.floating]) -> np.ndarray:
    if len(rows) == 0:
        raise UserError(f"motion {path} has no frames")
    if not _ROW_TYPES.issuperset(map(type, rows)):
        rows = [row.tolist() if isinstance(row, np.ndarray) and row.ndim == 1 else row for row in rows]
        rows = [row if type(row) in _ROW_TYPES else () for row in rows]
    lengths = list(map(len, rows))
    if min(lengths) != max(lengths) or min(lengths) < least:
        odd = next((i for i, n in enumerate(lengths) if n != lengths[0] or n < least))
        raise _ragged(odd, lengths[odd], lengths[0], path, least)
    _check_size(len(rows), lengths[0], path)
    if not _NUMBER_TYPES.issuperset(map(type, itertools.chain.from_iterable(rows))):
        frame, kind = next((frame, type(value)) for frame, row in enumerate(rows) for value in row
                           if type(value) not in _NUMBER_TYPES)
        raise UserError(f"motion {path}: frame {frame} holds something other than numbers: a {kind.__name__}; needed "
                        "are rows of numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(rows, dtype=dtype)
    except OverflowError:
        raise UserError(f"motion {path}: its frames hold a whole number beyond all floats") from None


def _check_size(frames: int, columns: int, path: Path) -> None:
    at_most(f"motion {path}", frames, MAX_CLIP_FRAMES, "frames")
    at_most(f"motion {path}", frames * columns, MAX_CLIP_NUMBERS, "numbers")


def _ragged(frame: int, length: int, first: int, path: Path, least: int) -> UserError:
    return UserError(f"motion {path}: frame {frame} has {length} numbers, frame 0 has {first}; needed are rows of one "
                     f"length, at least {least}")


def _without_empty_joints(clip: MotionClip, model: CharacterModel, path: Path) -> MotionClip:
    """The clip with zeros for the joints whose columns are NaN throughout, as MimicKit takes them.

    Raises:
        UserError: such a column belongs to a joint whose other columns hold numbers.
    """
    empty = np.isnan(clip.frames[0])
    if not empty.any():
        return clip
    names = []
    for name, dofs in zip(model.joint_names, model.dof_slices):
        columns = slice(dofs.start + ROOT_COLUMNS, dofs.stop + ROOT_COLUMNS)
        if empty[columns].any():
            names.append(f"{name} (columns {columns.start} to {columns.stop - 1})")
            if not empty[columns].all():
                raise UserError(f"motion {path}: joint {names[-1]} is not finite in some of its columns")
    warn_once(f"motion {path}: NaN in all {clip.num_frames} frames of joint {', '.join(names)}; read as no rotation")
    return MotionClip(clip.loop_mode, clip.fps, np.where(empty, np.float32(0), clip.frames))
