"""Newton's constraint solve as one kernel: a warp a world, from the warm start to the last iteration.

The solver package launches about twelve grid-wide kernels an iteration until the last world has converged, and a world
needs 2.3 iterations on average where the worst of thousands needs 11. Here every world iterates by itself, with its
Hessian's factor, rows and vectors in shared memory. The algorithm is the package's (``mujoco_warp/_src/solver.py``:
pyramidal cones, its exact line search, its shortcut along an unchanged ray); sums are ordered differently, and the
Hessian is built anew where the package adds changed rows to it, so results agree to rounding, not to the bit.

On the CPU a "warp" is one lane.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Iterator
from string import Template
from unittest import mock

import mujoco_warp as mjw
import warp as wp
from mujoco_warp._src import solver as package
from mujoco_warp._src import types

WRITTEN_FOR = "3.17.0"  # mujoco-warp; of another version nothing is known, so it solves by itself
LANES = 32
MOST_REGISTERS = 96  # a lane's; fewer let more worlds be on a multiprocessor at once
MOST_SHARED = 48 * 1024  # bytes of shared memory that a kernel may name outright

_SOLVE = Template(r"""
constexpr int NV = $nv, NJMAX = $njmax, ITERATIONS = $iterations, LS_ITERATIONS = $ls_iterations;
constexpr bool SPARSE = $sparse;
constexpr float EPS = 8.0f * 1.1920929e-07f, MINVAL = 1e-15f;
constexpr int SATISFIED = $satisfied, QUADRATIC = $quadratic, LINEARNEG = $linearneg, LINEARPOS = $linearpos;

#if defined(__CUDA_ARCH__)
constexpr int LANES = 32;
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
auto sync = []() { __syncwarp(); };
auto sum = [](float x) {
    UNROLL
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
};
auto any = [](bool x) { return __any_sync(0xffffffffu, x) != 0; };
auto from = [](float x, int source) { return __shfl_sync(0xffffffffu, x, source); };
#else
constexpr int LANES = 1;
#define SHARED
#define UNROLL
auto sync = []() {};
auto sum = [](float x) { return x; };
auto any = [](bool x) { return x; };
auto from = [](float x, int) { return x; };
#endif
constexpr int SLOTS = (NV + LANES - 1) / LANES;

// The factor's columns, each from its diagonal (kept as a reciprocal) to a further row NV for the right-hand side.
SHARED float factor[NV * (NV + 1) - NV * (NV - 1) / 2];
SHARED float x[NV], search[NV], momentum[NV], mv[NV], grad[NV], pull[NV];
SHARED float jaref[NJMAX], jv[NJMAX], weight[NJMAX];
#undef SHARED

// --- this world's part of every array
#define OF_WORLD(a) ((a).data + (size_t)world * ((a).strides[0] / sizeof(*(a).data)))
const float* const M = OF_WORLD(M_in);
const float* const J = OF_WORLD(J_in);
const int* const rownnz = OF_WORLD(rownnz_in);
const int* const rowadr = OF_WORLD(rowadr_in);
const int* const colind = OF_WORLD(colind_in);
const int* const group_head = OF_WORLD(group_head_in);
const int* const group_rows = OF_WORLD(group_rows_in);
const float* const frictionloss = OF_WORLD(frictionloss_in);
const float* const smooth = OF_WORLD(qfrc_smooth_in);
const int stride = SPARSE ? 0 : J_in.strides[1] / (int)sizeof(float);
const int groups = SPARSE ? groups_in.data[world] : 0;
const int ne = ne_in.data[world], nf = nf_in.data[world];
const int nefc = nefc_in.data[world] < NJMAX ? nefc_in.data[world] : NJMAX;
const float tolerance = tolerance_in.data[world % tolerance_in.shape[0]];
const float ls_tolerance = ls_tolerance_in.data[world % ls_tolerance_in.shape[0]];

auto safe = [](float a) { return a != 0.0f ? a : 1e-15f; };
auto below = [](int i, int j) { return j * (NV + 1) - j * (j - 1) / 2 + i - j; };  // place of row i in column j

// --- rows
auto dot_row = [&](int row, const float* v) {
    float y = 0.0f;
    if (SPARSE) {
        const int begin = rowadr[row], end = begin + rownnz[row];
        for (int k = begin; k < end; k++) y += J[k] * v[colind[k]];
    } else {
        for (int i = 0; i < NV; i++) y += J[row * stride + i] * v[i];
    }
    return y;
};
auto state_of = [&](int row, float r) {
    if (row < ne) return QUADRATIC;
    if (row < ne + nf) {
        const float bound = frictionloss[row] / safe(weight[row]);
        return r <= -bound ? LINEARNEG : (r >= bound ? LINEARPOS : QUADRATIC);
    }
    return r >= 0.0f ? SATISFIED : QUADRATIC;
};
auto force_of = [&](int row) {
    const int state = state_of(row, jaref[row]);
    if (state == QUADRATIC) return -weight[row] * jaref[row];
    if (state == SATISFIED) return 0.0f;
    return state == LINEARNEG ? frictionloss[row] : -frictionloss[row];
};

// --- vectors
auto multiply_M = [&](float* y, const float* v) {
    for (int i = lane; i < NV; i += LANES) {
        float s = 0.0f;
        for (int k = mulm_rowadr_in.data[i]; k < mulm_rowadr_in.data[i + 1]; k++)
            s += M[mulm_madr_in.data[k]] * v[mulm_col_in.data[k]];
        y[i] = s;
    }
};
auto gradient = [&]() {  // from momentum and rows; returns its square
    for (int i = lane; i < NV; i += LANES) pull[i] = 0.0f;
    sync();
    if (SPARSE) {
        for (int g = 0; g < groups; g++) {
            const int head = group_head[g], members = group_rows[g], begin = rowadr[head], support = rownnz[head];
            for (int k = lane; k < support; k += LANES) {
                float s = 0.0f;
                for (int m = 0; m < members; m++) {
                    const float force = force_of(head + m);
                    if (force != 0.0f) s += J[rowadr[head + m] + k] * force;
                }
                pull[colind[begin + k]] += s;
            }
            sync();
        }
    } else {
        for (int i = lane; i < NV; i += LANES) {
            float s = 0.0f;
            for (int row = 0; row < nefc; row++) {
                const float force = force_of(row);
                if (force != 0.0f) s += J[row * stride + i] * force;
            }
            pull[i] = s;
        }
        sync();
    }
    float square = 0.0f;
    for (int i = lane; i < NV; i += LANES) {
        grad[i] = momentum[i] - smooth[i] - pull[i];
        square += grad[i] * grad[i];
    }
    return sum(square);
};
auto hessian = [&]() {  // M + J' D J over rows that push
    for (int k = lane; k < NV * (NV + 1) - NV * (NV - 1) / 2; k += LANES) factor[k] = 0.0f;
    sync();
    for (int k = lane; k < M_row_in.shape[0]; k += LANES) factor[below(M_row_in.data[k], M_col_in.data[k])] = M[k];
    sync();
    if (SPARSE) {
        for (int g = 0; g < groups; g++) {
            const int head = group_head[g], members = group_rows[g], begin = rowadr[head], support = rownnz[head];
            bool pushes = false;
            for (int m = 0; m < members; m++) pushes |= state_of(head + m, jaref[head + m]) == QUADRATIC;
            if (!pushes) continue;
            for (int k = lane; k < support * (support + 1) / 2; k += LANES) {
                const int b = (int)((sqrtf((float)(8 * k + 1)) - 1.0f) * 0.5f), a = k - b * (b + 1) / 2;
                float s = 0.0f;
                for (int m = 0; m < members; m++) {
                    const int row = head + m;
                    if (state_of(row, jaref[row]) == QUADRATIC)
                        s += J[rowadr[row] + a] * weight[row] * J[rowadr[row] + b];
                }
                const int i = colind[begin + a], j = colind[begin + b];
                factor[i > j ? below(i, j) : below(j, i)] += s;
            }
            sync();
        }
    } else {
        for (int k = lane; k < NV * (NV + 1) / 2; k += LANES) {
            const int i = (int)((sqrtf((float)(8 * k + 1)) - 1.0f) * 0.5f), j = k - i * (i + 1) / 2;
            float s = 0.0f;
            for (int row = 0; row < nefc; row++)
                if (state_of(row, jaref[row]) == QUADRATIC)
                    s += J[row * stride + i] * weight[row] * J[row * stride + j];
            factor[below(i, j)] += s;
        }
        sync();
    }
};
auto factorize = [&]() {  // with grad as a further row, which becomes L^-1 grad
    for (int k = 0; k < NV; k++) {
        float reciprocal = 0.0f;
        for (int first = k; first <= NV; first += LANES) {
            const int i = first + lane;
            float s = 0.0f;
            if (i <= NV) {
                const float* column = factor + k;  // element (k, 0)
                float t = 0.0f;
                int j = 0;
                for (; j + 1 < k; j += 2) {
                    s += column[i - k] * column[0];
                    column += NV - j;
                    t += column[i - k] * column[0];
                    column += NV - j - 1;
                }
                if (j < k) {
                    s += column[i - k] * column[0];
                    column += NV - j;
                }
                s = (i < NV ? column[i - k] : grad[k]) - (s + t);
            }
            if (first == k) reciprocal = 1.0f / sqrtf(from(s, 0));
            if (i <= NV) factor[below(i, k)] = i == k ? reciprocal : s * reciprocal;
        }
        sync();
    }
};
auto substitute = [&]() {  // L^-1 grad alone, where the factor is still good
    for (int k = lane; k < NV; k += LANES) factor[below(NV, k)] = grad[k];
    sync();
    for (int k = 0; k < NV; k++) {
        const float y = factor[below(NV, k)] * factor[below(k, k)];
        sync();
        for (int j = k + lane; j < NV; j += LANES)
            factor[below(NV, j)] = j == k ? y : factor[below(NV, j)] - factor[below(j, k)] * y;
        sync();
    }
};
float search_dot = 0.0f, decrement = 0.0f;
auto descend = [&]() {  // search = -H^-1 grad
    float y[SLOTS];
    UNROLL
    for (int slot = 0; slot < SLOTS; slot++) {
        const int j = slot * LANES + lane;
        y[slot] = j < NV ? factor[below(NV, j)] : 0.0f;
    }
    UNROLL
    for (int slot = SLOTS - 1; slot >= 0; slot--) {
        const int last = (slot + 1) * LANES < NV ? (slot + 1) * LANES : NV;
        for (int k = last - 1; k >= slot * LANES; k--) {
            const float value = from(y[slot], k - slot * LANES) * factor[below(k, k)];
            if (lane == k - slot * LANES) y[slot] = value;
            UNROLL
            for (int other = 0; other <= slot; other++) {
                const int j = other * LANES + lane;
                if (j < k) y[other] -= factor[below(k, j)] * value;
            }
        }
    }
    float square = 0.0f, product = 0.0f;
    UNROLL
    for (int slot = 0; slot < SLOTS; slot++) {
        const int j = slot * LANES + lane;
        if (j < NV) {
            search[j] = -y[slot];
            square += y[slot] * y[slot];
            product += y[slot] * grad[j];
        }
    }
    search_dot = sum(square);
    decrement = sum(product);
    sync();
};

// --- cost along the search direction, less that at its beginning: value, slope, curvature
struct Point { float cost, slope, curve; };
auto row_at = [&](int row, float alpha) -> Point {
    const float r = jaref[row], v = jv[row], d = weight[row], vd = v * d;
    if (row >= ne + nf) {
        const float quad0 = 0.5f * d * r * r, cost0 = r < 0.0f ? quad0 : 0.0f;
        if (r + alpha * v < 0.0f) {
            const float curve = v * vd, step = alpha * curve;
            return {alpha * (vd * r + 0.5f * step) + (quad0 - cost0), vd * r + step, curve};
        }
        return {-cost0, 0.0f, 0.0f};
    }
    const float f = frictionloss[row], bound = f / safe(d), moved = r + alpha * v;
    auto cost = [&](float at) {
        if (-bound < at && at < bound) return 0.5f * d * at * at;
        return at <= -bound ? f * (-0.5f * bound - at) : f * (-0.5f * bound + at);
    };
    const float change = cost(moved) - cost(r);
    if (-bound < moved && moved < bound) return {change, vd * moved, v * vd};
    return {change, moved <= -bound ? -f * v : f * v, 0.0f};
};
float smooth_slope = 0.0f, smooth_half_curve = 0.0f;  // of the part without rows, and of equalities
auto with_smooth = [&](Point p, float alpha) -> Point {
    const float bend = alpha * smooth_half_curve;
    return {alpha * bend + alpha * smooth_slope + p.cost, 2.0f * bend + smooth_slope + p.slope,
            2.0f * smooth_half_curve + p.curve};
};
auto in_bracket = [](const Point& p, const Point& q) {
    return (p.slope < q.slope && q.slope < 0.0f) || (p.slope > q.slope && q.slope > 0.0f);
};

// --- beginning
const float* const first_guess = nefc_in.data[world] > 0 ? OF_WORLD(qacc_warmstart_in) : OF_WORLD(qacc_smooth_in);
float trace = 0.0f;
for (int i = lane; i < NV; i += LANES) {
    x[i] = first_guess[i];
    trace += M[M_rowadr_in.data[i] + M_rownnz_in.data[i] - 1];
}
trace = sum(trace);
const float scale = 1.0f / (trace > MINVAL ? trace : MINVAL);
sync();
multiply_M(momentum, x);
for (int row = lane; row < nefc; row += LANES) {
    weight[row] = OF_WORLD(D_in)[row];
    jaref[row] = dot_row(row, x) - OF_WORLD(aref_in)[row];
}
sync();

float grad_dot = 0.0f, grad_scale = 1.0f, alpha = 0.0f, improvement = 0.0f;
int iteration = 0, limits = 0;
bool fresh = true, refactor = true;  // whether the search direction is to be found anew, and the factor too
while (true) {
    if (fresh) {
        grad_dot = gradient();
        grad_scale = 1.0f;
        sync();
        if (refactor) {
            hessian();
            factorize();
        } else {
            substitute();
        }
        descend();
    } else {  // exactly quadratic along the last step: the gradient changed by a factor
        const float ratio = grad_scale != 0.0f ? (grad_scale - alpha) / grad_scale : 0.0f;
        grad_dot *= ratio * ratio;
        decrement *= ratio * ratio;
        grad_scale -= alpha;
    }
    if (iteration > 0) {
        const float gained = scale * improvement;
        if (alpha == 0.0f || (gained > 0.0f && gained < tolerance) || scale * sqrtf(grad_dot) < tolerance
            || scale * 0.5f * decrement < tolerance) break;
        if (iteration == ITERATIONS) {
            limits |= $limit;
            break;
        }
    }
    if (fresh) {
        multiply_M(mv, search);
        for (int row = lane; row < nefc; row += LANES) jv[row] = dot_row(row, search);
        sync();
    }

    // --- line search
    const float reached = tolerance * ls_tolerance * sqrtf(search_dot) / scale;
    const float gtol = reached > 1e-6f ? reached : 1e-6f;
    float slope = 0.0f, half_curve = 0.0f;
    for (int i = lane; i < NV; i += LANES) {
        slope += search[i] * (momentum[i] - smooth[i]);
        half_curve += 0.5f * search[i] * mv[i];
    }
    Point start = {0.0f, 0.0f, 0.0f};
    for (int row = lane; row < nefc; row += LANES) {
        const float r = jaref[row], v = jv[row], d = weight[row], vd = v * d;
        if (row < ne) {
            slope += vd * r;
            half_curve += 0.5f * v * vd;
        } else if (row >= ne + nf) {
            if (r < 0.0f) {
                start.cost += 0.5f * d * r * r;
                start.slope += vd * r;
                start.curve += v * vd;
            }
        } else {
            const float f = frictionloss[row], bound = f / safe(d);
            if (-bound < r && r < bound) {
                start.cost += 0.5f * d * r * r;
                start.slope += vd * r;
                start.curve += v * vd;
            } else {
                start.cost += r <= -bound ? f * (-0.5f * bound - r) : f * (-0.5f * bound + r);
                start.slope += r <= -bound ? -f * v : f * v;
            }
        }
    }
    smooth_slope = sum(slope);
    smooth_half_curve = sum(half_curve);
    const Point rows = {sum(start.cost), sum(start.slope), sum(start.curve)};
    const Point p0 = {0.0f, smooth_slope + rows.slope, 2.0f * smooth_half_curve + rows.curve};
    const float gross = sqrtf(2.0f * (rows.cost > 0.0f ? rows.cost : 0.0f) * (rows.curve > 0.0f ? rows.curve : 0.0f))
        + fabsf(smooth_slope);
    const float accepted = gtol > EPS * gross ? gtol : EPS * gross;
    const float relative = gross / safe(p0.curve), noise = EPS * (relative > 1.0f ? relative : 1.0f);

    alpha = improvement = 0.0f;
    bool converged = fabsf(p0.slope) < EPS * gross;
    if (!converged) {
        const float newton = -(p0.slope / safe(p0.curve));
        Point p = {0.0f, 0.0f, 0.0f};
        for (int row = ne + lane; row < nefc; row += LANES) {
            const Point q = row_at(row, newton);
            p.cost += q.cost;
            p.slope += q.slope;
            p.curve += q.curve;
        }
        p = with_smooth({sum(p.cost), sum(p.slope), sum(p.curve)}, newton);
        if (fabsf(p.slope) < accepted && p.cost < 0.0f) {
            converged = true;
            alpha = newton;
            improvement = -p.cost;
        }
        const bool less = p.slope < p0.slope;
        Point lo = less ? p : p0, hi = less ? p0 : p;
        float lo_alpha = less ? newton : 0.0f, hi_alpha = less ? 0.0f : newton;
        for (int i = 0; i < LS_ITERATIONS && !converged; i++) {
            const float lo_next_alpha = lo_alpha - lo.slope / safe(lo.curve);
            const float hi_next_alpha = hi_alpha - hi.slope / safe(hi.curve);
            const float mid_alpha = 0.5f * (lo_alpha + hi_alpha);
            Point lo_next = {0.0f, 0.0f, 0.0f}, hi_next = lo_next, mid = lo_next;
            for (int row = ne + lane; row < nefc; row += LANES) {
                const Point a = row_at(row, lo_next_alpha), b = row_at(row, hi_next_alpha), c = row_at(row, mid_alpha);
                lo_next.cost += a.cost; lo_next.slope += a.slope; lo_next.curve += a.curve;
                hi_next.cost += b.cost; hi_next.slope += b.slope; hi_next.curve += b.curve;
                mid.cost += c.cost; mid.slope += c.slope; mid.curve += c.curve;
            }
            lo_next = with_smooth({sum(lo_next.cost), sum(lo_next.slope), sum(lo_next.curve)}, lo_next_alpha);
            hi_next = with_smooth({sum(hi_next.cost), sum(hi_next.slope), sum(hi_next.curve)}, hi_next_alpha);
            mid = with_smooth({sum(mid.cost), sum(mid.slope), sum(mid.curve)}, mid_alpha);

            const bool good_lo = fabsf(lo_next.slope) < accepted && lo_next.cost < 0.0f;
            const bool good_hi = fabsf(hi_next.slope) < accepted && hi_next.cost < 0.0f;
            const bool good_mid = fabsf(mid.slope) < accepted && mid.cost < 0.0f;
            const bool found = good_lo || good_hi || good_mid;
            bool moved_lo = false, moved_hi = false;
            if (found) {
                Point best = {1e10f, 0.0f, 0.0f};
                float best_alpha = 0.0f;
                if (good_lo && lo_next.cost < best.cost) { best = lo_next; best_alpha = lo_next_alpha; }
                if (good_hi && hi_next.cost < best.cost) { best = hi_next; best_alpha = hi_next_alpha; }
                if (good_mid && mid.cost < best.cost) { best = mid; best_alpha = mid_alpha; }
                lo = hi = best;
                lo_alpha = hi_alpha = best_alpha;
            } else {
                if (in_bracket(lo, lo_next)) { lo = lo_next; lo_alpha = lo_next_alpha; moved_lo = true; }
                if (in_bracket(lo, mid)) { lo = mid; lo_alpha = mid_alpha; moved_lo = true; }
                if (in_bracket(lo, hi_next)) { lo = hi_next; lo_alpha = hi_next_alpha; moved_lo = true; }
                if (in_bracket(hi, hi_next) || (hi.slope < 0.0f && hi_next.slope > 0.0f)) {
                    hi = hi_next; hi_alpha = hi_next_alpha; moved_hi = true;
                }
                if (in_bracket(hi, mid)) { hi = mid; hi_alpha = mid_alpha; moved_hi = true; }
                if (in_bracket(hi, lo_next)) { hi = lo_next; hi_alpha = lo_next_alpha; moved_hi = true; }
            }
            converged = found || (!moved_lo && !moved_hi)
                || (lo.cost < 0.0f && lo.slope < 0.0f && lo.slope > -gtol)
                || (hi.cost < 0.0f && hi.slope > 0.0f && hi.slope < gtol);
            if (lo.cost < 0.0f || hi.cost < 0.0f) {
                const bool lower = lo.cost < hi.cost;
                alpha = lower ? lo_alpha : hi_alpha;
                improvement = -(lower ? lo.cost : hi.cost);
            }
        }
    }
    if (!converged) limits |= $ls_limit;

    // --- step
    for (int i = lane; i < NV; i += LANES) {
        x[i] += alpha * search[i];
        momentum[i] += alpha * mv[i];
    }
    bool quadratic_changed = false, changed = fabsf(alpha) < noise;
    for (int row = lane; row < nefc; row += LANES) {
        const int before = state_of(row, jaref[row]);
        jaref[row] += alpha * jv[row];
        const int now = state_of(row, jaref[row]);
        changed |= before != now;
        quadratic_changed |= (before == QUADRATIC) != (now == QUADRATIC);
    }
    sync();
    fresh = any(changed);
    refactor = any(quadratic_changed);
    iteration++;
}

// --- results
for (int i = lane; i < NV; i += LANES) {
    OF_WORLD(qacc_out)[i] = x[i];
    OF_WORLD(Ma_out)[i] = momentum[i];
    OF_WORLD(qfrc_constraint_out)[i] = momentum[i] - smooth[i] - grad_scale * grad[i];
}
for (int row = lane; row < nefc; row += LANES) {
    OF_WORLD(force_out)[row] = force_of(row);
    OF_WORLD(state_out)[row] = state_of(row, jaref[row]);
}
if (lane == 0) {
    niter_out.data[world] = iteration;
    overflow_out.data[world] |= limits;
}
#undef OF_WORLD
#undef UNROLL
""")


@functools.cache
def _kernel(
    nv: int, njmax: int, sparse: bool, iterations: int, ls_iterations: int, registers: int
) -> wp.Kernel:
    """The solve of worlds of one size: a block of 32 lanes each."""
    state, limit = types.ConstraintState, types.OverflowType
    snippet = _SOLVE.substitute(
        nv=nv, njmax=njmax, sparse=str(sparse).lower(), iterations=iterations, ls_iterations=ls_iterations,
        satisfied=int(state.SATISFIED), quadratic=int(state.QUADRATIC), linearneg=int(state.LINEARNEG),
        linearpos=int(state.LINEARPOS), limit=int(limit.ITERATIONS), ls_limit=int(limit.LS_ITERATIONS))

    @wp.func_native(snippet)
    def solve_world(
        world: int, lane: int, tolerance_in: wp.array[float], ls_tolerance_in: wp.array[float],
        M_rownnz_in: wp.array[int], M_rowadr_in: wp.array[int], M_row_in: wp.array[int], M_col_in: wp.array[int],
        mulm_rowadr_in: wp.array[int], mulm_col_in: wp.array[int], mulm_madr_in: wp.array[int],
        ne_in: wp.array[int], nf_in: wp.array[int], nefc_in: wp.array[int], M_in: wp.array2d[float],
        rownnz_in: wp.array2d[int], rowadr_in: wp.array2d[int], colind_in: wp.array3d[int], J_in: wp.array3d[float],
        group_head_in: wp.array2d[int], group_rows_in: wp.array2d[int], groups_in: wp.array[int],
        D_in: wp.array2d[float], aref_in: wp.array2d[float], frictionloss_in: wp.array2d[float],
        qfrc_smooth_in: wp.array2d[float], qacc_smooth_in: wp.array2d[float], qacc_warmstart_in: wp.array2d[float],
        qacc_out: wp.array2d[float], Ma_out: wp.array2d[float], qfrc_constraint_out: wp.array2d[float],
        force_out: wp.array2d[float], state_out: wp.array2d[int], niter_out: wp.array[int],
        overflow_out: wp.array[int],
    ): ...

    @wp.kernel(module="unique", enable_backward=False, grid_stride=False, cuda_max_registers=registers)
    def solve(
        tolerance_in: wp.array[float], ls_tolerance_in: wp.array[float],
        M_rownnz_in: wp.array[int], M_rowadr_in: wp.array[int], M_row_in: wp.array[int], M_col_in: wp.array[int],
        mulm_rowadr_in: wp.array[int], mulm_col_in: wp.array[int], mulm_madr_in: wp.array[int],
        ne_in: wp.array[int], nf_in: wp.array[int], nefc_in: wp.array[int], M_in: wp.array2d[float],
        rownnz_in: wp.array2d[int], rowadr_in: wp.array2d[int], colind_in: wp.array3d[int], J_in: wp.array3d[float],
        group_head_in: wp.array2d[int], group_rows_in: wp.array2d[int], groups_in: wp.array[int],
        D_in: wp.array2d[float], aref_in: wp.array2d[float], frictionloss_in: wp.array2d[float],
        qfrc_smooth_in: wp.array2d[float], qacc_smooth_in: wp.array2d[float], qacc_warmstart_in: wp.array2d[float],
        qacc_out: wp.array2d[float], Ma_out: wp.array2d[float], qfrc_constraint_out: wp.array2d[float],
        force_out: wp.array2d[float], state_out: wp.array2d[int], niter_out: wp.array[int],
        overflow_out: wp.array[int],
    ):
        world, lane = wp.tid()
        solve_world(
            world, lane, tolerance_in, ls_tolerance_in, M_rownnz_in, M_rowadr_in, M_row_in, M_col_in, mulm_rowadr_in,
            mulm_col_in, mulm_madr_in, ne_in, nf_in, nefc_in, M_in, rownnz_in, rowadr_in, colind_in, J_in,
            group_head_in, group_rows_in, groups_in, D_in, aref_in, frictionloss_in, qfrc_smooth_in, qacc_smooth_in,
            qacc_warmstart_in, qacc_out, Ma_out, qfrc_constraint_out, force_out, state_out, niter_out, overflow_out)

    return solve


def solve(m: mjw.Model, d: mjw.Data) -> None:
    """What ``mujoco_warp.solve`` does, for models that :func:`refusal` does not refuse."""
    efc = d.efc
    wp.launch_tiled(
        _kernel(m.nv, d.njmax, m.is_sparse, m.opt.iterations, m.opt.ls_iterations, MOST_REGISTERS),
        dim=d.nworld,
        inputs=[
            m.opt.tolerance, m.opt.ls_tolerance, m.M_rownnz, m.M_rowadr, m.M_hinit_i, m.M_colind, m.M_mulm_rowadr,
            m.M_mulm_col, m.M_mulm_madr, d.ne, d.nf, d.nefc, d.M, efc.J_rownnz, efc.J_rowadr, efc.J_colind, efc.J,
            efc.jtdaj_adr, efc.jtdaj_nrow, efc.jtdaj_nblock, efc.D, efc.aref, efc.frictionloss, d.qfrc_smooth,
            d.qacc_smooth, d.qacc_warmstart,
        ],
        outputs=[d.qacc, efc.Ma, d.qfrc_constraint, efc.force, efc.state, d.solver_niter, d.overflow],
        block_dim=LANES,
    )


def shared_bytes(m: mjw.Model, d: mjw.Data) -> int:
    """Shared memory of one world's solve."""
    return 4 * (m.nv * (m.nv + 3) // 2 + 6 * m.nv + 3 * d.njmax)


def other_version() -> str | None:
    """The solver package's version, where it is not the one that this was written for."""
    version = importlib.metadata.version("mujoco-warp")
    return None if version == WRITTEN_FOR else version


def refusal(m: mjw.Model, d: mjw.Data) -> str | None:
    """Why these worlds cannot be solved here; None if they can."""
    opt, version = m.opt, other_version()
    reasons = {
        f"mujoco-warp is {version}, not {WRITTEN_FOR}": version is not None,
        "the solver is not Newton's": opt.solver != types.SolverType.NEWTON,
        "cones are elliptic": opt.cone != types.ConeType.PYRAMIDAL,
        "the integrator is 'discrete'": opt.integrator == types.IntegratorType.DISCRETE,
        "worlds may sleep": bool(opt.enableflags & types.EnableBit.SLEEP),
        "the warm start is off": bool(opt.disableflags & types.DisableBit.WARMSTART),
        "there are iterations against slip": opt.noslip_iterations > 0,
        "there is nothing to solve": d.njmax == 0 or m.nv == 0 or opt.iterations == 0,
        f"a world needs {shared_bytes(m, d)} bytes of shared memory, there are {MOST_SHARED}":
            shared_bytes(m, d) > MOST_SHARED,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@contextlib.contextmanager
def fused_solve(m: mjw.Model, d: mjw.Data) -> Iterator[None]:
    """Steps of the solver package that are launched or captured inside solve by :func:`solve`, where it applies."""
    if refusal(m, d) is not None:
        yield
        return
    with mock.patch.object(package, "solve", solve):
        yield
