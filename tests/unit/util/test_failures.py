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
    (RuntimeError("Failed to allocate 123 bytes on device 'cuda:0'"), "oom_gpu"),
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
    (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp"), "nccl"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "cuda_fault"),
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
