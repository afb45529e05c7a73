"""Data-parallel processes as one object that is passed around: rank, world size, device and a few collectives.

One process a device, started by torchrun, whose environment variables are the only discovery. With one process every
collective is a no-op, so the code that uses it has no branches. Nothing here is global: make one, use it,
:meth:`Distributed.shutdown` it, and a second training can start in the same process.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as c10d

from mimickit.util.failures import UserError

SEED_STRIDE = 41
MEETING_POLL = 0.05  # s
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Work(Protocol):
    """A collective that has begun."""

    def wait(self) -> object:
        """What is enqueued on the current CUDA stream from now on comes after it (the host does not wait); on CPU:
        return when it has ended."""


class _Finished:
    """With one process there is nothing to wait for."""

    def wait(self) -> None:
        pass


FINISHED: Work = _Finished()


@dataclass(frozen=True)
class Distributed:
    """This process among ``world_size`` data-parallel ones. Tensors given to collectives live on ``device``."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @staticmethod
    def single(device: torch.device | str = "cpu") -> Distributed:
        """One process alone; makes ``device`` the current CUDA device."""
        device = torch.device(device)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            torch.cuda.set_device(device)
        return Distributed(0, 1, 0, device)

    @staticmethod
    def from_env(devices: str | Sequence[str] = "cpu", timeout_s: float = 600.0,
                 waiting: Callable[[], None] = lambda: None) -> Distributed:
        """Join the process group that torchrun's variables describe, or stay alone when they are not set.

        Args:
            devices: one device per process of this host (entry ``LOCAL_RANK`` is ours), or one name without index
                (``cuda``: GPU number ``LOCAL_RANK``; ``cpu``) for all.
            timeout_s: a collective that waits longer than this fails, and so does waiting for the others to come.
            waiting: called again and again while not all processes are here.

        Raises:
            DistStoreError: not all processes came in time.
            UserError: torchrun's variables are incomplete, or the devices do not fit the number of processes.
        """
        devices = [devices] if isinstance(devices, str) else list(devices)
        kinds = {torch.device(name).type for name in devices}
        if len(kinds) != 1:
            raise UserError(f"devices must be given and all of one kind (cpu or cuda), got {devices}")
        present = [name for name in _TORCHRUN_VARIABLES if name in os.environ]
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return Distributed.single(devices[0])
        if len(present) != len(_TORCHRUN_VARIABLES):
            missing = sorted(set(_TORCHRUN_VARIABLES) - set(present))
            raise UserError(f"WORLD_SIZE is set but not {', '.join(missing)}: start several processes with torchrun")

        rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        device = _local_device(devices, local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        c10d.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=_meet(rank, world_size, timeout_s, waiting),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
        return Distributed(rank, world_size, local_rank, device)

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    def shutdown(self) -> None:
        """Leave the process group. Safe to call twice."""
        if self.world_size > 1 and c10d.is_initialized():
            c10d.destroy_process_group()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace ``tensor`` by its sum over processes, in place."""
        return self._reduce_(tensor, c10d.ReduceOp.SUM)

    def begin_sum_(self, tensor: torch.Tensor) -> Work:
        """Begin to replace ``tensor`` by its sum over processes, in place; leave it alone until its ``wait``."""
        if self.world_size == 1:
            return FINISHED
        return c10d.all_reduce(tensor, op=c10d.ReduceOp.SUM, async_op=True)

    def min_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace ``tensor`` by its element-wise minimum over processes, in place."""
        return self._reduce_(tensor, c10d.ReduceOp.MIN)

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace ``tensor`` by its element-wise maximum over processes, in place."""
        return self._reduce_(tensor, c10d.ReduceOp.MAX)

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite each tensor by the root's, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                c10d.broadcast(tensor, src=0)

    def broadcast_object(self, value: Any) -> Any:
        """The root's picklable host value, on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        c10d.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """The picklable host values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        c10d.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            c10d.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def _reduce_(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.world_size > 1:
            c10d.all_reduce(tensor, op=operation)
        return tensor


def seed_process(seed: int, rank: int) -> int:
    """Seed python, numpy and torch (CPU and CUDA) of process ``rank`` with ``seed + 41 rank``; returns that number."""
    import numpy

    own = seed + SEED_STRIDE * rank
    random.seed(own)
    numpy.random.seed(own % 2**32)
    torch.manual_seed(own)
    return own


def _meet(rank: int, world_size: int, timeout_s: float, waiting: Callable[[], None]) -> c10d.Store:
    """Wait until all processes have come; the store where they met."""
    limit = timedelta(seconds=timeout_s)
    store, *_ = next(iter(c10d.rendezvous("env://", rank, world_size, timeout=limit)))
    here = f"mimickit/here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store.add(here, 1)
    deadline = time.monotonic() + timeout_s
    while (come := store.add(here, 0)) < world_size:
        if time.monotonic() > deadline:
            raise c10d.DistStoreError(f"only {come} of {world_size} processes came within {timeout_s:g} s")
        waiting()
        time.sleep(MEETING_POLL)
    return store


def _local_device(devices: list[str], local_rank: int) -> torch.device:
    if len(devices) > 1:
        if local_rank >= len(devices):
            raise UserError(f"process {local_rank} of this host has no device among the given ones: {devices}")
        return torch.device(devices[local_rank])
    device = torch.device(devices[0])
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank)
    if device.type == "cuda" and local_rank > 0:
        raise UserError(f"several processes on this host but one device given ({devices[0]}): list one per process")
    return device
