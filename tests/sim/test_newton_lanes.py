"""The kernels whose 32 lanes share memory, run as 32 threads on the CPU: results of one lane, and no data race.

On the CPU Warp runs them with a single lane, so a forgotten barrier would show on a GPU alone. Here their CUDA text is
compiled by g++ with ThreadSanitizer: shared memory becomes static, a warp's barrier and shuffles a barrier of threads.
A barrier that only a shuffle stands in for is not missed here.
"""

from __future__ import annotations

import inspect
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import mujoco
import mujoco_warp as mjw
import numpy as np
import pytest
import warp as wp

from mimickit.engines import newton_solve
from tests.sim.test_newton_solve import CHAIN, DEVICE, ROWS, N, throw, world

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(DEVICE != "cpu", reason="compares with one lane"),
]

PROGRAM = """
#include <cmath>
#include <cstdio>
#include <pthread.h>
#include <thread>
#include <vector>
#define __CUDA_ARCH__ 900
#define __shared__ static
static pthread_barrier_t barrier;
static float shuffled[32];
static int votes[32];
thread_local int me;
static void __syncwarp() { pthread_barrier_wait(&barrier); }
static float __shfl_sync(unsigned, float value, int source) {
    shuffled[me] = value; __syncwarp(); const float found = shuffled[source & 31]; __syncwarp(); return found;
}
static float __shfl_xor_sync(unsigned all, float value, int other) { return __shfl_sync(all, value, me ^ other); }
static int __any_sync(unsigned, bool value) {
    votes[me] = value; __syncwarp(); int found = 0; for (int i : votes) found |= i; __syncwarp(); return found;
}
template <class T, int W> struct Vector { T part[W]; T operator[](int i) const { return part[i]; } };
template <class T> struct Array { T* data; int strides[3]; int shape[3]; };
$buffers
static void run(int world, int lane) {
me = lane;
$arrays
$snippet
}
template <class T> static void transfer(const char* file, const char* mode, T& buffer) {
    FILE* f = fopen(file, mode);
    if (*mode == 'r') fread(&buffer, 1, sizeof(buffer), f); else fwrite(&buffer, 1, sizeof(buffer), f);
    fclose(f);
}
int main() {
$read
pthread_barrier_init(&barrier, nullptr, 32);
for (int world = 0; world < $worlds; world++) {
    std::vector<std::thread> lanes;
    for (int lane = 0; lane < 32; lane++) lanes.emplace_back(run, world, lane);
    for (auto& lane : lanes) lane.join();
}
$write
}
"""


class Recorder:
    """In place of wp.launch_tiled: launches, and keeps the text and the arrays of the last launch of a kernel."""

    def __init__(self, name: str) -> None:
        self.name, self.launch = name, wp.launch_tiled

    def __call__(self, kernel: wp.Kernel, dim: int, inputs: list, outputs: list, **options: Any) -> None:
        if kernel.key.split("__")[-1] != self.name:
            self.launch(kernel, dim=dim, inputs=inputs, outputs=outputs, **options)
            return
        names = [argument.label for argument in kernel.adj.args]
        arrays = dict(zip(names, [*inputs, *outputs]))
        self.worlds = dim
        self.snippet = inspect.getclosurevars(kernel.func).nonlocals[f"{self.name}_world"].native_snippet
        self.before = {name: array.numpy().copy() for name, array in arrays.items()}
        self.vectors = {name for name, array in arrays.items() if array.dtype not in (float, int, wp.float32, wp.int32)}
        self.launch(kernel, dim=dim, inputs=inputs, outputs=outputs, **options)
        self.after = {name: arrays[name].numpy().copy() for name in names[len(inputs):]}

    def as_threads(self, folder: Path) -> dict[str, np.ndarray]:
        parts: dict[str, list[str]] = {key: [] for key in ("buffers", "arrays", "read", "write")}
        for name, array in self.before.items():
            scalar = "int" if array.dtype.kind == "i" else "float"
            kind = f"Vector<{scalar}, {array.shape[-1]}>" if name in self.vectors else scalar
            array.tofile(folder / name)
            parts["buffers"].append(f"static {scalar} {name}_buffer[{max(array.size, 1)}];")
            strides, shape = (", ".join(map(str, numbers)) for numbers in (array.strides, array.shape))
            parts["arrays"].append(f"Array<{kind}> {name}{{({kind}*){name}_buffer, {{{strides}}}, {{{shape}}}}};")
            parts["read"].append(f'transfer("{name}", "rb", {name}_buffer);')
            if name in self.after:
                parts["write"].append(f'transfer("{name}", "wb", {name}_buffer);')
        text = PROGRAM.replace("$worlds", str(self.worlds)).replace("$snippet", self.snippet)
        for key, lines in parts.items():
            text = text.replace(f"${key}", "\n".join(lines))
        (folder / "lanes.cpp").write_text(text)
        subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-ffp-contract=off", "-fsanitize=thread", "-pthread",
                        "lanes.cpp", "-o", "lanes"], cwd=folder, check=True)
        # without setarch, ThreadSanitizer does not start where addresses are much randomised
        ended = subprocess.run(["setarch", "-R", "./lanes"], cwd=folder, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr[:4000]
        return {name: np.fromfile(folder / name, array.dtype)[:array.size].reshape(array.shape)
                for name, array in self.after.items()}


@pytest.mark.parametrize("jacobian", ["sparse", "dense"])
def test_solve_has_no_race_between_lanes(tmp_path, jacobian) -> None:
    model = mujoco.MjModel.from_xml_string(
        ROWS.format(jacobian=jacobian, chains="".join(CHAIN.format(i=i, x=0.7 * i) for i in range(5))))
    recorder = Recorder("solve")
    with wp.ScopedDevice("cpu"):
        m, d = mjw.put_model(model), mjw.make_data(model, nworld=N, nconmax=60, njmax=300)
        m.opt.warn_overflow = 0
        d.qvel.assign(np.random.default_rng(0).normal(0.0, 2.0, (N, model.nv)).astype(np.float32))
        for _ in range(12):
            mjw.step(m, d)
        with mock.patch.object(wp, "launch_tiled", recorder), newton_solve.fused_solve(m, d):
            mjw.step(m, d)
    rows, found = recorder.before["nefc_in"], recorder.as_threads(tmp_path)
    assert rows.max() > 32 and found["niter_out"].max() > 1
    np.testing.assert_array_equal(found["niter_out"], recorder.after["niter_out"])
    for w in range(N):
        np.testing.assert_array_equal(found["state_out"][w, :rows[w]], recorder.after["state_out"][w, :rows[w]])
        scale = np.abs(recorder.after["qacc_out"][w]).max()
        np.testing.assert_allclose(found["qacc_out"][w], recorder.after["qacc_out"][w], atol=1e-5 * scale, rtol=0.0)


def test_factorization_has_no_race_between_lanes(tmp_path) -> None:
    engine = world("smpl", lean_steps=True)
    throw(engine, 0)
    engine.step()
    recorder = Recorder("factorize")
    with mock.patch.object(wp, "launch_tiled", recorder):
        engine._control_step(1)
    for name, array in recorder.as_threads(tmp_path).items():
        np.testing.assert_array_equal(array, recorder.after[name])
