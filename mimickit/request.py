"""What a run was asked for: flags and configuration files, read and checked before anything starts.

:data:`FLAGS` is the one list of the program's flags; :func:`read_request` makes a :class:`Request` of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimickit.cases import DEFAULT, TUNED, tuned_worlds, with_variant
from mimickit.config import layers, load_yaml, merge, parse_yaml, stacked
from mimickit.request_checks import check_request
from mimickit.util.args import Args
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.manifest import model_problem
from mimickit.util.run_folder import OUT_DIR

UNLIMITED = 2**63 - 1
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

FLAGS: dict[str, tuple[str, str]] = {  # name -> (values and default, meaning)
    "arg_file": ("FILE", "read more flags from this file; flags given before it win"),
    "mode": ("train|test [train]", "learn, or run episodes with the policy as it is"),
    "env_config": ("FILE", "environment yaml (required)"),
    "engine_config": ("FILE [data/engines/newton_engine.yaml]", "physics yaml"),
    "agent_config": ("FILE", "agent yaml; without one nothing is learned (zero actions)"),
    "variant": ("tuned|hiutil|default [tuned where there is one]", "which hyper-parameters: FILE_tuned.yaml beside the "
                "args file's agent_config, or that file itself; an --agent_config on the command line wins"),
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
    "max_episode_steps": ("N [10000]", "tests and evaluations: count an episode as ended after so many control steps"),
    "model_file": ("FILE", "parameters to start from (model.pt of ours or of MimicKit)"),
    "resume": ("[PATH]", "continue exactly from a run folder's newest checkpoint, or from one checkpoint folder; "
                         "without PATH from --out_dir"),
    "overwrite": ("BOOL [false]", "train in a folder that holds a training, after removing it"),
    "out_dir": ("DIR [output/<case>/<date>-<n>]", "where everything is written"),
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
LIST_FLAGS = ("devices", "set")  # the others take one value
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


def help_text() -> str:
    """The text of ``--help``."""
    from mimickit.commands import overview

    return "\n".join([
        "Trains a physics-based character to imitate motion clips, tests and shows what it learned.", "",
        *overview(), "  mimickit COMMAND --help",
        "  mimickit --arg_file args/<case>_args.txt [--flag value ...]   as MimicKit's users know it", "",
        *flag_rows(FLAGS), "",
        "The first mention of a flag wins; the command line is read before the args file. Files of args/ and data/ are",
        "looked up in the working directory, then among the shipped ones. Files of a run: docs/run_folder.md.",
    ])


def flag_rows(names: Iterable[str]) -> list[str]:
    """Lines that tell of flags."""
    heads = {name: f"--{name} {FLAGS[name][0]}".rstrip() for name in names}
    width = min(34, max(map(len, heads.values())))
    rows = []
    for name, head in heads.items():
        first, *others = textwrap.wrap(FLAGS[name][1], 116 - width)
        if len(head) > width:
            rows.append(f"  {head}")
            head = ""
        rows += [f"  {head:{width}}  {first}", *(f"  {'':{width}}  {other}" for other in others)]
    return rows




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
    whole: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # those that stand on others, merged, by flag
    notes: tuple[str, ...] = ()  # warnings about files that are read differently from what they say
    variant: str | None = None  # of the agent file, where an args file names one

    def moved(self, out_dir: Path) -> Request:
        """The same in another run folder."""
        args = self.args.with_value("out_dir", str(out_dir))
        return replace(self, args=args, out_dir=out_dir, result_file=result_file(args, out_dir))

    def configuration(self) -> dict[str, Any]:
        """The effective configuration, defaults and --set included: ``engine``, ``env`` and ``agent``."""
        parts = {"engine": self.engine, "env": self.env, "agent": self.agent}
        return {name: part.model_dump(mode="json") for name, part in parts.items()}


def read_request(args: Args) -> Request:
    """Read and check flags, configuration files and the files those name.

    Raises:
        UserError: anything given is wrong; the message names it, what is allowed and where it stands.
    """
    from mimickit.engines.engine_config import DEFAULT_ENGINE_FILE, for_newton
    from mimickit.envs.env_builder import check_env_name, check_files, make_env_config, merge_engine_config
    from mimickit.learning.agents import parse_agent_config, present_layout

    args, variant = with_variant(args)
    mode = args.text("mode", "train", choices=("train", "test"))
    args.text("logger", "txt", choices=("txt", "tb", "wandb"))
    for flag in ("visualize", "video", "save_int_models", "overwrite"):
        args.boolean(flag, False)
    for flag in WHOLE_NUMBERS:
        whole_number(args, flag)
    for flag in ("time_budget_hours", "output_seconds"):
        args.number(flag, minimum=0.0)
    if (video := args.text("video_file")) is not None and Path(video).suffix.lower() != ".mp4":
        raise UserError(f"--video_file {video} ({args.source['video_file']}): videos are MP4, so the name must end in "
                        ".mp4")
    flags = ("engine_config", "env_config", "agent_config")
    files = {flag: locate(value) for flag in flags if (value := args.text(flag))}
    files.setdefault("engine_config", locate(DEFAULT_ENGINE_FILE))
    if "env_config" not in files:
        raise UserError("--env_config is missing: name an environment yaml (data/envs/) or an --arg_file (args/)")
    assignments = args.get("set")
    changes = read_overrides(assignments or [])
    if assignments == []:
        raise UserError("--set needs at least one KEY=VALUE, such as env.episode_length=5")
    env_files = layers(files["env_config"]) if os.path.exists(files["env_config"]) else []
    env_data = merge(stacked(env_files), changes["env"])
    if env_files:  # before missing files: an environment to come needs none
        check_env_name(env_data, str(files["env_config"]))
    missing = [str(path) for path in files.values() if not os.path.exists(path)]
    for flag in ("model_file", "resume"):
        if (value := args.text(flag)) and not os.path.exists(value):
            missing.append(value)
    if missing:
        raise AssetMissingError(f"not found: {', '.join(missing)} (looked up in the working directory "
                                f"{Path.cwd()}, args/ and data/ then among the shipped files)")

    if (model_file := args.text("model_file")) and (problem := model_problem(Path(model_file))):
        raise UserError(f"--model_file {problem}; --resume {Path(model_file).parent} trains on from its newest "
                        "checkpoint and writes the model anew")

    with naming_overrides(assignments, "env"):
        env = make_env_config(env_data, str(files["env_config"]))
        with naming_overrides(assignments, "engine"):
            engine = merge_engine_config(files["engine_config"], env, changes["engine"])
    notes = []
    if "engine_name" not in {**env.engine, **changes["engine"]}:
        notes.append(for_newton(load_yaml(files["engine_config"]), str(files["engine_config"]))[1])
    agent_files = layers(files["agent_config"]) if "agent_config" in files else []
    if not agent_files and changes["agent"]:
        raise UserError("--set agent.… needs an --agent_config")
    agent_data = merge(stacked(agent_files), changes["agent"]) if agent_files else None
    with naming_overrides(assignments, "agent"):
        if agent_data is not None:
            agent_data, note = present_layout(agent_data, str(files["agent_config"]))
            notes.append(note)
        agent = parse_agent_config(agent_data, str(files.get("agent_config", "agent config")))
    with naming_overrides(assignments, "env"):
        check_files(env)

    out_dir = Path(args.text("out_dir", OUT_DIR))
    request = Request(
        args=args, mode=mode, devices=read_devices(args), out_dir=out_dir,
        result_file=result_file(args, out_dir),
        num_envs=whole_number(args, "num_envs", 1), seed=whole_number(args, "rand_seed", int(256 * time.time())),
        engine=engine, env=env, agent_data=agent_data, agent=agent, files=files,
        whole={flag: stacked(found) for flag, found in (("env_config", env_files), ("agent_config", agent_files))
               if len(found) > 1},
        notes=tuple(filter(None, notes)), variant=variant,
    )
    with naming_overrides(assignments, "agent"):
        check_request(request)
    return request


def header(request: Request) -> list[str]:
    """Lines about what a training takes that nobody may have asked for."""
    if request.variant is None or request.mode != "train":
        return []
    file, others = request.args.text("agent_config"), ""
    if request.variant != DEFAULT:
        others = "; --variant default takes the args file's own"
    lines = [f"hyper-parameters: {request.variant} ({file}{others})"]
    processes = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else len(request.devices)
    if request.variant == TUNED:
        worlds = tuned_worlds(file.replace(f"_{TUNED}.", "."))
        if worlds != request.num_envs * processes:
            lines.append(f"worlds: {request.num_envs * processes}; these hyper-parameters are tuned for {worlds}"
                         f" (--num_envs {max(1, worlds // processes)})")
    return lines


def result_file(args: Args, out_dir: Path) -> Path:
    """Where the result goes."""
    return Path(args.text("result_file", str(out_dir / "result.json")))


def whole_number(args: Args, flag: str, default: int | None = None) -> int | None:
    """The value of one of :data:`WHOLE_NUMBERS`. Raises UserError when it is out of bounds."""
    return args.integer(flag, default, *WHOLE_NUMBERS[flag])


def read_overrides(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """``env.a=1 agent.b.c=x`` -> {"env": {"a": 1}, "engine": {}, "agent": {"b": {"c": "x"}}}; values are YAML.

    Raises:
        UserError: not KEY=VALUE, or the key does not begin with ``env.``, ``engine.`` or ``agent.``.
    """
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
        target[names[-1]] = parse_yaml(value, f"--set {text}: the value")
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
    given, here = args.get("devices"), machine_devices()
    if given == []:
        raise UserError("--devices needs at least one of cpu, cuda:0, cuda:1, ...")
    if given is None:
        return ("cuda:0" if "cuda:0" in here else "cpu",)
    devices = tuple("cuda:0" if name == "cuda" else name for name in given)
    for name in devices:
        if name not in here:
            raise UserError(f"--devices {name}: this machine has {', '.join(here)}"
                            + (" (torch finds no CUDA device)" if here == ["cpu"] else ""))
    if len({name.split(":")[0] for name in devices}) > 1:
        raise UserError(f"--devices {' '.join(devices)}: all must be of one kind, cpu or cuda")
    if devices[0] != "cpu" and len(set(devices)) < len(devices):
        raise UserError(f"--devices {' '.join(devices)}: a GPU can be given once only")
    return devices


def machine_devices() -> list[str]:
    """The devices that this machine has: ``cpu``, then ``cuda:0`` and on."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


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
