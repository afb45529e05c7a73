import errno
import json
import os

import pytest
import torch

from mimickit.util.failures import (
    FAILURE_CLASSES,
    AssetMissingError,
    NonFiniteError,
    UserError,
    classify,
    read_failures,
    write_failure,
)
from mimickit.util.files import atomic_path, write_json

UNMAPPED = "failed to map segment from shared object"  # glibc's loader; warp raises another error from it


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error, expected", [
    (UserError("x"), "config"),
    (AssetMissingError("x"), "asset_missing"),
    (NonFiniteError("x"), "nan"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom_gpu"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "oom_host"),
    (MemoryError(), "oom_host"),
    (OSError(f"/x/warp.so: {UNMAPPED}"), "oom_host"),
    (ImportError(f"/x/libtorch_cuda.so: {UNMAPPED}"), "oom_host"),
    (raised_from(RuntimeError("Failed to load the shared library '/x/warp.so'"), OSError(f"/x/warp.so: {UNMAPPED}")),
     "oom_host"),
    (OSError(f"/x/warp.so: {UNMAPPED}: Operation not permitted"), "failed"),
    (raised_from(RuntimeError("Failed to load the shared library '/x/warp.so'"),
                 OSError(f"/x/warp.so: {UNMAPPED}: Operation not permitted")), "failed"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk"),
    (raised_from(RuntimeError("the log could not be written"), OSError(errno.ENOSPC, "No space left")), "disk"),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), "nccl"),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms"), "nccl"),
    (torch.distributed.DistBackendError("NCCL error in: ../ProcessGroupNCCL.cpp:94, unhandled system error"), "nccl"),
    (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."), "nccl"),
    (torch.distributed.DistBackendError("NCCL error: unhandled cuda error. Failed to CUDA calloc async 608 bytes"),
     "oom_gpu"),
    (torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"), "oom_gpu"),
    (torch.distributed.DistBackendError("NCCL error: Cuda failure 700 'an illegal memory access was encountered'"),
     "cuda_fault"),
    (torch.AcceleratorError("CUDA error: out of memory"), "oom_gpu"),
    (torch.AcceleratorError("CUDA error: device-side assert triggered"), "cuda_fault"),
    (torch.AcceleratorError("CUDA error: unspecified launch failure"), "cuda_fault"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom_gpu"),
    (RuntimeError("Graph launch error: Warp CUDA error 2: out of memory (in function graph_launch)"), "oom_gpu"),
    (RuntimeError("Warp CUDA error 700: an illegal memory access was encountered"), "cuda_fault"),
    (RuntimeError("Failed to allocate 4096 bytes on device 'cpu'"), "oom_host"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom_host"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
    (OSError(errno.EFBIG, "File too large"), "disk"),
    (OSError(errno.EROFS, "Read-only file system"), "disk"),
    (FileNotFoundError(errno.ENOENT, "No such file"), "failed"),
    (ValueError("x"), "failed"),
])
def test_classes(error, expected):
    assert classify(error) == expected
    assert expected in FAILURE_CLASSES


def test_the_earliest_failure_is_the_root_cause(tmp_path):
    for rank in (1, 0):
        try:
            raise RuntimeError(f"rank {rank}")
        except RuntimeError as error:
            write_failure(tmp_path, rank, error)
    first, second = read_failures(tmp_path)
    assert (first["rank"], second["rank"]) == (1, 0)
    assert "RuntimeError: rank 1" in first["traceback"] and first["pid"] == os.getpid()


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"value": 1, "bad": float("nan")})
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(target.read_text()) == {"value": 1, "bad": "nan"}
    assert os.listdir(tmp_path) == ["a.json"]
