"""What a training run saves: ``model.pt`` (the policy, a flat mapping from names to tensors) and checkpoint folders
from which a run continues exactly.

A checkpoint folder is written aside and renamed when complete::

    checkpoints/0000000123/   shared.pt            what all processes agree on (networks, optimizers, counters)
                              rank_0.pt, ...       what belongs to one process (environments, random state)
                              manifest.json        world size, iteration, ..., size and sha256 of each file
                              manifest.json.sha256 its own digest, as sha256sum writes it

All processes must see the same file system. Files hold tensors, numbers, strings, lists and mappings only and are
read with ``weights_only=True``.
"""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from mimickit.util.distributed import Distributed
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import atomic_path, fsync, naming_full_disk, write_json
from mimickit.util.logging import warn
from mimickit.util.manifest import (
    MANIFEST,
    SHARED,
    describe_file,
    find_latest,
    is_complete,
    numbered,
    own_checkpoints,
    part_names,
    read_manifest,
    write_manifest,
)
from mimickit.util.names import missing_file
from mimickit.util.run_folder import source_folder

KEEP = 2
WRITE_TIMEOUT = 600.0  # s, for the files of the other processes
_WRITTEN = ".written.json"  # beside a file that is complete: its size and sha256, for the manifest


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
    """Copy a nest of mappings, lists and tensors to CPU memory; nothing is shared with the original.

    CUDA tensors go to page-locked memory, which torch keeps for the next time: about ten times as fast.
    """
    devices: set[torch.device] = set()

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.detach().to("cpu", copy=True)
        devices.add(tensor.device)
        locked = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return locked.copy_(tensor.detach(), non_blocking=True)

    copied = _copied(tree, copy)
    for device in devices:
        torch.cuda.synchronize(device)
    return copied


def _copied(tree: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        return copy(tree)
    if isinstance(tree, Mapping):
        return {key: _copied(value, copy) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copied(value, copy) for value in tree]
    return tree


class CheckpointWriter:
    """Writes checkpoints while training goes on: tensors are copied at once, files are written by a thread.

    One checkpoint at a time; no collective operation takes place in the thread, the processes find each other's files.

    Args:
        folder: the run's ``checkpoints`` folder.
        keep: so many newest checkpoints stay.
    """

    def __init__(self, folder: Path, dist: Distributed, keep: int = KEEP) -> None:
        self._folder, self._dist, self._keep = Path(folder), dist, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, iteration: int, shared: Mapping[str, Any] | None, local: Mapping[str, Any], manifest: Mapping[str, Any]
    ) -> Path:
        """Begin to write ``folder/<iteration, 10 digits>`` together with all processes; the earlier one is complete.

        Args:
            shared: written by the root; the others may pass None.
            local: written by every process.
            manifest: further plain entries of ``manifest.json``; ``world_size`` and ``iteration`` are added.

        Raises:
            OSError: what the earlier one met with.
        """
        self.wait()
        aside = self._folder / f".tmp-{iteration:010d}"
        if self._dist.is_root:
            assert shared is not None, "the root writes the shared part"
            self._folder.mkdir(parents=True, exist_ok=True)
            for stale in self._folder.glob(".tmp-*"):
                shutil.rmtree(stale)
            aside.mkdir()
        self._dist.barrier()
        parts = {SHARED: to_host(shared)} if self._dist.is_root else {}
        parts[f"rank_{self._dist.rank}.pt"] = to_host(local)
        entries = {**manifest, "world_size": self._dist.world_size, "iteration": iteration}
        self._thread = threading.Thread(target=self._write, args=(aside, parts, entries), daemon=True)
        self._thread.start()
        return self._folder / f"{iteration:010d}"

    def wait(self, timeout: float | None = None) -> None:
        """Wait until this process's part is written; on the root, until the checkpoint is complete.

        Args:
            timeout: s to wait at most.

        Raises:
            OSError: what writing met with.
        """
        if self._thread is None:
            return
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what writing has met with so far. Does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, aside: Path, parts: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
        try:
            for name, data in parts.items():
                _save(aside / name, data)
                write_json(aside / f"{name}{_WRITTEN}", describe_file(aside / name))
            if self._dist.is_root:
                self._complete(aside, entries)
        except BaseException as error:  # raised again where the training loop can end
            self._error = error

    def _complete(self, aside: Path, entries: Mapping[str, Any]) -> None:
        """Wait for the files of all processes and put the folder in its place."""
        folder, final = self._folder, self._folder / aside.name.removeprefix(".tmp-")
        names = part_names(self._dist.world_size)
        deadline = time.monotonic() + WRITE_TIMEOUT
        while missing := [name for name in names if not (aside / f"{name}{_WRITTEN}").exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{aside}: {', '.join(missing)} not written within {WRITE_TIMEOUT:.0f} s")
            time.sleep(0.02)
        files = {name: json.loads((aside / f"{name}{_WRITTEN}").read_text()) for name in names}
        for name in names:
            (aside / f"{name}{_WRITTEN}").unlink()
        write_manifest(aside, entries, files)
        if final.exists():
            replaced = folder / f".old-{final.name}"
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        aside.rename(final)
        fsync(folder)
        others = [path for path in numbered(folder) if path != final]
        abandoned = [path for path in others if path.name > final.name]  # this run went on from before them
        older = others[len(abandoned):]
        for path in [*folder.glob(".old-*"), *abandoned, *older[self._keep - 1:]]:
            shutil.rmtree(path)


def resolve_checkpoint(path: Path, dist: Distributed) -> Path:
    """Turn ``--resume PATH`` (a run folder or one checkpoint folder) into a checkpoint folder, the same on all
    processes.

    Raises:
        AssetMissingError: nothing complete is there.
    """
    path = Path(path)
    one = (path / MANIFEST).is_file()
    candidates = [path] if one else own_checkpoints(path)
    found: Path | None = None
    if dist.is_root:
        found = find_latest(path) if not one else path if is_complete(path) else None
    found = dist.broadcast_object(found)
    if found is None:
        raise AssetMissingError(_without_checkpoint(path, candidates))
    for folder in candidates[:candidates.index(found)] if dist.is_root else ():
        warn(f"{folder} is damaged or incomplete and is passed over")
    return found


def _without_checkpoint(path: Path, damaged: Sequence[Path]) -> str:
    """What to say where ``--resume path`` finds nothing to continue from."""
    if not damaged:
        return (f"no complete checkpoint at {path}: give a run folder (with checkpoints/) or one folder below "
                "checkpoints/; a training that has written none begins again with --overwrite instead of --resume")
    run = source_folder(path)
    if run != path:
        return f"{path} is damaged or incomplete: --resume {run} continues from the newest checkpoint that is not"
    return (f"{', '.join(map(str, damaged))} are damaged or incomplete: nothing is left to continue from exactly. "
            f"--model_file {run / 'model.pt'} with another --out_dir trains on from the model alone; --overwrite "
            "instead of --resume begins again")


def load_checkpoint(path: Path, dist: Distributed) -> Checkpoint:
    """Read the parts of a checkpoint that this process needs, into CPU memory.

    Raises:
        AssetMissingError: it is none.
        UserError: it was written by another number of processes, or a file holds more than tensors and plain values.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise AssetMissingError(f"not a checkpoint folder (no readable manifest.json): {path}")
    if manifest["world_size"] != dist.world_size:
        raise UserError(
            f"{path} was written by {manifest['world_size']} process(es), this run has {dist.world_size}: an exact "
            f"continuation needs the same number of devices. Use --model_file with its model.pt for a warm start"
        )
    return Checkpoint(path, manifest, _load(path / SHARED), _load(path / f"rank_{dist.rank}.pt"))


def save_model(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a flat mapping from names to tensors, atomically, in torch's format with plain CPU tensors."""
    with atomic_path(path) as temporary:
        _save(temporary, to_host(tensors))


def load_model(path: Path, target: Mapping[str, torch.Tensor]) -> None:
    """Fill the tensors of ``target`` in place from a model file. All names and shapes must match.

    Raises:
        AssetMissingError: no such file.
        UserError: not a mapping from names to tensors, or other names or shapes; nothing is changed then.
    """
    fill_tensors(target, read_model(path), str(path))


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model file by name, on the CPU.

    Raises:
        AssetMissingError: no such file.
        UserError: a folder, damaged, or not a mapping from names to tensors.
    """
    path = Path(path)
    if path.is_dir():
        model = path / "model.pt"
        raise UserError(f"{path} is a folder, not a model file" + (f": give {model}" if model.is_file() else ""))
    if not path.is_file():
        raise AssetMissingError(f"model file not found: {missing_file(path)}")
    loaded = _load(path, "model file")
    if damaged := _damaged_part(path):
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it is wrong")
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} must hold a flat mapping from names to tensors")
    return dict(loaded)


def fill_tensors(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy ``source`` into the tensors of ``target`` in place, strictly: same names, same shapes.

    Raises:
        UserError: naming what is missing, unexpected or of another shape; nothing is changed then.
    """
    if problems := misfits(target, source):
        raise UserError(f"{where} does not fit this agent and environment: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def misfits(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> list[str]:
    """What keeps ``source`` from being copied into ``target``: names that are missing or unexpected, other shapes."""
    problems = []
    if missing := sorted(set(target) - set(source)):
        problems.append(f"missing {', '.join(missing)}")
    if unexpected := sorted(set(source) - set(target)):
        problems.append(f"unexpected {', '.join(unexpected)}")
    for name in sorted(set(target) & set(source)):
        if tuple(target[name].shape) != tuple(source[name].shape):
            problems.append(f"{name} has shape {tuple(source[name].shape)}, expected {tuple(target[name].shape)}")
    return problems


class _Writer:
    """A file for torch.save, which hides what the system says (disk full): the first error is kept."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self._file.flush()


def _save(path: Path, data: Any) -> None:
    """Write CPU tensors and plain values in torch's format, fsynced.

    A failed file is removed: it may be what fills the disk.
    """
    try:
        with naming_full_disk(path, lambda: _size(data)):
            with path.open("wb") as file:
                writer = _Writer(file)
                torch.save(data, writer)
                if writer.error is not None:
                    raise writer.error
            fsync(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _size(tree: Any) -> int:
    """Bytes of the tensors in a nest of mappings and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(_size, parts))


def _load(path: Path, what: str = "checkpoint file") -> Any:
    """Read a file of tensors and plain values; code in it is not run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own about files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file may raise nearly anything; nothing of it has an effect
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what torch makes of a file that was cut short
            raise
        raise UserError(f"{path} is not a readable {what}: it is damaged, or not one at all ({_reason(error)})"
                        ) from None


def _damaged_part(path: Path) -> str | None:
    """The first part of a file in torch's format whose checksum is wrong; torch does not look at them."""
    if not zipfile.is_zipfile(path):  # written by a torch before 1.6, without checksums
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):  # flags that torch does not use
        return "its directory"


def _reason(error: Exception) -> str:
    """The first sentence of what torch says about a file, without its advice to run the code in it."""
    if isinstance(error, OSError):
        return "it ends too early"
    text = " ".join(str(error).split()).partition(" Check the documentation")[0]
    for mark in ("trusted source. ", "WeightsUnpickler error: ", "failed reading zip archive: "):
        text = text.rpartition(mark)[2]
    text = text.partition(". ")[0].removesuffix(".")[:200]
    return text if text and "weights_only" not in text else type(error).__name__
