"""Whether files are as they were written: sizes and digests of models, and the manifests of checkpoint folders.

No torch here: the acceptance suite looks at checkpoints too. What they hold is told in checkpoint.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimickit.util.files import read_json, write_json, write_text
from mimickit.util.run_folder import identity

MANIFEST = "manifest.json"
SHARED = "shared.pt"
_DIGEST = f"{MANIFEST}.sha256"  # beside it, as sha256sum writes it; checkpoints of older versions have none


def describe_file(path: Path) -> dict[str, Any]:
    """``size`` (bytes) and ``sha256`` of a file."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def is_as_described(path: Path, described: Any) -> bool:
    """Whether a file has the size and the sha256 of :func:`describe_file`."""
    if not isinstance(described, Mapping) or not path.is_file() or path.stat().st_size != described.get("size"):
        return False
    return sha256(path) == described.get("sha256")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_names(world_size: int) -> list[str]:
    """Files that belong to a checkpoint of so many processes."""
    return [SHARED, *(f"rank_{rank}.pt" for rank in range(world_size))]


def write_manifest(folder: Path, entries: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` and, beside it, its digest. ``files``: :func:`describe_file` of each part by name."""
    write_json(folder / MANIFEST, {**entries, "files": files})
    write_text(folder / _DIGEST, _digest_line(folder))


def _digest_line(folder: Path) -> str:
    return f"{sha256(folder / MANIFEST)}  {MANIFEST}\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's manifest; None when there is none, or it does not name every part."""
    manifest = read_json(folder / MANIFEST)
    files, world_size = manifest.get("files"), manifest.get("world_size")
    if not isinstance(files, dict) or type(world_size) is not int or len(files) != world_size + 1:
        return None
    return manifest if set(files) == set(part_names(world_size)) else None


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint folder holds all its parts as they were written, and its manifest is as it was written."""
    manifest = read_manifest(folder)
    digest = folder / _DIGEST
    if manifest is None or (digest.exists() and digest.read_bytes() != _digest_line(folder).encode()):
        return False
    return all(
        is_as_described(folder / name, described) for name, described in manifest["files"].items())


def find_latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; damaged and unfinished ones are passed over, and those of another
    run than the folder's.

    One that was just being replaced (``.old-*``) serves when there is no other.
    """
    return next((path for path in own_checkpoints(run_dir) if is_complete(path)), None)


def own_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of the run that a folder names, newest first, complete or not; all where it names none."""
    folder, run = Path(run_dir) / "checkpoints", identity(Path(run_dir))
    found = [*numbered(folder), *folder.glob(".old-*")]
    return [path for path in found if run is None or read_json(path / MANIFEST).get("run") == run]


def numbered(folder: Path) -> list[Path]:
    """Checkpoint folders by iteration, newest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdigit()), reverse=True)


def model_problem(path: Path) -> str:
    """Why a model file is not what the training that wrote it says in the ``result.json`` beside it; empty when it is,
    or nothing is said of it.
    """
    result = read_json(path.parent / "result.json")
    described = result.get("model")
    if not isinstance(described, Mapping) or Path(str(result.get("model_file"))).name != path.name:
        return ""
    return "" if is_as_described(path, described) else (
        f"{path} is damaged: it is not the file of {described.get('size')} bytes that {path.parent / 'result.json'} "
        f"tells of (sha256 {described.get('sha256')})")
