"""Motion clips on disk. Loading never runs code from the file.

A clip is a pickled dictionary with the keys ``loop_mode`` (0 clamp, 1 wrap), ``fps`` and ``frames``: one row per frame,
columns 0..2 root position (m), 3..5 root rotation as exponential map, then the dofs in joint order (hinge: rad;
spherical: exponential map of the rotation relative to rest). The same three keys may stand in an ``.npz`` file.
"""

from __future__ import annotations

import enum
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimickit.anim.mjcf import CharacterModel
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import atomic_path

ROOT_COLUMNS = 6  # root position and exponential map


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


def load_motion(path: str | Path) -> MotionClip:
    """Read a clip (``.npz``, else a pickle) without executing anything in it.

    Raises:
        AssetMissingError: the file does not exist.
        UserError: it is not a clip: not readable, needs a class, wrong keys, ragged rows, non-finite values, no frames.
    """
    path = Path(path)
    if not path.is_file():
        raise AssetMissingError(f"motion file not found: {path} (data/motions/README.md says where clips come from)")
    data = _read_npz(path) if path.suffix == ".npz" else read_plain_pickle(path)
    return clip_from_values(data, path)


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


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """Stands for ``_codecs.encode``, by which old pickle protocols spell bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise pickle.UnpicklingError(f"encoding '{encoding}' is not allowed")
    return text.encode(encoding)


def _allowed_globals() -> dict[tuple[str, str], Any]:
    """The only names a clip's pickle may refer to: those that rebuild NumPy arrays and numbers."""
    reconstruct = np.empty(0).__reduce__()[0]
    from_buffer = np.empty(0).__reduce_ex__(5)[0]
    scalar = np.float64(0).__reduce__()[0]
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):  # the name changed with NumPy 2
        names[core + ".multiarray", "_reconstruct"] = reconstruct
        names[core + ".multiarray", "scalar"] = scalar
        names[core + ".numeric", "_frombuffer"] = from_buffer
    return names


class PlainUnpickler(pickle.Unpickler):
    """Knows containers, numbers, text and NumPy arrays, nothing else: no other name of a pickle is looked up."""

    allowed = _allowed_globals()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to '{module}.{name}'; clips hold only plain containers, numbers "
                                         "and NumPy arrays, so nothing else is loaded from them. A clip of an older "
                                         "asset pack: tools/convert_class_clip.py reads it safely") from None


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain containers, numbers, text and NumPy arrays holds; nothing in it is executed.

    Raises:
        UserError: it is damaged, or needs anything else.
    """
    try:
        return PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise nearly anything; nothing of it has an effect
        raise UserError(f"motion {path} was refused: {error or type(error).__name__}") from None


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:
        raise UserError(f"motion {path} was refused: {error or type(error).__name__}") from None


def clip_from_values(data: Any, path: Path) -> MotionClip:
    """A clip from a dictionary of loop_mode, fps and frames that was read from ``path``.

    Raises:
        UserError: a key is missing or wrong, rows are ragged, numbers are not finite, or there are no frames.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"motion {path} holds a {type(data).__name__}; needed is a dictionary with loop_mode, fps and "
                        "frames")
    missing = [key for key in ("loop_mode", "fps", "frames") if key not in data]
    if missing:
        raise UserError(f"motion {path} lacks {', '.join(missing)}; it has {', '.join(map(str, data)) or 'no keys'}")
    loop_mode, fps = _number(data["loop_mode"], "loop_mode", path), _number(data["fps"], "fps", path)
    if loop_mode not in (0, 1):
        raise UserError(f"motion {path} has loop_mode {loop_mode:g}; allowed are 0 (clamp) and 1 (wrap)")
    if not 0 < fps < float("inf"):
        raise UserError(f"motion {path} has fps {fps:g}; needed is a positive number")
    return MotionClip(LoopMode(int(loop_mode)), fps, _frames(data["frames"], path))


def _number(value: Any, key: str, path: Path) -> float:
    try:
        return float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        raise UserError(f"motion {path}: {key} must be a number, found {type(value).__name__}") from None


def _frames(rows: Any, path: Path) -> np.ndarray:
    if not isinstance(rows, (list, tuple, np.ndarray)) or len(rows) == 0:
        raise UserError(f"motion {path} has no frames")
    lengths = [len(row) if isinstance(row, (list, tuple, np.ndarray)) else -1 for row in rows]
    odd = next((i for i, n in enumerate(lengths) if n != lengths[0] or n < ROOT_COLUMNS), None)
    if odd is not None:
        raise UserError(f"motion {path}: frame {odd} has {max(lengths[odd], 0)} numbers, frame 0 has "
                        f"{max(lengths[0], 0)}; needed are rows of one length, at least {ROOT_COLUMNS}")
    try:
        with np.errstate(over="ignore"):
            frames = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"motion {path}: its frames hold something other than numbers") from None
    if frames.ndim != 2:
        raise UserError(f"motion {path}: frames must be rows of numbers, found the shape {list(frames.shape)}")
    bad = np.argwhere(~np.isfinite(frames))
    if len(bad):
        raise UserError(f"motion {path}: frame {bad[0][0]}, column {bad[0][1]} is not finite (as are {len(bad) - 1} "
                        "more)")
    return frames
