"""``mimickit train CASE``, ``mimickit test RUN`` and so on: short names for what the flags of the program say.

A command becomes :class:`~mimickit.util.args.Args` like any command line: what the user gave wins over the args file,
or over what the run folder remembers, and that over the command's defaults. Everything else is one code (run.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimickit import catalog
from mimickit.cases import TUNED, Case, all_cases, tuned_worlds, with_variant
from mimickit.config import load_yaml
from mimickit.request import FLAGS, LIST_FLAGS, flag_rows, machine_devices, whole_number
from mimickit.util.args import COMMAND_LINE, Args, parse_tokens
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import EXIT_OK, AssetMissingError, UserError
from mimickit.util.names import nearest
from mimickit.util.run_folder import OUT_DIR, case_name, source_folder

MAX_SAMPLES = 30_000_000  # in which every shipped case learns (docs/learning.md)
OUTPUT_SAMPLES, OUTPUT_SECONDS = 3_000_000, 120  # between checkpoints, at most
WORLDS_PER_EVAL_WORLD = 64
CPU_WORLDS = 128  # a CPU takes minutes for one iteration of thousands
TEST_WORLDS = {"cuda": 1024, "cpu": 32}  # as many episodes, side by side
CONFIGURATIONS = ("engine_config", "env_config", "agent_config")
OF_A_TRAINING = {"arg_file", "mode", "variant", "out_dir", "resume", "overwrite", "model_file", "result_file"}


@dataclass(frozen=True)
class Command:
    """One name: how it is used, what it does, and the flags that are worth a look, by name."""

    usage: str
    does: str
    more: str = ""
    flags: tuple[str, ...] = ()


COMMANDS = {
    "train": Command(
        "CASE_OR_RUN [--flags]", "train a case, or go on with a run",
        "CASE is a name of `mimickit list`, or an args file. It trains with the hyper-parameters that learn (--variant "
        "tuned) in as many worlds as those are tuned for, on one GPU (--devices cuda:0 cuda:1 takes two); where there "
        f"is none on the CPU, in {CPU_WORLDS} worlds; until {MAX_SAMPLES:,} samples. One of {WORLDS_PER_EVAL_WORLD} "
        f"worlds evaluates beside it; every {OUTPUT_SAMPLES:,} samples or {OUTPUT_SECONDS} s a checkpoint is left. RUN "
        "is a run folder: its training goes on exactly where its newest checkpoint stands.",
        ("variant", "devices", "num_envs", "max_samples", "time_budget_hours", "eval_envs", "output_samples", "out_dir",
         "overwrite", "logger", "rand_seed", "set")),
    "test": Command(
        "RUN_OR_CASE [--flags]", "measure what a run learned",
        "RUN is a run folder, whose model.pt is tested, or one of its checkpoints (RUN/checkpoints/best), or a model "
        f"file: same case, agent, clip and --set as it was trained with. {TEST_WORLDS['cuda']} episodes side by side "
        f"on a GPU, {TEST_WORLDS['cpu']} on the CPU. Files go into RUN/test. CASE stands for its newest run below "
        f"{OUT_DIR}.",
        ("devices", "num_envs", "test_episodes", "out_dir", "rand_seed", "set")),
    "view": Command(
        "RUN_OR_CASE [--flags]", "watch what a run learned, or a clip",
        "RUN is a run folder, as for test; files go into RUN/view. CASE is one that shows a clip (view_motion_...), or "
        "stands for its newest run. A window opens; without a display, or with --video true, one episode is filmed.",
        ("video", "video_file", "video_width", "video_height", "devices", "num_envs", "out_dir", "set")),
    "list": Command("[cases|characters|clips]", "what there is"),
    "show": Command(
        "CASE_OR_RUN [--flags]", "the configuration in effect, and which file every value comes from",
        "Takes the flags of train, so that their effect can be seen first.", ("variant", "num_envs", "devices", "set")),
    "longcycle": Command(
        "[pytest options]", "run the acceptance suite (in a checkout)",
        "Its options are listed in docs/longcycle.md."),
    "convert-agent": Command("OLD.yaml [NEW.yaml]", "write an agent file of before February 2026 in today's layout"),
    "completion": Command("", "completion for bash and zsh: eval \"$(mimickit completion)\""),
}
WITHOUT_STAGE = ("list", "show", "longcycle", "convert-agent", "completion")


def is_command(argv: Sequence[str]) -> bool:
    """Whether a command line begins with a command.

    Raises:
        UserError: it begins with a word that is nearly one.
    """
    if not argv or argv[0].startswith("-"):
        return False
    if argv[0] not in COMMANDS and (hint := nearest(argv[0], COMMANDS)):
        raise UserError(f"unknown command '{argv[0]}'{hint}; there are {', '.join(COMMANDS)}")
    return argv[0] in COMMANDS


def read_args(argv: Sequence[str]) -> Args:
    """The arguments of a command line, of flags alone or of train, test, view or show.

    Raises:
        UserError: no or an unknown case or run, or as :meth:`Args.from_argv`.
    """
    if not is_command(argv):
        return Args.from_argv(argv)
    name, words = argv[0], list(argv[1:])
    if not words or words[0].startswith("-"):
        raise UserError(f"mimickit {name}: name it first: mimickit {name} {COMMANDS[name].usage} (mimickit list shows "
                        "the cases)")
    values, stray = parse_tokens(words[1:])
    if "arg_file" in values:
        raise UserError(f"mimickit {name} {words[0]}: --arg_file names a case too; give one of them")
    given = Args(values, dict.fromkeys(values, COMMAND_LINE), {COMMAND_LINE: tuple(stray)})
    given.check(FLAGS, LIST_FLAGS)
    return {"train": _train, "show": _train, "test": _test, "view": _view}[name](name, words[0], given)


def run_command(argv: Sequence[str]) -> int:
    """Run one of the commands that start no stage; returns the exit code."""
    name, words = argv[0], list(argv[1:])
    if name == "longcycle":
        return _longcycle(words)
    if name == "list":
        print(catalog.listing(_one_of(words, "list", catalog.LISTS)))
    elif name == "show":
        print(catalog.configuration(read_args(argv)))
    elif name == "convert-agent":
        _convert_agent(words)
    else:
        print(_completion())
    return EXIT_OK


def help_of(argv: Sequence[str]) -> str:
    """The text of ``mimickit COMMAND --help``."""
    name, command = argv[0], COMMANDS[argv[0]]
    lines = [f"usage: mimickit {name} {command.usage}".rstrip(), "", f"{command.does[0].upper()}{command.does[1:]}."]
    lines += ["", *textwrap.wrap(command.more, 116)] if command.more else []
    if command.flags:
        lines += ["", *flag_rows(command.flags), "", "All flags: mimickit --help"]
    return "\n".join(lines)


def overview() -> list[str]:
    """Lines of ``mimickit --help`` about the commands."""
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    return [f"  mimickit {f'{name} {command.usage}':{width}}  {command.does}" for name, command in COMMANDS.items()]


# --- what a case or a run says ----------------------------------------------------------------------------------------


def find_case(name: str) -> Case | None:
    """A case by its name or that of its args file."""
    known = {case.name: case for case in all_cases()}
    return known.get(Path(name).name.removesuffix(".txt").removesuffix("_args"))


def _case_args(target: str, given: Args) -> Args | None:
    """What was given, and what the args file of a case says; None where ``target`` is no case."""
    if target.endswith(".txt") and os.path.isfile(target):
        file = target
    elif (case := find_case(target)) is not None:
        file = case.args_file
    else:
        return None
    return Args.from_argv(["--arg_file", file]).under(given)


def _run_args(path: Path, given: Args, keep: Collection[str]) -> tuple[Args, Path, Path]:
    """What was given, and what the folder of a run remembers; the folder; its model.

    Args:
        path: the run folder, one of its checkpoints, or a model file in either.
        keep: the flags of the training that count.

    Raises:
        UserError: it is no run folder, or cannot be read.
    """
    place = path.parent if path.is_file() else path
    folder = source_folder(place)
    model = path if path.is_file() else place / "model.pt"
    try:
        known = load_yaml(folder / "run_config.yaml").get("args")
    except AssetMissingError:
        raise UserError(f"{folder} is no folder of a training: it has no run_config.yaml") from None
    if not isinstance(known, Mapping):
        raise UserError(f"{folder / 'run_config.yaml'}: 'args' must be a mapping of flags to lists of values")
    values = {flag: tuple(map(str, words)) for flag, words in known.items()
              if flag in keep and isinstance(words, list)}
    for flag in CONFIGURATIONS:  # as they were then
        if (file := folder / f"{flag}.yaml").is_file():
            values[flag] = (str(file),)
    if "set" in given and "set" in values:
        given = given.with_value("set", *values["set"], *given.values["set"])
    return Args(values, dict.fromkeys(values, str(folder))).under(given), folder, model


def _newest_run(case: str) -> Path:
    """The run of a case with the newest model. Raises UserError where there is none."""
    models = sorted(Path(OUT_DIR, case).glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in models if (path.parent / "run_config.yaml").is_file()]
    if not found:
        raise UserError(f"{case}: no run of this case in {Path(OUT_DIR, case)}; mimickit train {case} makes one, or "
                        "name a run folder")
    return found[-1]


def _unknown(name: str, target: str) -> UserError:
    hint = nearest(target, [case.name for case in all_cases()])
    what = "case" if name == "train" else "case, and no run folder"
    return UserError(f"mimickit {name} {target}: no such {what}{hint}; mimickit list shows the cases")


# --- train, test, view ------------------------------------------------------------------------------------------------


def _train(name: str, target: str, given: Args) -> Args:
    if os.path.isdir(target):
        args, folder, _ = _run_args(Path(target), given, FLAGS.keys() - OF_A_TRAINING)
        resume = {} if name == "show" else {"resume": [target]}
        return args.with_defaults({"mode": ["train"], **resume}, str(folder)).named(name, target)
    args = _case_args(target, given)
    if args is None:
        raise _unknown(name, target)
    args = args.named(name, target)
    if args.text("mode", "train") == "test" and "mode" not in given:
        if name == "show":
            return args
        raise UserError(f"mimickit train {target}: this case shows something and learns nothing; try mimickit view "
                        f"{target}")
    worlds, processes = whole_number(args, "num_envs", 1), _processes(args)
    if with_variant(args)[1] == TUNED and args.source.get("num_envs") != COMMAND_LINE:
        at_once = tuned_worlds(args.text("agent_config")) if _kind(args) == "cuda" else CPU_WORLDS
        worlds = max(1, min(worlds, at_once // processes))
        args = args.with_value("num_envs", str(worlds), source=f"variant {TUNED}")
    evaluating = max(1, worlds // WORLDS_PER_EVAL_WORLD) if worlds > 1 else 0
    return args.with_defaults({"mode": ["train"], "max_samples": [str(MAX_SAMPLES)], "eval_envs": [str(evaluating)],
                               "output_samples": [str(OUTPUT_SAMPLES)], "output_seconds": [str(OUTPUT_SECONDS)]},
                              "mimickit train")


def _processes(args: Args) -> int:
    """How many processes will train."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else len(args.get("devices") or [1])


def _kind(args: Args) -> str:
    """``cuda`` or ``cpu``: where this will run."""
    return (args.text("devices") or machine_devices()[-1]).split(":")[0]


def _test(name: str, target: str, given: Args) -> Args:
    worlds = [str(TEST_WORLDS.get(_kind(given), 1))]
    defaults = {"mode": ["test"], "num_envs": worlds, "test_episodes": worlds, "visualize": ["false"]}
    return _of_a_run(name, target, given, defaults, "")


def _view(name: str, target: str, given: Args) -> Args:
    film = given.boolean("video", False) or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    defaults = {"mode": ["test"], "num_envs": ["1"], "visualize": ["false" if film else "true"],
                "video": ["true" if film else "false"], **({"test_episodes": ["1"]} if film else {})}
    return _of_a_run(name, target, given, defaults, "view")


def _of_a_run(name: str, target: str, given: Args, defaults: Mapping[str, list[str]], place: str) -> Args:
    """The arguments of a test of a run or case.

    Args:
        place: folder within the run's for what the test writes; empty: as run_folder.py says.
    """
    says = f"mimickit {name}"
    if not os.path.exists(target) or target.endswith(".txt"):
        args = _case_args(target, given)
        if args is None:
            raise _unknown(name, target)
        if args.text("mode", "train") == "test":  # it shows something and has no policy
            wanted = Args({k: tuple(v) for k, v in defaults.items()}, dict.fromkeys(defaults, says))
            return args.under(wanted.under(given)).named(name, target)
        target = str(_newest_run(case_name(args)))
    args, folder, model = _run_args(Path(target), given, ("set", *CONFIGURATIONS))
    defaults = {**defaults, "out_dir": [str(folder / place)]}
    if "agent_config" in args:
        if not model.is_file() and "model_file" not in given:
            raise UserError(f"mimickit {name} {target}: it has no model yet ({model})")
        defaults["model_file"] = [str(model)]
    if place and defaults["video"] == ["true"] and "agent_config" in args:  # the film begins where the clip begins
        args = args.with_value("set", "env.rand_reset=false", *(args.get("set") or ()))
    return args.with_defaults(defaults, says).named(name, target)


# --- the other commands -----------------------------------------------------------------------------------------------


def _longcycle(words: list[str]) -> int:
    """The acceptance suite, with pytest's exit code."""
    if not (SHIPPED / "tests" / "acceptance" / "test_longcycle.py").is_file():
        raise UserError("mimickit longcycle: the acceptance suite is not part of the installed package; it runs in a "
                        "checkout of the project, after make setup (docs/longcycle.md)")
    spread = [] if "-n" in words else ["-n", "auto"]
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "longcycle", *spread, *words], cwd=SHIPPED).returncode


def _convert_agent(words: list[str]) -> None:
    from mimickit.learning.config import convert_agent_file

    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        raise UserError(f"usage: mimickit convert-agent {COMMANDS['convert-agent'].usage}")
    old = Path(words[0])
    new = Path(words[1]) if len(words) > 1 else old.with_stem(f"{old.stem}_converted")
    print(convert_agent_file(old, new))
    print(f"written: {new}")


def _one_of(words: list[str], name: str, known: Collection[str]) -> str | None:
    """The one word of ``known`` that was given, if any."""
    if len(words) > 1 or (words and words[0] not in known):
        raise UserError(f"mimickit {name} {' '.join(words)}: allowed is one of {', '.join(known)}"
                        f"{nearest(words[0], known)}")
    return words[0] if words else None


def _completion() -> str:
    """A script for bash (zsh: after ``autoload -U bashcompinit; bashcompinit``)."""
    cases = " ".join(case.name for case in all_cases())
    flags = " ".join(f"--{flag}" for flag in FLAGS)
    return f"""_mimickit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}}
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{' '.join(COMMANDS)}" -- "$word"))
  elif [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "{flags}" -- "$word"))
  elif [ "$COMP_CWORD" = 2 ]; then COMPREPLY=($(compgen -W "{cases}" -- "$word") $(compgen -f -- "$word"))
  else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _mimickit mimickit"""
