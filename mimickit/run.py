"""The run program: one stage of a character's life, from the command line to ``result.json``.

``python mimickit/run.py --arg_file args/deepmimic_humanoid_ppo_args.txt --mode train --devices cuda:0 cuda:1``

Reads the configuration, checks every input before anything starts, builds engine, environment and agent, trains or
tests, and leaves the files that docs/run_folder.md describes. Several devices: one process each, started by torchrun.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROCESS_START = time.time()
if __package__ in (None, ""):  # run as a script: import the package, not the files beside this one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mimickit.config import layers, merge, stacked
from mimickit.util.args import Args
from mimickit.util.failures import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USER_ERROR,
    AssetMissingError,
    UserError,
    classify,
    write_failure,
)
from mimickit.util.files import write_json, write_text
from mimickit.util.logging import warn

UNLIMITED = 2**63 - 1
OUT_DIR = "output/"
SIGN_OF_LIFE = 30.0  # s between lines of a test that nobody sees
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

FLAGS: dict[str, tuple[str, str]] = {  # name -> (values and default, meaning)
    "arg_file": ("FILE", "read more flags from this file; flags given before it win"),
    "mode": ("train|test [train]", "learn, or run episodes with the policy as it is"),
    "env_config": ("FILE", "environment yaml (required)"),
    "engine_config": ("FILE [data/engines/newton_engine.yaml]", "physics yaml"),
    "agent_config": ("FILE", "agent yaml; without one nothing is learned (zero actions)"),
    "devices": ("D [D ...] [cuda:0, else cpu]", "one process per entry: cpu or cuda:i"),
    "num_envs": ("N [1]", "worlds per process"),
    "max_samples": ("N [unlimited]", "training stops once this many samples are collected, summed over processes"),
    "max_iters": ("N", "stop after so many iterations of this process"),
    "time_budget_hours": ("H", "stop after so many hours of this process"),
    "output_samples": ("N", "evaluate and checkpoint at least every N samples"),
    "output_seconds": ("S", "evaluate and checkpoint at least every S seconds"),
    "test_episodes": ("N [unlimited]", "test mode: episodes in all"),
    "statistics_episodes": ("N", "test mode: episodes for statistics and measures, the first of them --test_episodes"),
    "eval_envs": ("N [0]", "train mode: evaluate in so many worlds of every process while the others train; 0: pause"),
    "max_episode_steps": ("N", "tests and evaluations: count an episode as ended after so many control steps"),
    "model_file": ("FILE", "parameters to start from (model.pt of ours or of MimicKit)"),
    "resume": ("PATH", "continue exactly from a run folder's newest checkpoint, or from one checkpoint folder"),
    "out_dir": ("DIR [output/]", "where everything is written"),
    "result_file": ("FILE [<out_dir>/result.json]", "the machine-readable result"),
    "logger": ("txt|tb|wandb [txt]", "log.txt is always written"),
    "save_int_models": ("BOOL [false]", "keep the model of every output iteration"),
    "visualize": ("BOOL [true]", "open a window (test mode); without a display a warning says that none is opened"),
    "video": ("BOOL [false]", "test mode: render one episode off screen"),
    "video_file": ("FILE.mp4 [<out_dir>/viz.mp4]", "where the video goes; PNG frames beside it"),
    "video_width": ("PIXELS [854]", "width of the video"),
    "video_height": ("PIXELS [480]", "height of the video"),
    "rand_seed": ("N [clock]", "process r uses seed + 41 r"),
    "master_port": ("N [a free one]", "port of the process group"),
    "set": ("KEY=VALUE ...", "override keys: env.episode_length=5 agent.model.action_std=0.1 engine.sim_freq=120"),
    "help": ("", "show this text"),
}
WHOLE_NUMBERS: dict[str, tuple[int, int]] = {  # flag -> least and largest value
    "num_envs": (1, 2**31 - 1),
    "max_samples": (1, UNLIMITED),
    "max_iters": (1, UNLIMITED),
    "output_samples": (1, UNLIMITED),
    "test_episodes": (1, UNLIMITED),
    "statistics_episodes": (1, UNLIMITED),
    "eval_envs": (0, 2**31 - 1),
    "max_episode_steps": (1, 2**31 - 1),
    "video_width": (64, 8192),
    "video_height": (64, 8192),
    "rand_seed": (0, 2**62),
    "master_port": (1, 65535),
}


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
        args.require_known(FLAGS)
        check_writable(args, "out_dir", OUT_DIR)
        out_dir = Path(args.text("out_dir", OUT_DIR))
        check_writable(args, "result_file")
        check_writable(args, "video_file")
        forget_last_end(args, out_dir)
        request = read_request(args)
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


def help_text() -> str:
    """The text of ``--help``."""
    width = max(len(f"--{name} {values}") for name, (values, _) in FLAGS.items())
    rows = [f"  {f'--{name} {values}':{width}}  {meaning}" for name, (values, meaning) in FLAGS.items()]
    return "\n".join([
        "usage: mimickit --arg_file args/<case>_args.txt [--flag value ...]", "",
        "Trains a physics-based character to imitate motion clips, or tests what it learned.", "",
        *rows, "",
        "The first mention of a flag wins; the command line is read before the args file.",
        "Files of a run: docs/run_folder.md.",
    ])


# --- from flags to a request ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """Everything the command line and the configuration files said, checked as far as possible without a device."""

    args: Args
    mode: str
    devices: tuple[str, ...]
    out_dir: Path
    result_file: Path
    num_envs: int
    seed: int
    engine: Any  # EngineConfig: file, then the environment's engine keys, then --set
    env: Any  # EnvConfig
    agent_data: Mapping[str, Any] | None  # the agent file with --set
    agent: Any  # AgentConfig
    files: Mapping[str, Path] = field(default_factory=dict)  # configuration files as given, by flag
    agent_file: Mapping[str, Any] | None = None  # the agent file with those it stands on, None where it stands alone


def read_request(args: Args) -> Request:
    """Read and check flags, configuration files and the files those name.

    Raises:
        UserError: anything given is wrong; the message names it, what is allowed and where it stands.
    """
    from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE, load_engine_config, make_engine_config
    from mimickit.envs.env_config import check_files, load_env_config, merge_engine_config
    from mimickit.learning.agents import parse_agent_config

    mode = args.text("mode", "train", choices=("train", "test"))
    args.text("logger", "txt", choices=("txt", "tb", "wandb"))
    for flag in ("visualize", "video", "save_int_models"):
        args.boolean(flag, False)
    for flag in WHOLE_NUMBERS:
        whole_number(args, flag)
    for flag in ("time_budget_hours", "output_seconds"):
        args.number(flag, minimum=0.0)
    if (video := args.text("video_file")) is not None and Path(video).suffix.lower() != ".mp4":
        raise UserError(f"--video_file {video} ({args.source['video_file']}): videos are MP4, so the name must end in "
                        ".mp4")
    flags = ("engine_config", "env_config", "agent_config")
    files = {flag: Path(value) for flag in flags if (value := args.text(flag))}
    files.setdefault("engine_config", Path(DEFAULT_ENGINE_FILE))
    if "env_config" not in files:
        raise UserError("--env_config is missing: name an environment yaml (data/envs/) or an --arg_file (args/)")
    missing = [str(path) for path in files.values() if not path.is_file()]
    for flag in ("model_file", "resume"):
        if (value := args.text(flag)) and not Path(value).exists():
            missing.append(value)
    if missing:
        raise AssetMissingError(f"not found: {', '.join(missing)} (paths are relative to the working directory "
                                f"{Path.cwd()}; run from the project root)")

    assignments = args.get("set")
    changes = read_overrides(assignments or [])
    if assignments == []:
        raise UserError("--set needs at least one KEY=VALUE, such as env.episode_length=5")
    engine = load_engine_config(files["engine_config"])
    with naming_overrides(assignments, "env"):
        env = load_env_config(files["env_config"], changes["env"])
        engine = merge_engine_config(engine, env)
    if changes["engine"]:
        with naming_overrides(assignments, "engine"):
            engine = make_engine_config({**engine.model_dump(exclude_unset=True), **changes["engine"]},
                                        str(files["engine_config"]))
    agent_files = layers(files["agent_config"]) if "agent_config" in files else []
    if not agent_files and changes["agent"]:
        raise UserError("--set agent.… needs an --agent_config")
    agent_file = stacked(agent_files)
    agent_data = merge(agent_file, changes["agent"]) if agent_files else None
    with naming_overrides(assignments, "agent"):
        agent = parse_agent_config(agent_data, str(files.get("agent_config", "agent config")))
    with naming_overrides(assignments, "env"):
        check_files(env)

    out_dir = Path(args.text("out_dir", OUT_DIR))
    return Request(
        args=args, mode=mode, devices=read_devices(args), out_dir=out_dir,
        result_file=Path(args.text("result_file", str(out_dir / "result.json"))),
        num_envs=whole_number(args, "num_envs", 1), seed=whole_number(args, "rand_seed", int(256 * time.time())),
        engine=engine, env=env, agent_data=agent_data, agent=agent, files=files,
        agent_file=agent_file if len(agent_files) > 1 else None,
    )


def whole_number(args: Args, flag: str, default: int | None = None) -> int | None:
    """The value of one of :data:`WHOLE_NUMBERS`. Raises UserError when it is out of bounds."""
    return args.integer(flag, default, *WHOLE_NUMBERS[flag])


def read_overrides(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """``env.a=1 agent.b.c=x`` -> {"env": {"a": 1}, "engine": {}, "agent": {"b": {"c": "x"}}}; values are YAML.

    Raises:
        UserError: not KEY=VALUE, or the key does not begin with ``env.``, ``engine.`` or ``agent.``.
    """
    import yaml

    changes: dict[str, dict[str, Any]] = {"env": {}, "engine": {}, "agent": {}}
    for text in assignments:
        key, equals, value = text.partition("=")
        part, *names = key.split(".")
        if not equals or part not in changes or not names or not all(names):
            raise UserError(f"--set {text}: expected KEY=VALUE with a key like env.episode_length, engine.sim_freq or "
                            f"agent.steps_per_iter")
        target = changes[part]
        for name in names[:-1]:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {text}: another --set gives '{name}' a value that has no keys")
        try:
            target[names[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: the value is not readable as YAML") from None
    return changes


@contextlib.contextmanager
def naming_overrides(assignments: list[str] | None, part: str) -> Iterator[None]:
    """Let the message of a UserError say which keys of ``part`` came from --set, not from the file that it names."""
    try:
        yield
    except UserError as error:
        given = [text for text in assignments or [] if text.startswith(f"{part}.")]
        if not given:
            raise
        keys = [text.partition("=")[0].removeprefix(f"{part}.").removeprefix("engine.") for text in given]
        pattern = rf"key '({'|'.join(map(re.escape, keys))})(\.[^']*)?'"
        message, count = re.subn(pattern, r"\g<0> (from --set)", str(error))
        if not count and not re.search(r"([:;] |unknown |missing )key '", message):  # about no key alone
            message += f" (with --set {' '.join(given)})"
        raise type(error)(message) from None


def read_devices(args: Args) -> tuple[str, ...]:
    """The devices to use, one per process.

    Raises:
        UserError: an unknown kind, an index that this machine does not have, mixed kinds, or one GPU twice.
    """
    import torch

    given = args.get("devices")
    if given == []:
        raise UserError("--devices needs at least one of cpu, cuda:0, cuda:1, ...")
    count = torch.cuda.device_count()
    allowed = "cpu" + "".join(f", cuda:{i}" for i in range(count))
    if given is None:
        return ("cuda:0",) if count else ("cpu",)
    devices = tuple("cuda:0" if name == "cuda" else name for name in given)
    for name in devices:
        kind, _, index = name.partition(":")
        known = name == "cpu" or (kind == "cuda" and index.isdigit() and int(index) < count)
        if not known:
            raise UserError(f"--devices {name}: this machine has {allowed}"
                            + ("" if count else " (torch finds no CUDA device)"))
    if len({name.split(":")[0] for name in devices}) > 1:
        raise UserError(f"--devices {' '.join(devices)}: all must be of one kind, cpu or cuda")
    if devices[0] != "cpu" and len(set(devices)) < len(devices):
        raise UserError(f"--devices {' '.join(devices)}: a GPU can be given once only")
    return devices


def check_writable(args: Args, flag: str, default: str | None = None) -> None:
    """Make sure that files can be written where a flag wants them; makes no folder.

    Raises:
        UserError: the folder cannot be written or made, or a folder has the file's name.
        OSError: anything else that the system says, such as a disk that is full.
    """
    if (given := args.text(flag, default)) is None:
        return
    folder = Path(given) if flag == "out_dir" else Path(given).parent
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"--{flag} {given}: cannot write there: {error.strerror} ({place})") from None
    if flag != "out_dir" and Path(given).is_dir():
        raise UserError(f"--{flag} {given}: cannot write there: it is a folder")


def forget_last_end(args: Args, out_dir: Path) -> None:
    """Remove what an earlier run in this folder said about its end, so that nobody takes it for ours."""
    if "LOCAL_RANK" in os.environ and "MIMICKIT_STARTED" in os.environ:
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

    os.environ["MIMICKIT_STARTED"] = repr(PROCESS_START)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would, without its warning
    port = whole_number(request.args, "master_port")
    local = ["--nnodes", "1", "--master-addr", "localhost", "--master-port"]
    where = ["--standalone"] if port is None else [*local, str(port)]
    script = str(Path(__file__).resolve())
    if "rand_seed" not in request.args:
        argv = ["--rand_seed", str(request.seed), *argv]
    try:
        torchrun([*where, "--nproc-per-node", str(len(request.devices)), script, *argv])
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
    if args.boolean("video", False) and dist.is_root:
        print("note: --video records in test mode; training goes on without it", flush=True)
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
        fingerprint=fingerprint(request),
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
        "engine": request.engine.model_dump(mode="json"), "env": request.env.model_dump(mode="json"),
        "agent": request.agent.model_dump(mode="json"),
    }
    write_text(request.out_dir / "run_config.yaml", yaml.safe_dump(effective, sort_keys=False, width=120))


def fingerprint(request: Request) -> str:
    """Digest of the effective configuration: a checkpoint can be continued exactly only under the same one."""
    parts = [request.engine.model_dump(mode="json"), request.env.model_dump(mode="json"),
             request.agent.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


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
    return float(os.environ.get("MIMICKIT_STARTED", PROCESS_START))


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
