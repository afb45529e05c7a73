"""A test's function in two processes at once, joined by gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing

from mimickit.util.distributed import Distributed

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def in_two_processes(function: Callable, *arguments: object, times: int = 1) -> None:
    """Run ``function(dist, *arguments)`` in two processes; any exception there fails the test.

    Args:
        times: each process joins and leaves a group so often. Each has a meeting place of its own: the one before it
            may still close.
    """
    servers = [socket.socket() for _ in range(times)]
    for server in servers:
        server.bind(("127.0.0.1", 0))
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    multiprocessing.set_forkserver_preload(["torch"])  # imported once, not in every process
    torch.multiprocessing.start_processes(_child, (ports, function, arguments), nprocs=2, start_method="forkserver")


def _child(rank: int, ports: list[int], function: Callable, arguments: tuple) -> None:
    for port in ports:
        values = (rank, 2, rank, "127.0.0.1", port)
        os.environ.update({name: str(value) for name, value in zip(VARIABLES, values, strict=True)})
        dist = Distributed.from_env("cpu", timeout_s=60)
        function(dist, *arguments)
        dist.shutdown()
        dist.shutdown()
