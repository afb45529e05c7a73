"""What a training run saves: ``model.pt`` (the policy, a flat mapping from names to tensors) and checkpoint folders
from which a run continues exactly.

A checkpoint folder is written aside and renamed when complete::

    checkpoints/0000000123/   shared.pt            what all processes agree on (networks, optimizers, counters)
                              rank_0.pt, ...       what belongs to one process (environments, random state)
                              manifest.json        world size, iteration, ..., size and sha256 of each file

All processes must see the same file system. Files hold tensors, numbers, strings, lists and mappings only and are
read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mimickit.util.distributed import Distributed
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import atomic_path, fsync, write_json

KEEP = 2
_SHARED = "shared.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read by one process."""

    path: Path
    manifest: dict[str, Any]
    shared: dict[str, Any]
    local: dict[str, Any]


def snapshot(tree: Any) -> Any:
    """Copy a nest of mappings, lists and tensors, tensors on their own devices; nothing is shared."""
    return _copied(tree, lambda tensor: tensor.detach().clone())


def to_host(tree: Any) -> Any:
    """Copy a nest of mappings, lists and tensors to CPU memory; nothing is shared with the original."""
    return _copied(tree, lambda tensor: tensor.detach().to("cpu", copy=True))


def _copied(tree: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        return copy(tree)
    if isinstance(tree, Mapping):
        return {key: _copied(value, copy) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copied(value, copy) for value in tree]
    return tree


def save_checkpoint(
    folder: Path,
    iteration: int,
    shared: Mapping[str, Any] | None,
    local: Mapping[str, Any],
    manifest: Mapping[str, Any],
    dist: Distributed,
    keep: int = KEEP,
) -> Path:
    """Write ``folder/<iteration, 10 digits>`` together with all processes and remove all but the newest ``keep``.

    Args:
        folder: the run's ``checkpoints`` folder.
        shared: written by the root; the others may pass None.
        local: written by every process.
        manifest: further plain entries of ``manifest.json``; ``world_size`` and ``iteration`` are added.
    """
    folder = Path(folder)
    final = folder / f"{iteration:010d}"
    aside = folder / f".tmp-{iteration:010d}"
    if dist.is_root:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
            shutil.rmtree(stale)
        aside.mkdir()
    dist.barrier()
    if dist.is_root:
        assert shared is not None, "the root writes the shared part"
        _save_tensors(aside / _SHARED, shared)
    _save_tensors(aside / f"rank_{dist.rank}.pt", local)
    dist.barrier()
    if dist.is_root:
        names = [_SHARED, *(f"rank_{rank}.pt" for rank in range(dist.world_size))]
        files = {name: {"size": (aside / name).stat().st_size, "sha256": _sha256(aside / name)} for name in names}
        entries = {**manifest, "world_size": dist.world_size, "iteration": iteration, "files": files}
        write_json(aside / "manifest.json", entries)
        if final.exists():
            final.rename(folder / f".old-{final.name}")
        aside.rename(final)
        fsync(folder)
        shutil.rmtree(folder / f".old-{final.name}", ignore_errors=True)
        for older in _numbered(folder)[keep:]:
            shutil.rmtree(older)
    dist.barrier()
    return final


def is_complete(path: Path) -> bool:
    """Whether a checkpoint folder holds all its files with the recorded sizes and contents."""
    manifest = _read_manifest(path)
    if manifest is None:
        return False
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["size"] or _sha256(file) != expected["sha256"]:
            return False
    return True


def find_latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; truncated and unfinished ones are passed over."""
    return next((path for path in _numbered(Path(run_dir) / "checkpoints") if is_complete(path)), None)


def resolve_checkpoint(path: Path, dist: Distributed) -> Path:
    """Turn ``--resume PATH`` (a run folder or one checkpoint folder) into a checkpoint folder, the same on all
    processes.

    Raises:
        AssetMissingError: nothing complete is there.
    """
    path = Path(path)
    found: Path | None = None
    if dist.is_root:
        found = path if (path / "manifest.json").is_file() and is_complete(path) else find_latest(path)
    found = dist.broadcast_object(found)
    if found is None:
        raise AssetMissingError(
            f"no complete checkpoint at {path}: give a run folder (with checkpoints/) or one folder below checkpoints/"
        )
    return found


def load_checkpoint(path: Path, dist: Distributed) -> Checkpoint:
    """Read the parts of a checkpoint that this process needs, into CPU memory.

    Raises:
        UserError: it was written by another number of processes.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is None:
        raise AssetMissingError(f"not a checkpoint folder (no readable manifest.json): {path}")
    if manifest["world_size"] != dist.world_size:
        raise UserError(
            f"{path} was written by {manifest['world_size']} process(es), this run has {dist.world_size}: an exact "
            f"continuation needs the same number of devices. Use --model_file with its model.pt for a warm start"
        )
    shared = torch.load(path / _SHARED, map_location="cpu", weights_only=True)
    local = torch.load(path / f"rank_{dist.rank}.pt", map_location="cpu", weights_only=True)
    return Checkpoint(path, manifest, shared, local)


def save_model(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a flat mapping from names to tensors, atomically, in torch's format with plain CPU tensors."""
    host = to_host(tensors)
    with atomic_path(path) as temporary:
        torch.save(host, temporary)


def load_model(path: Path, target: Mapping[str, torch.Tensor]) -> None:
    """Fill the tensors of ``target`` in place from a model file. All names and shapes must match.

    Raises:
        AssetMissingError: no such file.
        UserError: not a mapping from names to tensors, or other names or shapes; nothing is changed then.
    """
    path = Path(path)
    if not path.is_file():
        raise AssetMissingError(f"model file not found: {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a readable model file: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} must hold a flat mapping from names to tensors")
    fill_tensors(target, loaded, str(path))


def fill_tensors(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy ``source`` into the tensors of ``target`` in place, strictly: same names, same shapes.

    Raises:
        UserError: naming what is missing, unexpected or of another shape; nothing is changed then.
    """
    problems = []
    if missing := sorted(set(target) - set(source)):
        problems.append(f"missing {', '.join(missing)}")
    if unexpected := sorted(set(source) - set(target)):
        problems.append(f"unexpected {', '.join(unexpected)}")
    for name in sorted(set(target) & set(source)):
        if tuple(target[name].shape) != tuple(source[name].shape):
            problems.append(f"{name} has shape {tuple(source[name].shape)}, expected {tuple(target[name].shape)}")
    if problems:
        raise UserError(f"{where} does not fit this agent and environment: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _save_tensors(path: Path, data: Mapping[str, Any]) -> None:
    torch.save(to_host(data), path)
    fsync(path)


def _numbered(folder: Path) -> list[Path]:
    """Checkpoint folders by iteration, newest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdigit()), reverse=True)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
