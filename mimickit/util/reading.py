"""Files that somebody else may have written: how much of them is read at most, and only from regular files.

The limits stand here, all of them, each far above what any use needs. What exceeds one is refused with a
:class:`UserError` of one form: ``FILE: 1,200,000 frames; at most 1,000,000 are read``. No heavy imports.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mimickit.util.failures import UserError

MIB = 2**20

MAX_ARGS_BYTES = 1 * MIB

MAX_YAML_BYTES = 4 * MIB
MAX_YAML_DEPTH = 50  # lists and mappings within each other
MAX_YAML_NODES = 500_000  # values, those behind aliases and merge keys counted as often as they stand
MAX_YAML_DIGITS = 100  # characters of a number
MAX_LAYERS = 64  # files that a file stands on (key ``base``), each counted as often as it is named

MAX_CLIP_BYTES = 64 * MIB  # of the file, and of an archive's members unpacked
MAX_CLIP_STEPS = 10_000_000  # operations of a pickle; a row of numbers counts as one
MAX_CLIP_FRAMES = 1_000_000  # nine hours at 30 Hz
MAX_CLIP_NUMBERS = 64 * MIB  # frames times columns
MAX_FRAME_VALUE = 1e4  # m, rad
FPS_RANGE = (1.0, 1000.0)  # Hz

MAX_MODEL_BYTES = 16 * MIB  # of each file
MAX_MODEL_FILES = 100  # with all that is included
MAX_MODEL_DEPTH = 100  # elements within each other
MAX_MODEL_ELEMENTS = 100_000
MAX_BODIES = 1_000
MAX_MESH_BYTES = 256 * MIB


def at_most(where: object, count: int, limit: int, things: str) -> None:
    """Raise a UserError if there are more ``things`` than are read."""
    if count > limit:
        raise UserError(f"{where}: {count:,} {things}; at most {limit:,} are read")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: there is none.
        UserError: a folder, a pipe, a device, too large, a path that can be none, or the system refuses to read it.
    """
    try:
        # a pipe without a writer would wait here for ever
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is a pipe or a device; only regular files are read")
            at_most(path, found.st_size, limit, "bytes")
            data = file.read((found.st_size or limit) + 1) or b""  # files of the kernel tell no size
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise UserError(f"{str(path)[:500]} cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL, or half of a character
        raise UserError(f"{str(path)[:500]!r} cannot be the name of a file") from None
    at_most(path, len(data), limit, "bytes")
    return data
