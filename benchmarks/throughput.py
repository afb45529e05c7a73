"""How fast training runs, where the time goes, and how far it is from the physics alone.

    python benchmarks/throughput.py --cases deepmimic_humanoid_ppo --num-envs 4096,8192 --devices "cuda:0;cuda:0 cuda:1"

Every combination of case, size and device list runs in processes of its own (``worker`` below, the same objects that
training uses). Reported per combination, all of one run:

* ``samples_per_s``: whole iterations (rollout, learning, the one wait), all devices, without evaluations;
* ``split_ms``: device time of one iteration in physics, environment, policy (acting and recording), update and sync,
  measured by CUDA events in separate iterations, one after the other (in training clips are looked up while physics
  runs; here that is part of environment); sync is what an update takes longer because processes exchange gradients
  (update is without it), ``other`` what remains of the whole iteration, negative where things run side by side;
* ``outside_physics``: share of the whole iteration that physics, measured so, would not need;
* ``physics_only``: env-steps/s of the physics graph alone, from the same start states with the same length of rollout:
  the ceiling;
* ``memory_gib``: the card's used memory at the end; ``startup_s``: process begin to the end of the first iteration,
  ``startup_split_s`` where it goes: ``launch`` until this file runs (Python, torchrun), ``imports``, ``processes``
  (device and process group), ``world`` (characters, solver, kernels, graph of the physics), ``agent``, ``iteration``;
  it is 4 to 7 s longer where packages were installed without bytecode and Python may not keep it (``keeps_bytecode``).

Results are appended as JSON lines (with versions, GPU, date) to ``--out``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from unittest import mock

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from mimickit import run  # noqa: E402
from mimickit.cases import DEFAULT, VARIANTS, select  # noqa: E402
from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE  # noqa: E402
from mimickit.request import Request  # noqa: E402
from mimickit.request_reader import read_devices, read_request  # noqa: E402
from mimickit.util.args import Args  # noqa: E402
from mimickit.util.failures import (  # noqa: E402
    EXIT_FAILED,
    EXIT_OK,
    UserError,
    explains_mistakes,
)
from mimickit.util.processes import leave  # noqa: E402


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="deepmimic_humanoid_ppo", metavar="A,B",
                        help="names of trainable cases in args/ (deepmimic_humanoid_ppo)")
    parser.add_argument("--num-envs", default="4096", metavar="N,N", help="worlds per device, each at least 1 (4096)")
    parser.add_argument("--devices", default="", metavar="'D D;D'",
                        help="lists of cpu or cuda:N, separated by semicolons; one process each device of a list "
                             "(cuda:0, without a GPU cpu)")
    parser.add_argument("--iters", type=int, default=10, metavar="N",
                        help="timed iterations, at least 1, after 3 for warming up (10)")
    parser.add_argument("--engine-config", default=DEFAULT_ENGINE_FILE, metavar="YAML",
                        help=f"physics, from the project's root ({DEFAULT_ENGINE_FILE})")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="overrides as of the run program: env.KEY, engine.KEY, agent.KEY (none)")
    parser.add_argument("--variant", default=DEFAULT, choices=(DEFAULT, *VARIANTS),
                        help=f"hyper-parameters: the args file's own, or the file _<variant> beside them ({DEFAULT})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines file to append to (none)")
    parser.add_argument("--label", default="", metavar="TEXT", help="any text, kept with the results (empty)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        worker(json.loads(options.worker))
        return EXIT_OK
    jobs = make_jobs(options)
    if options.out:
        options.out.open("a").close()
    rows = []
    for job in jobs:
        row = run_job(job)
        rows.append(row)
        if options.out and "error" not in row:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print_table(rows)
    return EXIT_FAILED if any("error" in row for row in rows) else EXIT_OK


def make_jobs(options: argparse.Namespace) -> list[dict]:
    """Every combination that the options ask for.

    Raises:
        UserError: one of them cannot be measured.
    """
    sizes = options.num_envs.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--num-envs {options.num_envs}: whole numbers of at least 1, separated by commas")
    if options.iters < 1:
        raise UserError(f"--iters {options.iters}: at least 1")
    cases = [select(ROOT, [name])[0] for name in options.cases.split(",")]
    if fixed := [case.name for case in cases if not case.trainable]:
        raise UserError(f"--cases {','.join(fixed)}: not trainable, nothing is learned there")
    if lacking := [case.name for case in cases if options.variant not in case.variants(ROOT)]:
        raise UserError(f"--variant {options.variant}: there is none of {', '.join(lacking)}")
    lists = [words.split() for words in options.devices.split(";") if words.strip()] or [None]
    devices = [list(read_devices(Args({"devices": tuple(words)} if words else {}))) for words in lists]
    jobs = [{"case": case.name, "num_envs": int(size), "devices": names, "iters": options.iters,
             "engine_config": options.engine_config, "set": options.set, "variant": options.variant,
             "label": options.label} for case in cases for size in sizes for names in devices]
    with contextlib.chdir(ROOT):
        for job in jobs:
            make_request({**job, "out_dir": "output"})
    return jobs


def make_request(job: dict) -> Request:
    """What the run program would be asked for. Raises UserError where it would refuse."""
    argv = ["--engine_config", job["engine_config"], "--out_dir", job["out_dir"], "--num_envs", str(job["num_envs"]),
            "--devices", *job["devices"], "--rand_seed", "1", *(["--set", *job["set"]] if job["set"] else [])]
    if job["variant"] != DEFAULT:
        argv += ["--agent_config", select(ROOT, [job["case"]])[0].variants(ROOT)[job["variant"]]]
    return read_request(Args.from_argv([*argv, "--arg_file", f"args/{job['case']}_args.txt"]))


def run_job(job: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        job = {**job, "result": f"{folder}/result.json", "out_dir": folder, "started": time.monotonic()}
        command = [str(Path(__file__).resolve()), "--worker", json.dumps(job)]
        if len(job["devices"]) > 1:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(job["devices"])),
                       *command]
        print(f"... {job['case']} {job['num_envs']} envs on {' '.join(job['devices'])}", flush=True)
        env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env)
        if done.returncode != 0 or not Path(job["result"]).exists():
            return {**job, "error": f"exit code {done.returncode}"}
        return json.loads(Path(job["result"]).read_text())


def print_table(rows: list[dict]) -> None:
    parts = ("physics", "env", "policy", "update", "sync", "other")
    alone = {(row["case"], row["num_envs"]): row["samples_per_s"] for row in rows
             if "error" not in row and len(row["devices"]) == 1}
    print(f"\n{'case':28}{'envs':>7}{'devices':>9}{'samples/s':>12}{'times 1':>9}{'ceiling/s':>12}"
          f"{''.join(f'{part:>9}' for part in parts)}{'outside':>9}{'GiB':>7}{'start s':>9}")
    for row in rows:
        print(f"{row['case']:28}{row['num_envs']:7}{len(row['devices']):9}", end="")
        if "error" in row:
            print(f"  {row['error']}")
            continue
        one = alone.get((row["case"], row["num_envs"]))
        times = f"{row['samples_per_s'] / one:.2f}" if one and len(row["devices"]) > 1 else ""
        split = "".join(f"{row['split_ms'][part]:9.1f}" for part in parts)
        print(f"{row['samples_per_s']:12,.0f}{times:>9}{row['physics_only']:12,.0f}{split}{row['outside_physics']:9.0%}"
              f"{row['memory_gib']:7.2f}{row['startup_s']:9.1f}")
    print("times 1: as fast as one device with as many worlds; split in ms of one iteration")
    for row in rows:
        if "error" not in row:
            moments = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["startup_split_s"].items())
            print(f"start of {row['case']} {row['num_envs']} on {len(row['devices'])}: {moments} s")


# --- one combination, in its own process(es) --------------------------------------------------------------------------


class Stopwatch:
    """Adds up device time (CUDA events) or wall time (CPU) per name; read once at the end."""

    def __init__(self, device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: dict[str, list] = {}

    def measure(self, name: str, function) -> None:
        import torch

        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            self.spans.setdefault(name, []).append((begin, end))
        else:
            begin = time.perf_counter()
            function()
            self.spans.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))

    def total_ms(self) -> dict[str, float]:
        import torch

        if not self.cuda:
            return {name: sum(spans) for name, spans in self.spans.items()}
        torch.cuda.synchronize()
        return {name: sum(b.elapsed_time(e) for b, e in spans) for name, spans in self.spans.items()}


def worker(job: dict) -> None:
    moments = {"launch": START}
    import torch

    from mimickit.envs.base import EnvMode
    from mimickit.envs.env_builder import build_env
    from mimickit.learning.methods import build_agent
    from mimickit.learning.optim import FlatOptimizer
    from mimickit.learning.trainer import roll_out
    from mimickit.util.distributed import FINISHED, Distributed, seed_process

    request = make_request(job)
    moments["imports"] = time.monotonic()
    dist = Distributed.from_env(request.devices)
    seed_process(1, dist.rank)
    torch.zeros(1, device=dist.device)
    moments["processes"] = time.monotonic()
    env = build_env(request.env, request.engine, request.num_envs, dist.device)
    moments["world"] = time.monotonic()
    agent = build_agent(env, request.agent, dist)
    moments["agent"] = time.monotonic()
    steps, per_iter = agent.config.steps_per_iter, agent.config.steps_per_iter * env.num_envs * dist.world_size

    def synchronize() -> None:
        if dist.device.type == "cuda":
            torch.cuda.synchronize()

    def iterate() -> None:
        agent.start_iteration(0)
        roll_out(env, agent, steps, lambda: None)
        torch.stack([stat.value.double() for stat in agent.update(0).values()]).tolist()

    env.set_mode(EnvMode.TRAIN)
    env.reset()
    iterate()
    synchronize()
    moments["iteration"] = time.monotonic()
    startup = moments["iteration"] - job["started"]
    begins = [job["started"], *moments.values()]
    startup_split = {name: round(end - begin, 2) for begin, (name, end) in zip(begins, moments.items())}
    for _ in range(2):
        iterate()
    dist.barrier()
    synchronize()
    begin = time.perf_counter()
    for _ in range(job["iters"]):
        iterate()
    synchronize()
    whole = (time.perf_counter() - begin) / job["iters"]

    watch = Stopwatch(dist.device)
    with torch.no_grad():
        agent.start_iteration(0)
        for t in range(steps):
            watch.measure("policy", lambda t=t: agent.act(t))
            watch.measure("env", lambda: env.before_physics(agent.action))
            watch.measure("env", env.finish_lookups)
            watch.measure("physics", env.engine.step)
            watch.measure("env", env.after_physics)
            watch.measure("policy", lambda t=t: agent.observe(t))
    if dist.world_size > 1:
        watch.measure("sync", lambda: agent.update(0))
    with mock.patch.object(FlatOptimizer, "exchange", lambda self: FINISHED):
        watch.measure("update", lambda: agent.update(0))
    split = watch.total_ms()
    split["sync"] = split.get("sync", split["update"]) - split["update"]
    split["other"] = 1e3 * whole - sum(split.values())
    outside = 1.0 - split["physics"] / (1e3 * whole)

    alone = Stopwatch(dist.device)
    for _ in range(3):
        env.reset()
        env.engine.command.copy_(env.engine.dof_pos)
        for _ in range(steps):
            alone.measure("physics", env.engine.step)
    ceiling = dist.world_size * env.num_envs * steps * 3 / (alone.total_ms()["physics"] / 1e3)

    memory = 0.0
    if dist.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = (total - free) / 2**30
    health = {name: int(value) for name, value in env.health().items()}
    if dist.is_root:
        name = torch.cuda.get_device_name() if dist.device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
        Path(job["result"]).write_text(json.dumps({
            "case": job["case"], "num_envs": job["num_envs"], "devices": job["devices"], "label": job["label"],
            "variant": job["variant"], "set": job["set"], "samples_per_s": round(per_iter / whole, 1),
            "iteration_ms": round(1e3 * whole, 2),
            "physics_only": round(ceiling, 1), "split_ms": {k: round(v, 2) for k, v in split.items()},
            "outside_physics": round(outside, 3),
            "memory_gib": round(memory, 2), "startup_s": round(startup, 1), "startup_split_s": startup_split,
            "health": health,
            "engine": request.engine.model_dump(mode="json"), "iters": job["iters"], "machine": name,
            "keeps_bytecode": not sys.dont_write_bytecode, "versions": run.versions(), "date": date.today().isoformat(),
        }))
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    sys.exit(main())
