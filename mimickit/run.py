"""The run program: one training or one test, from the command line to ``result.json``.

``python mimickit/run.py --arg_file args/deepmimic_humanoid_ppo_args.txt --mode train --devices cuda:0 cuda:1``

Reads the configuration, checks every input before anything starts, builds engine, environment and agent, trains or
tests, and writes the files that docs/run_folder.md describes. Several devices: one process each, started by torchrun.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # python mimickit/run.py: import the package, not the files beside this one
    if not sys.flags.safe_path:  # with it the first entry is not the folder of this file
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from mimickit.util.processes import end_at_interrupt, leave, outlive_reader

    end_at_interrupt()
    outlive_reader()
    from mimickit.run import main

    leave(main())

import faulthandler
import gc
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESS_START = time.monotonic()  # the same clock in all processes of a machine

from mimickit.util.alive import ALIVE, watch_from_start

watch_from_start()

from mimickit import commands
from mimickit.next_steps import PROGRAM, after_test, after_training, measured, program
from mimickit.request import Request, header
from mimickit.request_checks import check_prior_is_trained
from mimickit.request_reader import check_writable, naming_overrides, read_request
from mimickit.util import run_folder
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USER_ERROR,
    MimicKitError,
    UserError,
    classify,
    failure_file,
    write_failure,
)
from mimickit.util.files import FullDiskError, write_json, write_text
from mimickit.util.logging import warn
from mimickit.util.manifest import describe_file, numbered
from mimickit.util.options import UNLIMITED
from mimickit.util.processes import INTERRUPTED, at_interrupt, end_with_parent, heed_interrupt
from mimickit.util.versions import commit, versions

STARTED = "MIMICKIT_STARTED"  # environment variable: time.monotonic() when launch() was asked for processes
LAUNCHER = "MIMICKIT_LAUNCHER"  # environment variable: pid of the process that launch() runs in
SIGN_OF_LIFE = 30.0  # s between lines of a test without a window
SAME_IN_TRAINING = ("max_samples", "max_iters", "output_samples", "output_seconds", "eval_envs", "max_episode_steps",
                    "save_int_models", "logger")  # options that TrainOptions takes as they are


@dataclass
class Place:
    """How far a run has come with its folder."""

    rank: int
    claim: run_folder.Claim
    out_dir: Path | None = None  # once it is ours to write to
    begun: bool = False  # what an earlier run said about its end is gone
    made: bool = False  # a training's folder, which was not there before

    def interrupted(self) -> str:
        """What to say at Ctrl-C. A folder goes that was made for a training and holds nothing of it."""
        first = self.rank == 0 and STARTED not in os.environ
        if not (first and self.made) or (self.out_dir / "run_config.yaml").exists():
            return INTERRUPTED
        run_folder.abandon(self.out_dir)
        return "interrupted before training began: nothing to continue; the same command starts it"

    def tell_failure(self, error: BaseException) -> None:
        if self.out_dir is not None:
            write_failure(self.out_dir, self.rank, error)

    def tell_mistake(self, error: UserError) -> None:
        """As :meth:`tell_failure`, but a mistake in a command must not replace what a run said about its end."""
        here = self.out_dir is not None and self.out_dir.is_dir()
        if here and (self.begun or not failure_file(self.out_dir, self.rank).exists()):
            write_failure(self.out_dir, self.rank, error)


def main(argv: list[str] | None = None) -> int:
    """Run one stage or command; returns the exit code. See ``--help``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: its idle threads sleep, not spin
    place = Place(int(os.environ.get("RANK", 0)), run_folder.Claim())
    at_interrupt(place.interrupted)
    if "LOCAL_RANK" in os.environ and LAUNCHER in os.environ:
        end_with_parent(int(os.environ[LAUNCHER]))
    try:
        return answer(sys.argv[1:] if argv is None else argv, place)
    except UserError as error:
        place.tell_mistake(error)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:  # a training or test that has begun ends in its own way
        print(place.interrupted(), file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not isinstance(error, MimicKitError | FullDiskError):  # their messages say everything
            traceback.print_exc()
        place.tell_failure(error)
        print(f"error ({classify(error)}): {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        ALIVE.stop()
        place.claim.release()


def answer(argv: list[str], place: Place) -> int:
    """Do what a command line asks for; returns the exit code."""
    if argv[:1] == ["--version"]:
        print(f"mimickit {versions()['mimickit']}")
        return EXIT_OK
    argv = [*argv[1:2], "--help"] if argv[:1] == ["help"] else argv
    command = argv[0] if commands.is_command(argv) else None
    if not argv or "--help" in argv or "-h" in argv:
        print(commands.help_of(argv) if command else commands.help_text())
        return EXIT_OK
    if command in (*commands.WITHOUT_STAGE, *commands.DEPLOYING):
        return commands.run_command(argv)
    args = commands.read_args(argv)
    first = place.rank == 0 and STARTED not in os.environ  # else said already
    for sentence in args.remarks if first else ():
        warn(sentence)
    args = run_folder.choose(args)
    for flag in ("out_dir", "result_file", "video_file", "save_html"):
        check_writable(args, flag)
    if place.rank == 0:
        look_at_folder(args, place.claim)
    place.out_dir = Path(args["out_dir"])
    request = read_request(args)
    for sentence in request.notes if first else ():
        warn(sentence)
    check_prior_is_trained(request)
    new = request.mode == "train" and not request.out_dir.exists()
    request = begin(request, place.claim, place.rank)
    place.out_dir, place.begun, place.made = request.out_dir, True, new
    if len(request.devices) > 1 and "LOCAL_RANK" not in os.environ:
        place.claim.release()  # the process of rank 0 takes it
        code = launch([*args.command, *argv[2:]] if command else argv, request)
        if code == 128 + signal.SIGINT:
            print(place.interrupted(), file=sys.stderr)
        return code
    dist = join(request)
    request = request.moved(dist.broadcast_object(request.out_dir))  # rank 0 may have made a new one
    place.out_dir = request.out_dir
    return run_stage(request, dist)


def look_at_folder(args: Args, claim: run_folder.Claim) -> None:
    """Take a folder that exists. Raises UserError where another process works in it, or it holds another training."""
    folder = Path(args["out_dir"])
    if not folder.is_dir():
        return
    claim.take(folder)
    if args["mode"] == "train":
        run_folder.check(folder, args["resume"], args["overwrite"])


def begin(request: Request, claim: run_folder.Claim, rank: int) -> Request:
    """All inputs have been checked: make or take over the run folder. Returns the request with that folder."""
    if rank == 0:
        if run_folder.is_own(request.args):
            request = request.moved(run_folder.make_own(request.out_dir))
        request.out_dir.mkdir(parents=True, exist_ok=True)
        look_at_folder(request.args, claim)
        if request.mode == "train" and request.args["overwrite"]:
            run_folder.clear(request.out_dir)
        if STARTED not in os.environ:  # else said already
            what = "run folder" if request.mode == "train" else "results go to"
            print("\n".join([*header(request), f"{what}: {request.out_dir}"]), flush=True)
    forget_last_end(request, rank)
    return request


def forget_last_end(request: Request, rank: int) -> None:
    """Delete what an earlier run in this folder said about its end. The result of a test stays until the new one
    replaces it.

    Each process deletes its own failure file, since another's may be new. The first process also deletes those of
    processes that this run does not have.
    """
    if "LOCAL_RANK" in os.environ and STARTED in os.environ:
        return  # started by launch(), which has done it
    others = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 0
    if rank == 0:
        if request.mode == "train":
            request.result_file.unlink(missing_ok=True)
        for file in request.out_dir.glob("failures/rank_*.json"):
            if (number := file.stem.removeprefix("rank_")).isdigit() and int(number) >= others:
                file.unlink(missing_ok=True)
    if rank == 0 or not run_folder.is_own(request.args):
        failure_file(request.out_dir, rank).unlink(missing_ok=True)


# --- processes --------------------------------------------------------------------------------------------------------


def launch(argv: list[str], request: Request) -> int:
    """Start one process per device with torchrun on this host and wait; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ[STARTED] = repr(PROCESS_START)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[PROGRAM] = program()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would, without its warning
    port = request.args["master_port"]
    local = ["--nnodes", "1", "--master-addr", "localhost", "--master-port"]
    where = ["--standalone"] if port is None else [*local, str(port)]
    script = str(Path(__file__).resolve())
    words = len(request.args.command)
    seed = [] if "rand_seed" in request.args else ["--rand_seed", str(request.seed)]
    argv = [*argv[:words], *seed, "--out_dir", str(request.out_dir), *argv[words:]]
    ALIVE.stop()  # now the processes tell
    try:
        with tempfile.TemporaryDirectory(prefix="mimickit-") as folder:  # torchrun leaves its own behind
            torchrun([*where, "--log-dir", folder, "--nproc-per-node", str(len(request.devices)), script, *argv])
    except ChildFailedError as error:
        ends = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # torchrun sends SIGTERM to the others when one has failed
        ends = {rank: code for rank, code in ends.items() if code != -signal.SIGTERM} or ends
        codes = [128 - code if code < 0 else code for code in ends.values()]
        print(f"error: {'; '.join(how_it_ended(rank, code) for rank, code in sorted(ends.items()))}; what they said: "
              f"{request.out_dir / 'failures'}", file=sys.stderr)
        return next((code for code in codes if code == EXIT_USER_ERROR or code > 128), EXIT_FAILED)
    except SignalException as error:
        return 128 + error.sigval
    return EXIT_OK


def how_it_ended(rank: int, code: int) -> str:
    """``process 1 was killed (SIGKILL)``; ``code`` as of :mod:`subprocess`."""
    if code >= 0:
        return f"process {rank} failed (exit code {code})"
    return f"process {rank} was killed ({signal.Signals(-code).name})"


def join(request: Request) -> Any:
    """This process among those of the run (a ``Distributed``)."""
    ALIVE.start()
    gc.disable()  # importing and building make millions of objects and no garbage: a second saved
    from mimickit.util.distributed import Distributed

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the watchdog asks for the stacks before it kills
    return Distributed.from_env(request.devices, waiting=ALIVE.beat)


def run_stage(request: Request, dist: Any) -> int:
    """Build everything and train or test, in this process."""
    env, agent = build_stage(request, dist)
    heed_interrupt()  # nothing is imported any more
    ALIVE.stop()  # from here on every iteration, or step, beats
    mode = train_stage if request.mode == "train" else test_stage
    code = mode(request, env, agent, dist)
    env.close()
    dist.shutdown()  # after a failure the process just ends: others may wait in a collective
    return code


def build_stage(request: Request, dist: Any) -> tuple[Any, Any]:
    """Environment and agent of this process."""
    from mimickit.envs.env_builder import build_env
    from mimickit.learning.methods import build_agent
    from mimickit.util.distributed import seed_process

    seed = dist.broadcast_object(request.seed)
    seed_process(seed, dist.rank)
    if dist.device.type == "cpu" and dist.world_size > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.world_size))
    ALIVE.begin(request.out_dir, dist.rank, dist.is_root)
    with naming_overrides(request.args["set"], "env"):
        env = build_env(request.env, request.engine, request.num_envs, dist.device)
    gc.freeze()
    gc.enable()
    if dist.is_root:
        print(env.describe(), flush=True)
        if request.env.engine:
            keys = ", ".join(f"{key} {value}" for key, value in request.env.engine.items())
            print(f"  engine keys of {request.env.source}: {keys}", flush=True)
    agent = build_agent(env, request.agent, dist)
    if (model_file := request.args["model_file"]) is not None:
        agent.load_model(model_file)
    if dist.is_root:
        warn_if_pointless(request, env)
    return env, agent


def warn_if_pointless(request: Request, env: Any) -> None:
    """Warn about likely mistakes."""
    from mimickit.learning.config import AdversarialConfig, DummyConfig, SMPConfig

    if isinstance(request.agent, DummyConfig):
        return
    if request.mode == "test" and "model_file" not in request.args:
        warn("no --model_file: testing a policy that has learned nothing")
    if request.mode == "train" and "disc_obs" in env.info and not isinstance(
            request.agent, AdversarialConfig | SMPConfig):
        warn(f"agent {request.agent.agent_name} does not use the style data of env_name {request.env.env_name}: it "
             "learns from the environment's own reward alone, which is always 0 where there is no task")


# --- the two modes ----------------------------------------------------------------------------------------------------


def train_stage(request: Request, env: Any, agent: Any, dist: Any) -> int:
    """Train, leave ``result.json``; exit code 0, or 128 + signal when a signal ended it (with a checkpoint)."""
    from mimickit.learning.config import TrainOptions
    from mimickit.learning.trainer import train

    args = request.args
    for flag, shows in (("video", "records"), ("visualize", "opens a window")):
        if flag in args and args[flag] and dist.is_root:
            print(f"note: --{flag} {shows} in test mode; training goes on without it", flush=True)
    run = None
    if dist.is_root:
        save_configuration(request, env, dist)
        run = run_folder.name_run(request.out_dir, run_folder.continued(request.out_dir, args["resume"]))
    hours, resume = args["time_budget_hours"], args["resume"]
    result = train(env, agent, dist, TrainOptions(
        out_dir=request.out_dir,
        **{name: args[name] for name in SAME_IN_TRAINING},
        time_budget_s=None if hours is None else 3600.0 * hours,
        resume=None if resume is None else Path(resume),
        run=run or "",
        log_env_metrics=env.log_metrics,
        configuration=request.configuration(),
        agent_config=request.agent_data or {},
        started=started_at(),
    ))
    if dist.is_root:
        model = describe_file(Path(result.model_file))
        write_result(request, {**result.to_dict(), "model": model, "devices": list(request.devices)})
        print("\n".join(after_training(request, result)), flush=True)
    return EXIT_OK if result.signal is None else 128 + result.signal


def test_stage(request: Request, env: Any, agent: Any, dist: Any) -> int:
    """Run episodes without randomness in actions, print and write the result; film the first one if asked for."""
    from mimickit.envs.filming import Window
    from mimickit.learning.evaluation import run_test
    from mimickit.learning.stopping import StopSignals
    from mimickit.util.logging import Heartbeat, Progress

    args = request.args
    recorder = open_recorder(request, env, agent, dist)
    heartbeat = Heartbeat(request.out_dir, dist.rank)
    progress = Progress(request.out_dir, UNLIMITED, dist.is_root)
    progress.enter("testing")
    endless = "test_episodes" not in args and not isinstance(recorder, Window)
    tell: Callable[[], None] | None = None

    def stopped() -> bool:
        return bool(signals) or (recorder is not None and recorder.closed)

    def on_step() -> None:
        heartbeat.beat()
        progress.write()
        if recorder is not None:
            recorder.step(env, stopped)
        if tell is not None:
            tell()

    uninterrupted = args["uninterrupted_episodes"]
    if uninterrupted is None:
        uninterrupted = args["statistics_episodes"] or 0

    says = "stopping: the result will be of the episodes that have ended" if dist.is_root else ""
    with StopSignals(says) as signals:
        if endless and dist.is_root:
            tell = sign_of_life(env)
        result = run_test(
            env, agent, dist, args["test_episodes"],
            args["statistics_episodes"], uninterrupted, on_step=on_step, should_stop=stopped,
            max_episode_steps=None if endless and "max_episode_steps" not in args else args["max_episode_steps"],
        )
    progress.enter("done")
    recorded = {"video": None, **(recorder.close() if recorder is not None else {})}
    if dist.is_root:
        write_result(request, {
            "ok": signals.received is None or ("test_episodes" not in args and result.test_episodes > 0),
            **result.to_dict(), "disturbances": request.env.disturbed.given if request.env.disturbed else {},
            **recorded, "devices": list(request.devices), "num_envs": request.num_envs,
            "startup_s": time.monotonic() - started_at(),
        })
        print("\n".join(measured(result, args["test_episodes"])))
        print("\n".join(after_test(request, recorded)), flush=True)
    return EXIT_OK if signals.received is None else 128 + signals.received


def sign_of_life(env: Any) -> Callable[[], None]:
    """Print that this test has no end. Call what is returned in every step: it prints a line now and then."""
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


def open_recorder(request: Request, env: Any, agent: Any, dist: Any) -> Any:
    """A recorder of an episode, a window, or None, as the flags and the machine allow."""
    args = request.args
    window, web = args["visualize"] and "save_html" not in args, args["viewer"] == "web"
    if window and not web and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        if dist.is_root:
            warn("no display here, no window is opened (--visualize false silences this; --video true records off "
                 "screen; --web shows it in a browser)")
        window = False
    if not dist.is_root or not (window or args["video"] or "save_html" in args):
        return None
    from mimickit.envs import filming

    if window:
        models, shown = models_beside(args["model_file"]) if dist.world_size == 1 else ({}, "")
        panel = filming.Panel(env, models, shown, agent.load_model)
        return filming.Window(env, panel, (args["host"], args["port"]) if web else None)
    recorders = {}
    if args["video"]:
        file = Path(args["video_file"] or request.out_dir / "viz.mp4")
        recorders["video"] = filming.video(env, file, args["video_width"], args["video_height"])
    if "save_html" in args:
        recorders["page"] = filming.page(env, Path(args["save_html"]))
    return filming.Episode(recorders, args["max_episode_steps"])


def models_beside(model_file: str | None) -> tuple[dict[str, Path], str]:
    """The models of a run by name: the one given, then newest first; and the name of the one given."""
    if model_file is None:
        return {}, ""
    given = Path(model_file)
    folder = run_folder.source_folder(given.parent)
    files = [given, folder / "model.pt", folder / "checkpoints/best/model.pt",
             *(path / "model.pt" for path in numbered(folder / "checkpoints"))]
    names = {file.relative_to(folder).as_posix().removesuffix("/model.pt"): file for file in files if file.is_file()}
    return names, next(iter(names))


# --- files ------------------------------------------------------------------------------------------------------------


def save_configuration(request: Request, env: Any, dist: Any) -> None:
    """The configuration files as given, and the effective one with command line, seed and versions."""
    import yaml

    request.out_dir.mkdir(parents=True, exist_ok=True)
    for flag, path in request.files.items():
        target = request.out_dir / f"{flag}.yaml"
        if path.resolve() == target.resolve():
            continue
        if flag in request.whole:  # the copy must stand alone
            write_text(target, yaml.safe_dump(dict(request.whole[flag]), sort_keys=False))
        else:
            shutil.copyfile(path, target)
    effective = {
        "command_line": sys.argv, "args": {k: list(v) for k, v in request.args.values.items()},
        "rand_seed": request.seed, "world_size": dist.world_size, "versions": versions(),
        "commit": commit(SHIPPED), **request.configuration(),
    }
    write_text(request.out_dir / "run_config.yaml", yaml.safe_dump(effective, sort_keys=False, width=120))


def write_result(request: Request, values: Mapping[str, Any]) -> None:
    """``result.json``: see docs/run_folder.md."""
    write_json(request.result_file, {"mode": request.mode, "ok": True, **values, "versions": versions()})


def started_at() -> float:
    """time.monotonic() when the command was given (the launcher's, if there is one)."""
    return float(os.environ.get(STARTED, PROCESS_START))
