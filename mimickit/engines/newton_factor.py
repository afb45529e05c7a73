"""Newton's L' D L factorisation of a sparse inertia as one kernel: a warp a world, in shared memory.

The solver package factorises characters of more than 64 velocities (SMPL has 75) with a launch a level of the tree of
dofs, twice a substep. Here a world walks its levels by itself. An element's updates are subtracted in the package's
order on the CPU, so results are the same to the bit there.

On the CPU a "warp" is one lane.
"""

from __future__ import annotations

import functools
from string import Template

import mujoco_warp as mjw
import numpy as np
import warp as wp

from mimickit.engines.newton_solve import LANES, MOST_SHARED

_FACTORIZE = Template(r"""
constexpr int NC = $nc, LEVELS = $levels, WIDEST = $widest;
#if defined(__CUDA_ARCH__)
constexpr int LANES = 32;
#define SHARED __shared__
auto sync = []() { __syncwarp(); };
#else
constexpr int LANES = 1;
#define SHARED
auto sync = []() {};
#endif
SHARED float factor[NC], ratio[WIDEST];
#undef SHARED
#define OF_WORLD(a) ((a).data + (size_t)world * ((a).strides[0] / sizeof(*(a).data)))
const float* const M = OF_WORLD(M_in);
float* const L = OF_WORLD(L_out);

for (int k = lane; k < NC; k += LANES) factor[k] = M[k];
sync();
for (int level = 0; level < LEVELS; level++) {
    const int first = update_level_in.data[level], last = update_level_in.data[level + 1];
    for (int u = first + lane; u < last; u += LANES)
        ratio[u - first] = factor[updates_in.data[u][1]] / factor[updates_in.data[u][2]];
    sync();
    for (int e = element_level_in.data[level] + lane; e < element_level_in.data[level + 1]; e += LANES) {
        const auto element = elements_in.data[e];
        float value = factor[element[0]];
        for (int u = element[2]; u < element[3]; u++) {
            const float part = factor[updates_in.data[u][0] + element[1]] * ratio[u - first];
            value -= part;
        }
        factor[element[0]] = value;
    }
    sync();
    for (int u = first + lane; u < last; u += LANES) factor[updates_in.data[u][1]] = ratio[u - first];
}
sync();
for (int k = lane; k < NC; k += LANES) L[k] = factor[k];
for (int i = lane; i < diagonal_in.shape[0]; i += LANES) OF_WORLD(D_out)[i] = 1.0f / factor[diagonal_in.data[i]];
#undef OF_WORLD
""")


class Factorization:
    """In place of the package's ``_factor_i_sparse``, for one model."""

    def __init__(self, m: mjw.Model, device: wp.Device) -> None:
        adr, nnz = m.M_rowadr.numpy(), m.M_rownnz.numpy()
        updates, elements, levels = [], [], [(0, 0)]
        for level in reversed(m.qLD_updates):
            rows = level.numpy()
            for i in dict.fromkeys(rows[:, 0].tolist()):
                begin = len(updates)
                updates += [(adr[k], ki, adr[k] + nnz[k] - 1) for row, k, ki in rows if row == i]
                elements += [(adr[i] + j, j, begin, len(updates)) for j in range(nnz[i])]
            levels.append((len(updates), len(elements)))
        bounds = np.array(levels)
        self._kernel = _kernel(m.nC, len(m.qLD_updates), int(np.diff(bounds[:, 0]).max()))
        self._tables = [
            wp.array(np.array(updates), dtype=wp.vec3i, device=device),
            wp.array(np.array(elements), dtype=wp.vec4i, device=device),
            *(wp.array(bounds[:, part], dtype=int, device=device) for part in range(2)),
            wp.array(adr + nnz - 1, dtype=int, device=device),
        ]

    def __call__(
        self, m: mjw.Model, d: mjw.Data, M: wp.array2d[float], L: wp.array2d[float], D: wp.array2d[float]
    ) -> None:
        wp.launch_tiled(self._kernel, dim=d.nworld, inputs=[*self._tables, M], outputs=[L, D], block_dim=LANES)


def fits(m: mjw.Model) -> bool:
    """Whether the package factorises by levels, and a world's elements and ratios fit into shared memory."""
    return bool(m.qLD_updates) and 4 * (m.nC + max(level.size for level in m.qLD_updates)) <= MOST_SHARED


@functools.cache
def _kernel(nc: int, levels: int, widest: int) -> wp.Kernel:
    @wp.func_native(_FACTORIZE.substitute(nc=nc, levels=levels, widest=widest))
    def factorize_world(
        world: int, lane: int, updates_in: wp.array[wp.vec3i], elements_in: wp.array[wp.vec4i],
        update_level_in: wp.array[int], element_level_in: wp.array[int], diagonal_in: wp.array[int],
        M_in: wp.array2d[float], L_out: wp.array2d[float], D_out: wp.array2d[float],
    ): ...

    @wp.kernel(module="unique", enable_backward=False, grid_stride=False)
    def factorize(
        updates_in: wp.array[wp.vec3i], elements_in: wp.array[wp.vec4i],
        update_level_in: wp.array[int], element_level_in: wp.array[int], diagonal_in: wp.array[int],
        M_in: wp.array2d[float], L_out: wp.array2d[float], D_out: wp.array2d[float],
    ):
        world, lane = wp.tid()
        factorize_world(
            world, lane, updates_in, elements_in, update_level_in, element_level_in, diagonal_in, M_in, L_out, D_out)

    return factorize
