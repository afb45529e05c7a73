"""Where a control step of physics spends its time, kernel by kernel.

    python benchmarks/profile_physics.py --cases deepmimic_humanoid_ppo --num-envs 4096 --set engine.fused_solve=true

Worlds start as training starts them and hold their pose for ``--steps`` control steps. Then, per case and size:

* ``graph``: device time of the captured control step, the thing that training launches;
* ``eager``: the same control step launched kernel by kernel, timed by CUDA events around each launch (3 to 6 us of each
  are the events' own; the sum is larger than the graph);
* ``traced``: the graph's nodes as CUPTI sees them through torch's profiler (of a loop's body it may see nothing), and
  what is left of the graph besides them: gaps between nodes;
* ``solve``: the constraint solve of one substep alone, as the package does it and fused, with several numbers of
  registers; with the largest and mean number of its iterations.

On a CPU only launches are counted. ``--out`` appends the tables as tab-separated values.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import warp as wp  # noqa: E402

from benchmarks.throughput import make_request  # noqa: E402
from mimickit.cases import DEFAULT  # noqa: E402
from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE  # noqa: E402
from mimickit.util.failures import EXIT_OK, explains_mistakes  # noqa: E402

REPEATS = 20
Table = dict[str, list[float]]  # us of every launch, by the kernel's name


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="deepmimic_humanoid_ppo", metavar="A,B",
                        help="names of trainable cases in args/ (deepmimic_humanoid_ppo)")
    parser.add_argument("--num-envs", default="4096", metavar="N,N", help="worlds (4096)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda:N (cuda:0, without a GPU cpu)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="control steps before (20)")
    parser.add_argument("--registers", default="64,80,96,128,168", metavar="N,N",
                        help="registers of a lane of the fused solve to try (64,80,96,128,168)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="overrides as of the run program: env.KEY, engine.KEY (none)")
    parser.add_argument("--top", type=int, default=40, metavar="N", help="kernels to print of each table (40)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to append tab-separated values to (none)")
    options = parser.parse_args(argv)
    for case in options.cases.split(","):
        for size in options.num_envs.split(","):
            profile(case, int(size), options)
    return EXIT_OK


def profile(case: str, num_envs: int, options: argparse.Namespace) -> None:
    from mimickit.envs.base import EnvMode
    from mimickit.envs.env_builder import build_env

    with tempfile.TemporaryDirectory() as folder:
        request = make_request({
            "case": case, "num_envs": num_envs, "devices": [options.device], "engine_config": DEFAULT_ENGINE_FILE,
            "set": options.set, "variant": DEFAULT, "out_dir": folder})
    env = build_env(request.env, request.engine, num_envs, torch.device(options.device))
    engine = env.engine
    model, config = engine.solver.mjw_model, request.engine
    env.set_mode(EnvMode.TRAIN)
    env.reset()
    engine.command.copy_(engine.dof_pos)
    for _ in range(options.steps):
        engine.step()
    print(f"\n{case}, {num_envs} worlds on {options.device}, {' '.join(options.set) or 'as shipped'}: "
          f"{model.nv} velocities, {'sparse' if model.is_sparse else 'dense'} Jacobian, "
          f"{engine.solver.mjw_data.njmax} rows, {config.substeps} substeps", flush=True)
    head = (case, num_envs, " ".join(options.set))

    if options.device == "cpu":
        show(*head, "launches", launches(lambda: engine._control_step(config.substeps)), None, options)
        return
    graph = device_us(engine.step, REPEATS)
    print(f"graph: {graph:,.0f} us a control step, {graph / config.substeps:,.0f} a substep, "
          f"{1e6 * num_envs / graph:,.0f} env-steps/s")
    solve_alone(engine, head, options)
    engine._control_step(config.substeps)
    wp.timing_begin(wp.TIMING_ALL)
    engine._control_step(config.substeps)
    table: Table = defaultdict(list)
    for result in wp.timing_end():
        table[result.name].append(1e3 * result.elapsed)
    show(*head, "eager", table, graph, options)
    show(*head, "traced", traced(engine.step), graph, options)
    engine.close()


def launches(function: Callable[[], None]) -> Table:
    table: Table = defaultdict(list)
    launch = wp.launch

    def counted(kernel: wp.Kernel, *args, **keys):
        dim = keys["dim"] if "dim" in keys else args[0]
        if 0 not in (dim if isinstance(dim, Sequence) else (dim,)):
            table[kernel.key].append(0.0)
        return launch(kernel, *args, **keys)

    with mock.patch.object(wp, "launch", counted):
        function()
    return table


def device_us(function: Callable[[], None], repeats: int) -> float:
    function()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / repeats


def traced(function: Callable[[], None]) -> Table:
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    table: Table = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            table[event.name].append(event.device_time)
    return table


def solve_alone(engine, head: tuple, options: argparse.Namespace) -> None:
    """Solves of one further substep, begun as it begins: what they read they do not write."""
    from mujoco_warp._src import solver as package

    from mimickit.engines import newton_solve

    model, data = engine.solver.mjw_model, engine.solver.mjw_data
    warm_start = wp.clone(data.qacc_warmstart)
    engine._control_step(1)
    wp.copy(data.qacc_warmstart, warm_start)

    def measure(name: str, solve: Callable) -> None:
        with wp.ScopedDevice(options.device):
            solve(model, data)
            with wp.ScopedCapture(force_module_load=False) as capture:
                solve(model, data)
        stream = wp.stream_from_torch(torch.cuda.current_stream())
        us = device_us(lambda: wp.capture_launch(capture.graph, stream=stream), REPEATS)
        iterations = wp.to_torch(data.solver_niter).float()
        print(f"solve: {name:28}{us:9.1f} us; iterations {iterations.mean():.2f}, at most {iterations.max():.0f}",
              flush=True)
        write(options.out, [(*head, "solve", name, 1, round(us, 1), "")])

    measure("package", package.solve)
    if (reason := newton_solve.refusal(model, data)) is not None:
        print(f"solve: not fused: {reason}")
        return
    for registers in options.registers.split(","):
        with mock.patch.object(newton_solve, "MOST_REGISTERS", int(registers)):
            measure(f"fused, {registers} registers", newton_solve.solve)


def show(case: str, num_envs: int, settings: str, kind: str, table: Table, graph: float | None,
         options: argparse.Namespace) -> None:
    total = sum(map(sum, table.values()))
    print(f"{kind}: {sum(map(len, table.values()))} launches, {total:,.0f} us in all"
          + (f", {total - graph:+,.0f} us against the graph" if graph else ""))
    rows = sorted(table.items(), key=lambda item: (-sum(item[1]), -len(item[1])))
    for name, times in rows[:options.top]:
        print(f"  {short(name):60}{len(times):5}{sum(times):10.1f} us{sum(times) / (total or 1.0):7.1%}")
    write(options.out, [(case, num_envs, settings, kind, short(name), len(times), round(sum(times), 1),
                         round(sum(times) / (total or 1.0), 4)) for name, times in rows])


def short(name: str) -> str:
    """A kernel's name without what compilers add."""
    for part in ("_cuda_kernel_forward", "forward kernel ", "__locals__kernel"):
        name = name.replace(part, "")
    return name[:60]


def write(out: Path | None, rows: list[tuple]) -> None:
    if out is None:
        return
    header = "" if out.exists() else "case\tworlds\tsettings\tkind\tkernel\tlaunches\tus\tshare\n"
    with out.open("a") as file:
        file.write(header + "".join("\t".join(map(str, row)) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
