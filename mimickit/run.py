"""The run program: one stage of a character's life, from the command line to ``result.json``.

``python mimickit/run.py --arg_file args/deepmimic_humanoid_ppo_args.txt --mode train --devices cuda:0 cuda:1``

Reads the configuration, checks every input before anything starts, builds engine, environment and agent, trains or
tests, and leaves the files that docs/run_folder.md describes. Several devices: one process each, started by torchrun.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROCESS_START = time.time()
if __package__ in (None, ""):  # run as a script: import the package, not the files beside this one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mimickit.request import (
    FLAGS,
    LIST_FLAGS,
    OUT_DIR,
    UNLIMITED,
    Request,
    check_writable,
    help_text,
    naming_overrides,
    read_request,
    whole_number,
)
from mimickit.util.args import Args
from mimickit.util.failures import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USER_ERROR,
    UserError,
    classify,
    write_failure,
)
from mimickit.util.files import write_json, write_text
from mimickit.util.logging import warn

STARTED = "MIMICKIT_STARTED"  # environment variable: time.time() when launch() was asked for processes
SIGN_OF_LIFE = 30.0  # s between lines of a test that nobody sees


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code. See ``--help``."""
    argv = sys.argv[1:] if argv is None else argv
    out_dir: Path | None = None
    rank = int(os.environ.get("RANK", 0))
    try:
        if not argv or "--help" in argv or "-h" in argv:
            print(help_text())
            return EXIT_OK
        args = Args.from_argv(argv)
        first = rank == 0 and STARTED not in os.environ  # else said already
        for sentence in args.ignored(FLAGS, LIST_FLAGS) if first else ():
            warn(sentence)
        check_writable(args, "out_dir", OUT_DIR)
        out_dir = Path(args.text("out_dir", OUT_DIR))
        check_writable(args, "result_file")
        check_writable(args, "video_file")
        forget_last_end(args, out_dir)
        request = read_request(args)
        for sentence in request.notes if first else ():
            warn(sentence)
        if len(request.devices) > 1 and "LOCAL_RANK" not in os.environ:
            return launch(argv, request)
        return run_stage(request)
    except UserError as error:
        if out_dir is not None and out_dir.is_dir():
            write_failure(out_dir, rank, error)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        traceback.print_exc()
        if out_dir is not None:
            write_failure(out_dir, rank, error)
        print(f"error ({classify(error)}): {error}", file=sys.stderr)
        return EXIT_FAILED


def forget_last_end(args: Args, out_dir: Path) -> None:
    """Remove what an earlier run in this folder said about its end, so that nobody takes it for ours."""
    if "LOCAL_RANK" in os.environ and STARTED in os.environ:
        return  # started by launch(), which has done it
    Path(args.text("result_file", str(out_dir / "result.json"))).unlink(missing_ok=True)
    for file in out_dir.glob("failures/rank_*.json"):
        file.unlink(missing_ok=True)


# --- processes --------------------------------------------------------------------------------------------------------


def launch(argv: list[str], request: Request) -> int:
    """Start one process per device with torchrun on this host and wait; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ[STARTED] = repr(PROCESS_START)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would, without its warning
    port = whole_number(request.args, "master_port")
    local = ["--nnodes", "1", "--master-addr", "localhost", "--master-port"]
    where = ["--standalone"] if port is None else [*local, str(port)]
    script = str(Path(__file__).resolve())
    if "rand_seed" not in request.args:
        argv = ["--rand_seed", str(request.seed), *argv]
    try:
        with tempfile.TemporaryDirectory(prefix="mimickit-") as folder:  # torchrun leaves its own behind
            torchrun([*where, "--log-dir", folder, "--nproc-per-node", str(len(request.devices)), script, *argv])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        codes = [128 - code if code < 0 else code for code in codes]
        print(f"error: a process failed (exit codes {codes}); see {request.out_dir / 'failures'}", file=sys.stderr)
        return next((code for code in codes if code == EXIT_USER_ERROR or code > 128), EXIT_FAILED)
    except SignalException as error:
        return 128 + error.sigval
    return EXIT_OK


def run_stage(request: Request) -> int:
    """Build everything and train or test, in this process."""
    gc.disable()  # importing and building make millions of objects and no garbage: a second saved
    from mimickit.envs.env_builder import build_env
    from mimickit.learning.agents import build_agent, load_agent_model
    from mimickit.util.distributed import Distributed, seed_process

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the watchdog asks for the stacks before it kills
    dist = Distributed.from_env(request.devices)
    seed = dist.broadcast_object(request.seed)
    seed_process(seed, dist.rank)
    if dist.device.type == "cpu" and dist.world_size > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.world_size))
    if dist.is_root:
        request.out_dir.mkdir(parents=True, exist_ok=True)
        write_json(request.out_dir / "progress.json", {"phase": "starting", "time": time.time()})
    with naming_overrides(request.args.get("set"), "env"):
        env = build_env(request.env, request.engine, request.num_envs, dist.device)
    gc.freeze()
    gc.enable()
    if dist.is_root:
        print(env.describe(), flush=True)
        if request.env.engine:
            keys = ", ".join(f"{key} {value}" for key, value in request.env.engine.items())
            print(f"  engine keys of {request.env.source}: {keys}", flush=True)
    agent = build_agent(env, request.agent, dist)
    if (model_file := request.args.text("model_file")) is not None:
        load_agent_model(agent, model_file)
    if dist.is_root:
        warn_if_pointless(request, env)
    mode = train_stage if request.mode == "train" else test_stage
    code = mode(request, env, agent, dist)
    env.close()
    dist.shutdown()  # after a failure the process just ends: others may wait in a collective
    return code


def warn_if_pointless(request: Request, env: Any) -> None:
    """Say so when a test or a training can hardly be what somebody wanted."""
    from mimickit.learning.discriminator import AdversarialConfig
    from mimickit.learning.dummy_agent import DummyConfig

    if isinstance(request.agent, DummyConfig):
        return
    if request.mode == "test" and "model_file" not in request.args:
        warn("no --model_file: testing a policy that has learned nothing")
    if request.mode == "train" and "disc_obs" in env.info and not isinstance(request.agent, AdversarialConfig):
        warn(f"agent {request.agent.agent_name} does not use the style data of env_name {request.env.env_name}: it "
             "learns from the environment's own reward alone, which is always 0 where there is no task")


# --- the two modes ----------------------------------------------------------------------------------------------------


def train_stage(request: Request, env: Any, agent: Any, dist: Any) -> int:
    """Train, leave ``result.json``; exit code 0, or 128 + signal when a signal ended it (with a checkpoint)."""
    from mimickit.learning.trainer import TrainOptions, train

    args = request.args
    for flag, shows in (("video", "records"), ("visualize", "opens a window")):
        if flag in args and args.boolean(flag, False) and dist.is_root:
            print(f"note: --{flag} {shows} in test mode; training goes on without it", flush=True)
    if dist.is_root:
        save_configuration(request, env, dist)
    hours, resume = args.number("time_budget_hours", minimum=0.0), args.text("resume")
    result = train(env, agent, dist, TrainOptions(
        out_dir=request.out_dir,
        max_samples=whole_number(args, "max_samples", UNLIMITED),
        max_iters=whole_number(args, "max_iters"),
        time_budget_s=None if hours is None else 3600.0 * hours,
        output_samples=whole_number(args, "output_samples"),
        output_seconds=args.number("output_seconds", minimum=0.0),
        eval_envs=whole_number(args, "eval_envs", 0),
        max_episode_steps=whole_number(args, "max_episode_steps"),
        save_int_models=args.boolean("save_int_models", False),
        resume=None if resume is None else Path(resume),
        logger=args.text("logger", "txt"),
        log_measures=env.log_diagnostics,
        configuration=request.configuration(),
        agent_config=request.agent_data or {},
        started=started_at(),
    ))
    if dist.is_root:
        write_result(request, {**result.to_dict(), "devices": list(request.devices)})
        print(f"{result.outcome}: {result.samples:,} samples, {result.iterations} iterations, "
              f"{result.samples_per_s:,.0f} samples/s, {result.wall_s:.1f} s", flush=True)
    return EXIT_OK if result.signal is None else 128 + result.signal


def test_stage(request: Request, env: Any, agent: Any, dist: Any) -> int:
    """Run episodes with the policy's mode, print and write the result; with a video of the first one if asked for."""
    from mimickit.envs.filming import Window
    from mimickit.learning.evaluate import run_test
    from mimickit.learning.stopping import StopSignals
    from mimickit.util.logging import Heartbeat, Progress

    args = request.args
    recorder = open_recorder(request, env, dist)
    heartbeat = Heartbeat(request.out_dir, dist.rank)
    progress = Progress(request.out_dir, UNLIMITED, dist.is_root)
    progress.enter("testing")
    endless = "test_episodes" not in args and not isinstance(recorder, Window)
    tell: Callable[[], None] | None = None

    def on_step() -> None:
        heartbeat.beat()
        progress.write()
        if recorder is not None:
            recorder.step(env)
        if tell is not None:
            tell()

    with StopSignals() as signals:
        if endless and dist.is_root:
            tell = sign_of_life(env)
        result = run_test(
            env, agent, dist, whole_number(args, "test_episodes", UNLIMITED),
            whole_number(args, "statistics_episodes"), on_step=on_step,
            should_stop=lambda: bool(signals) or (recorder is not None and recorder.closed),
            max_episode_steps=whole_number(args, "max_episode_steps"),
        )
    progress.enter("done")
    video = recorder.close() if recorder is not None else None
    if dist.is_root:
        write_result(request, {
            **result.to_dict(), "video": video, "devices": list(request.devices), "num_envs": request.num_envs,
            "startup_s": time.time() - started_at(),
        })
        print(f"Mean return: {result.test_return:.6g}\nMean episode length: {result.test_episode_length:.6g}\n"
              f"Episodes: {result.test_episodes}", flush=True)
        for name, value in result.measures.items():
            print(f"{name}: {value:.6g}{interval_text(result.statistics.get(name))}")
    return EXIT_OK if signals.received is None else 128 + signals.received


def sign_of_life(env: Any) -> Callable[[], None]:
    """Say that this test has no end; what is returned, called every step, prints a line now and then."""
    print("running until Ctrl-C (no window that could be closed, no --test_episodes)", flush=True)
    start = told = time.monotonic()
    steps = 0

    def tell() -> None:
        nonlocal told, steps
        steps += 1
        if (now := time.monotonic()) - told >= SIGN_OF_LIFE:
            told = now
            print(f"still running: {steps:,} control steps in {env.num_envs} worlds, {now - start:.0f} s", flush=True)

    return tell


def interval_text(summary: Mapping[str, Any] | None) -> str:
    """`` +- 0.02 (64 episodes)``, or nothing where there is no interval."""
    if summary is None or summary["ci95"] is None:
        return ""
    return f" +- {summary['ci95']:.2g} ({summary['episodes']} episodes)"


def open_recorder(request: Request, env: Any, dist: Any) -> Any:
    """A video recorder, a window, or None, as the flags and the machine allow."""
    args = request.args
    window = args.boolean("visualize", True)
    if window and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        if dist.is_root:
            warn("no display here, no window is opened (--visualize false silences this; --video true records off "
                 "screen)")
        window = False
    if not dist.is_root or not (window or args.boolean("video", False)):
        return None
    from mimickit.envs.filming import EpisodeVideo, Window

    if window:
        return Window(env)
    return EpisodeVideo(
        env, Path(args.text("video_file", str(request.out_dir / "viz.mp4"))),
        width=whole_number(args, "video_width", 854), height=whole_number(args, "video_height", 480),
        max_steps=whole_number(args, "max_episode_steps"),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def save_configuration(request: Request, env: Any, dist: Any) -> None:
    """The configuration files as given, and the effective one with command line, seed and versions."""
    import yaml

    request.out_dir.mkdir(parents=True, exist_ok=True)
    for flag, path in request.files.items():
        target = request.out_dir / f"{flag}.yaml"
        if path.resolve() == target.resolve():
            continue
        if flag == "agent_config" and request.agent_file is not None:  # the copy must stand alone
            write_text(target, yaml.safe_dump(dict(request.agent_file), sort_keys=False))
        else:
            shutil.copyfile(path, target)
    effective = {
        "command_line": sys.argv, "args": {k: list(v) for k, v in request.args.values.items()},
        "rand_seed": request.seed, "world_size": dist.world_size, "versions": versions(),
        **request.configuration(),
    }
    write_text(request.out_dir / "run_config.yaml", yaml.safe_dump(effective, sort_keys=False, width=120))


def write_result(request: Request, values: Mapping[str, Any]) -> None:
    """``result.json``: see docs/run_folder.md."""
    write_json(request.result_file, {"mode": request.mode, "ok": True, **values, "versions": versions()})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour shows in results."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("mimickit", "torch", "newton", "warp-lang", "mujoco-warp", "mujoco", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def started_at() -> float:
    """time.time() when the command was given (the launcher's, if there is one)."""
    return float(os.environ.get(STARTED, PROCESS_START))


def leave(code: int) -> None:
    """End the process at once after flushing: Warp's and torch's own clean-up takes seconds and frees nothing more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def console() -> None:
    """Entry point of the installed ``mimickit`` command."""
    leave(main())


if __name__ == "__main__":
    leave(main())
