"""Several cases on one GPU: NVIDIA's Multi-Process Service runs their kernels side by side instead of in turns.

A single case seldom fills a GPU, so cases that share one finish sooner than one after the other
(``docs/longcycle.md``). The service lives as long as the session. https://docs.nvidia.com/deploy/mps
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimickit.longcycle import guard
from mimickit.longcycle.devices import gpu_uuids, physical_name, visible_cuda

PROGRAM = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
MASK = "CUDA_VISIBLE_DEVICES"  # the service renumbers GPUs, so clients name them by UUID
PATIENCE = 20.0  # s for the service to start, and for a first client
FIRST_CLIENT = """
import ctypes, sys
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
sys.exit(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
"""


def serves(environ: Mapping[str, str]) -> bool:
    """Whether a process with this environment can use the first GPU."""
    try:
        return subprocess.run([sys.executable, "-I", "-S", "-c", FIRST_CLIENT], env=dict(environ), timeout=PATIENCE,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def shared_gpus(logs: Path, works: Callable[[Mapping[str, str]], bool] = serves) -> Iterator[str]:
    """Run the service for all processes started meanwhile; yields, in words, how GPUs are shared.

    Without the service, or with somebody else's, nothing is started: kernels then take turns, which is slower but just
    as correct.

    Args:
        logs: folder for the service's log files.
        works: whether a client with that environment can use a GPU.
    """
    if PIPES in os.environ:
        yield f"by the service at {PIPES}"
        return
    if shutil.which(PROGRAM) is None:
        yield f"in turns, slowly: {PROGRAM} is not installed"
        return
    logs.mkdir(parents=True, exist_ok=True)
    mask = {}
    if MASK in os.environ and gpu_uuids():
        mask[MASK] = ",".join(physical_name(device) for device in visible_cuda())
    with tempfile.TemporaryDirectory(prefix="mps-") as pipes:  # a short path: names of sockets are limited
        own = {PIPES: pipes, LOGS: str(logs), **mask}
        service = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, PROGRAM, "-f"], env={**os.environ, **own},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE
            while service.poll() is None and not (Path(pipes) / "control").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if service.poll() is None and works({**os.environ, **own}):
                with pytest.MonkeyPatch.context() as environment:
                    for name, value in own.items():
                        environment.setenv(name, value)
                    yield "side by side (Multi-Process Service)"
            else:
                yield f"in turns, slowly: {PROGRAM} does not work here, see {logs}"
        finally:
            service.stdin.close()  # the guard ends it and its servers
            service.wait()
