"""``mimickit train CASE``, ``mimickit test RUN`` and so on: short names for longer command lines.

A command becomes :class:`~mimickit.util.args.Args` like any command line: the user's options win over the args file or
the run folder, and those over the command's defaults. From there on run.py makes no difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mimickit import catalog
from mimickit.cases import TUNED, Case, all_cases, tuned_worlds, with_variant
from mimickit.config import load_layered, load_yaml, parse_yaml
from mimickit.next_steps import short
from mimickit.request_reader import CONFIGURATIONS, check_writable, machine_devices, read_devices, read_request
from mimickit.util.args import COMMAND_LINE, Args, parse_tokens
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import EXIT_OK, AssetMissingError, UserError
from mimickit.util.logging import warn
from mimickit.util.manifest import numbered
from mimickit.util.names import nearest
from mimickit.util.options import BEST_EPISODES, OPTIONS, OUT_DIR, SHORT, help_groups, help_rows
from mimickit.util.run_folder import case_name, source_folder

MAX_SAMPLES = 30_000_000  # every shipped case learns in this many (docs/learning.md)
OUTPUT_SAMPLES, OUTPUT_SECONDS = 3_000_000, 120  # between checkpoints, at most
WORLDS_PER_EVAL_WORLD = 64
CPU_WORLDS = 128  # one iteration of thousands takes a CPU minutes
SIM2SIM_EPISODES = 32
TEST_WORLDS = {"cuda": 1024, "cpu": 32}  # side by side, an episode each
USED_MOST = ("num_envs", "max_samples", "devices", "out_dir", "set", "variant", "rand_seed", "test_episodes", "video",
             "overwrite")
PRIOR_OPTIONS = ("out_dir", "devices", "rand_seed", "overwrite", "set")
NOT_CONTINUED = {"arg_file", "mode", "variant", "out_dir", "resume", "overwrite", "model_file", "result_file"}


@dataclass(frozen=True)
class Command:
    """How a command is used, and what it does; the mode whose options it takes, if any, and its own defaults."""

    usage: str
    does: str
    more: str = ""
    mode: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)


COMMANDS = {
    "train": Command(
        "CASE_OR_RUN [--flags]", "train a case, or continue a run",
        "CASE is a name of `mimickit list`, or an args file. RUN is a run folder: its training continues exactly from "
        "its newest checkpoint, with the options it was started with.",
        "train", {
            "num_envs": "the args file's; with --variant tuned what it is tuned for, at most; on a CPU "
                        f"{CPU_WORLDS}",
            "max_samples": f"{MAX_SAMPLES:,}", "output_samples": f"{OUTPUT_SAMPLES:,}",
            "output_seconds": str(OUTPUT_SECONDS),
            "eval_envs": f"one of {WORLDS_PER_EVAL_WORLD} worlds; of few worlds {BEST_EPISODES}, or one of 4"}),
    "test": Command(
        "RUN_OR_CASE [--flags]", "measure what a run learned",
        "RUN is a run folder: its model.pt is tested, which is the newest; RUN/checkpoints/best tests that of the best "
        "evaluation. RUN may also be another checkpoint or a model file of a run. Case, agent, clip and --set are "
        f"those of the training. CASE stands for its newest run below {OUT_DIR}.",
        "test", {"num_envs": f"{TEST_WORLDS['cuda']}; on a CPU {TEST_WORLDS['cpu']}", "test_episodes": "--num_envs",
                 "out_dir": "RUN/test", "visualize": "false"}),
    "view": Command(
        "RUN_OR_CASE [--flags]", "watch what a run learned, or a clip",
        "RUN and CASE as for test; or CASE is one that shows a clip (view_motion_...). A window opens; without a "
        "display, or with --video true, one episode is filmed from the clip's beginning. --web serves a page instead, "
        "to watch, pause, step and push in a browser; --save_html FILE.html records one episode as such a page.",
        "test", {"num_envs": "1", "test_episodes": "of a film 1", "out_dir": "RUN/view",
                 "visualize": "true where there is a display, or with --web",
                 "video": "true without a display, --web and --save_html"}),
    "export": Command(
        "RUN_OR_CASE [--flags]", "write a policy as ONNX, with what a robot needs to know to run it",
        "RUN and CASE as for test. policy.onnx, policy.json, policy.xml and reference.npz are explained in "
        "docs/deploy.md. Needs pip install 'mimickit[deploy]'.",
        "test", {"out_dir": "RUN/policy"}),
    "sim2sim": Command(
        "RUN_OR_POLICY [--flags]", "measure an exported policy in plain MuJoCo, or watch it there",
        "POLICY is the folder of an export. A RUN or CASE is exported first, to the folder policy below --out_dir. The "
        "measures are those of test. --visualize true opens MuJoCo's viewer instead.",
        "test", {"test_episodes": str(SIM2SIM_EPISODES), "devices": "one process for each core, 8 at most",
                 "out_dir": "RUN/sim2sim, POLICY/sim2sim", "rand_seed": "0", "visualize": "false"}),
    "prior": Command(
        "CASE_OR_FILE [--flags]", "train the motion prior of an SMP case",
        "CASE is a case of SMP: its prior is trained to where its agent file looks for it. FILE is a prior's file "
        "(data/priors); its prior goes to --out_dir. A prior that is trained already is left as it is; one that is "
        "not finished goes on. Options: --out_dir, --devices (one), --rand_seed, --overwrite, and --set KEY=VALUE with "
        "keys of the prior's file, such as num_iterations=1000."),
    "list": Command("[cases|characters|clips]", "show what there is"),
    "show": Command(
        "CASE_OR_RUN [--flags]", "show the configuration in effect, and which file each value comes from",
        "Takes the options of train (mimickit train --help), to show their effect beforehand."),
    "plot": Command("RUN... [--y COLUMN ...] [--out FILE]", "draw the curves of a run's log, or of several"),
    "longcycle": Command("[options]", "run the acceptance suite"),
    "report": Command("ROOT... [--serve] [--out DIR]", "write or serve the page of the acceptance suite's results"),
    "bisect": Command("--case C --good REV --bad REV", "find the commit that made a case worse"),
    "convert-agent": Command("OLD.yaml [NEW.yaml]", "write an agent file from before February 2026 in today's layout"),
    "convert-urdf": Command("ROBOT.urdf [ROBOT.xml]", "write the MJCF of a URDF file, to give its joints gains"),
    "completion": Command("", "print completion for bash and zsh: eval \"$(mimickit completion)\""),
}
WITH_PARSER = {  # commands that read their own options
    "longcycle": "mimickit.longcycle.options", "plot": "mimickit.util.plot", "report": "mimickit.longcycle.results.cli",
    "bisect": "mimickit.longcycle.results.bisect"}
WITHOUT_STAGE = ("prior", "list", "show", "plot", "longcycle", "report", "bisect", "convert-agent", "convert-urdf",
                 "completion")
DEPLOYING = ("export", "sim2sim")


def is_command(argv: Sequence[str]) -> bool:
    """Whether a command line begins with a command.

    Raises:
        UserError: it begins with a word that is nearly one.
    """
    if not argv or argv[0].startswith("-"):
        return False
    hint = " (did you mean 'report compare'?)" if argv[0] == "compare" else nearest(argv[0], COMMANDS)
    if argv[0] not in COMMANDS and hint:
        raise UserError(f"unknown command '{argv[0]}'{hint}; there are {', '.join(COMMANDS)}")
    return argv[0] in COMMANDS


def read_args(argv: Sequence[str]) -> Args:
    """The arguments of a command line, of flags alone or of a command that takes options.

    Raises:
        UserError: no or an unknown case or run, or as :meth:`Args.from_argv`.
    """
    if not is_command(argv):
        args = Args.from_argv(argv)
        args.check()
        return args
    name, words = argv[0], list(argv[1:])
    if not words or words[0].startswith("-"):
        raise UserError(f"mimickit {name}: name it first: mimickit {name} {COMMANDS[name].usage} (mimickit list shows "
                        "the cases)")
    values, stray = parse_tokens(words[1:])
    if "arg_file" in values:
        raise UserError(f"mimickit {name} {words[0]}: --arg_file names a case too; give one of them")
    given = Args(values, dict.fromkeys(values, COMMAND_LINE), {COMMAND_LINE: tuple(stray)})
    given.named(name, words[0]).check()
    given = replace(given, remarks=_without_effect(name, given))
    read = {"train": _train, "show": _train, "test": _test, "view": _view, "export": _export, "sim2sim": _sim2sim}
    args = read[name](name, words[0], given)
    args.check()
    return args


def _without_effect(name: str, given: Args) -> tuple[str, ...]:
    """Warnings about options of another command; those about --video and --visualize in a training come later."""
    mode = COMMANDS[name].mode or "train"
    return tuple(f"--{flag} is for mimickit {only}: it has no effect on mimickit {name}" for flag in given.values
                 if (only := OPTIONS[flag].only) not in ("", mode)
                 and (name, flag) not in (("train", "video"), ("train", "visualize")))


def run_command(argv: Sequence[str]) -> int:
    """Run a command that is no stage of a run; returns the exit code."""
    name, words = argv[0], list(argv[1:])
    if name == "longcycle":
        return _longcycle(words)
    if name in WITH_PARSER:
        return import_module(WITH_PARSER[name]).main(words)
    if name == "list":
        print(catalog.listing(_one_of(words, "list", catalog.LISTS)))
    elif name == "show":
        args = read_args(argv)
        for sentence in args.remarks:
            warn(sentence)
        print(catalog.configuration(args))
    elif name in DEPLOYING:
        _deploy(read_args(argv))
    elif name == "prior":
        _prior(words)
    elif name == "convert-agent":
        _convert_agent(words)
    elif name == "convert-urdf":
        _convert_urdf(words)
    else:
        print(_completion())
    return EXIT_OK


def help_text() -> str:
    """The text of ``mimickit --help``."""
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    lines = ["Trains physics-based characters to imitate motion clips, and tests and shows what they learned.", ""]
    lines += [f"  mimickit {f'{name} {command.usage}':{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join([
        *lines, "", "The options that are used most:", *help_rows(USED_MOST, short=True), "",
        "mimickit train --help, mimickit test --help and so on: all options of a command, and their defaults.",
        "mimickit --arg_file args/<case>_args.txt [--mode train|test] [--flag value ...]: as users of MimicKit know it."
    ])


def help_of(argv: Sequence[str]) -> str:
    """The text of ``mimickit COMMAND --help``."""
    name, command = argv[0], COMMANDS[argv[0]]
    if name == "longcycle":
        _need_pytest()
    if name in WITH_PARSER:
        return import_module(WITH_PARSER[name]).parser().format_help().rstrip()
    lines = [f"usage: mimickit {name} {command.usage}".rstrip(), "", f"{command.does[0].upper()}{command.does[1:]}."]
    lines += ["", *textwrap.wrap(command.more, 116)] if command.more else []
    if command.mode:
        lines += [*help_groups(command.mode, command.defaults), "",
                  "Of several mentions of a flag the first counts; the command line is read before the args file. "
                  "Files of args/", "and data/ are looked up in the working directory, then among the shipped ones."]
    return "\n".join(lines)


# --- what a case or a run says ----------------------------------------------------------------------------------------


def find_case(name: str) -> Case | None:
    """A case by its name or that of its args file."""
    known = {case.name: case for case in all_cases()}
    return known.get(Path(name).name.removesuffix(".txt").removesuffix("_args"))


def _case_args(target: str, given: Args) -> Args | None:
    """The given options on top of a case's args file; None if ``target`` is no case."""
    if target.endswith(".txt") and os.path.isfile(target):
        file = target
    elif (case := find_case(target)) is not None:
        file = case.args_file
    else:
        return None
    return Args.from_argv(["--arg_file", file]).under(given)


def _run_args(path: Path, given: Args, keep: Collection[str]) -> tuple[Args, Path, Path]:
    """The given options on top of those of a run; its folder; its model.

    Args:
        path: the run folder, one of its checkpoints, or a model file in either.
        keep: the options to take from the run.

    Raises:
        UserError: not a run folder, or unreadable.
    """
    place = path.parent if path.is_file() else path
    folder = source_folder(place)
    model = path if path.is_file() else place / "model.pt"
    try:
        known = load_yaml(folder / "run_config.yaml").get("args")
    except AssetMissingError:
        raise UserError(f"{folder} is not the folder of a training: it has no run_config.yaml") from None
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
    """The run of a case with the newest model. Raises UserError if there is none."""
    models = sorted(Path(OUT_DIR, case).glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in models if (path.parent / "run_config.yaml").is_file()]
    if not found:
        raise UserError(f"{case}: no run of this case in {Path(OUT_DIR, case)}; mimickit train {case} makes one, or "
                        "name a run folder")
    return found[-1]


def _gone(name: str, target: Path) -> UserError | None:
    """What to say of a checkpoint that a run does not have; None if none is named."""
    run = next((above.parent for above in target.parents if above.name == "checkpoints"), None)
    if run is None or not run.is_dir():
        return None
    has = [path.name for path in numbered(run / "checkpoints")]
    why = (f"it is written when an evaluation of {BEST_EPISODES} episodes or more is the best so far"
           if target.relative_to(run).parts[1] == "best" else "the newest two are kept")
    return UserError(f"mimickit {name} {target}: this run has no {target.relative_to(run)}: {why}; there is "
                     + (", ".join(has) or "no checkpoint yet"))


def _unknown(name: str, target: str) -> UserError:
    names = [case.name for case in all_cases()]
    begins = [known for known in names if known.startswith(target)]
    hint = f" ({len(begins)} begin so: {', '.join(begins)})" if len(begins) > 1 else nearest(target, names)
    what = "case" if name in ("train", "prior") else "case, and no run folder"
    return UserError(f"mimickit {name} {target}: no such {what}{hint}; mimickit list shows the cases")


# --- train, test, view ------------------------------------------------------------------------------------------------


def _train(name: str, target: str, given: Args) -> Args:
    if os.path.isdir(target):
        if given["overwrite"]:
            raise UserError(f"mimickit train {target} continues that training, and --overwrite would remove it: to "
                            f"train anew in its folder name the case: mimickit train CASE --out_dir {target} "
                            "--overwrite")
        args, folder, _ = _run_args(Path(target), given, OPTIONS.keys() - NOT_CONTINUED)
        resume = {} if name == "show" else {"resume": [target]}
        return args.with_defaults({"mode": ["train"], **resume}, str(folder)).named(name, target)
    args = _case_args(target, given)
    if args is None:
        raise _unknown(name, target)
    args = args.named(name, target)
    if args["mode"] == "test" and "mode" not in given:
        if name == "show":
            return args
        raise UserError(f"mimickit train {target}: this case has nothing to learn; try mimickit view {target}")
    worlds, processes = args["num_envs"], _processes(args)
    if with_variant(args)[1] == TUNED and args.source.get("num_envs") != COMMAND_LINE:
        at_once, why = ((tuned_worlds(args["agent_config"]), f"variant {TUNED}") if _kind(args) == "cuda" else
                        (CPU_WORLDS, "mimickit train, on a CPU"))
        if worlds > at_once // processes:
            worlds = max(1, at_once // processes)
            args = args.with_value("num_envs", str(worlds), source=why)
    evaluating = max(worlds // WORLDS_PER_EVAL_WORLD, min(-(-BEST_EPISODES // processes), worlds // 4))
    return args.with_defaults({"mode": ["train"], "max_samples": [str(MAX_SAMPLES)], "eval_envs": [str(evaluating)],
                               "output_samples": [str(OUTPUT_SAMPLES)], "output_seconds": [str(OUTPUT_SECONDS)]},
                              "mimickit train")


def _processes(args: Args) -> int:
    """How many processes will train."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else len(args["devices"] or [1])


def _kind(args: Args) -> str:
    """``cuda`` or ``cpu``: where this will run."""
    return (args["devices"] or machine_devices()[-1:])[0].split(":")[0]


def _test(name: str, target: str, given: Args) -> Args:
    worlds = str(given["num_envs"] if "num_envs" in given else TEST_WORLDS.get(_kind(given), 1))
    defaults = {"mode": ["test"], "num_envs": [worlds], "test_episodes": [worlds], "visualize": ["false"]}
    return _of_a_run(name, target, given, defaults, _place("test", given) if "disturb" in given else "")


def _view(name: str, target: str, given: Args) -> Args:
    live = given["viewer"] == "web" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    page = "save_html" in given
    film = given["video"] or not (live or page)
    recorded = {"test_episodes": ["1"]} if film or page else {}
    defaults = {"mode": ["test"], "num_envs": ["1"], "visualize": ["false" if recorded else "true"],
                "video": ["true" if film else "false"], **recorded}
    return _of_a_run(name, target, given, defaults, "view")


def _export(name: str, target: str, given: Args) -> Args:
    return _of_a_run(name, target, given, {"mode": ["test"]}, "policy")


def _sim2sim(name: str, target: str, given: Args) -> Args:
    from mimickit.deploy.program import is_policy

    defaults = {"mode": ["test"], "test_episodes": [str(SIM2SIM_EPISODES)], "visualize": ["false"], "rand_seed": ["0"]}
    if is_policy(target):
        folder = Path(target) if os.path.isdir(target) else Path(target).parent
        return given.with_defaults({**defaults, "out_dir": [str(folder / _place(name, given))]},
                                   f"mimickit {name}").named(name, target)
    return _of_a_run(name, target, given, defaults, _place(name, given))


def _place(name: str, given: Args) -> str:
    """Where a test goes below its run: one under other disturbances than in training has a place of its own."""
    return f"{name}_{Path(given['disturb']).stem}" if given["disturb"] is not None else name


def _of_a_run(name: str, target: str, given: Args, defaults: Mapping[str, list[str]], place: str) -> Args:
    """The arguments of a test of a run or a case.

    Args:
        place: subfolder of the run's folder to write to; empty: as run_folder.py says.
    """
    says = f"mimickit {name}"
    if not os.path.exists(target) or target.endswith(".txt"):
        args = _case_args(target, given)
        if args is None:
            raise _gone(name, Path(target)) or _unknown(name, target)
        if args["mode"] == "test":  # a clip or a dof test: there is no policy
            wanted = Args({k: tuple(v) for k, v in defaults.items()}, dict.fromkeys(defaults, says))
            return args.under(wanted.under(given)).named(name, target)
        target = str(_newest_run(case_name(args)))
    args, folder, model = _run_args(Path(target), given, ("set", *CONFIGURATIONS))
    defaults = {**defaults, "out_dir": [str(folder / place)]}
    if "agent_config" in args:
        if not model.is_file() and "model_file" not in given:
            raise UserError(f"mimickit {name} {target}: there is no model yet ({model})")
        defaults["model_file"] = [str(model)]
    if place == "view" and "test_episodes" in defaults and "agent_config" in args:  # begin where the clip begins
        args = args.with_value("set", "env.rand_reset=false", *args["set"])
    return args.with_defaults(defaults, says).named(name, target)


def _deploy(args: Args) -> None:
    """Export a policy, or run an exported one in plain MuJoCo."""
    from mimickit.deploy import program
    from mimickit.envs.disturbance_config import read_disturbances

    name, target = args.command
    program.need(name)
    if args["disturb"] is not None:
        read_disturbances(args["disturb"])  # a mistake is told before anything is exported
    for flag in ("out_dir", "result_file", "video_file"):
        check_writable(args, flag)
    out_dir = policy = Path(args["out_dir"])
    if name == "export" or not program.is_policy(target):
        policy = out_dir if name == "export" else out_dir / "policy"
        kept = {flag: words for flag, words in args.values.items() if flag not in ("overwrite", "disturb")}
        request = read_request(Args(kept, args.source, command=args.command))
        program.export(request, policy, args["overwrite"] or name == "sim2sim")
        print(f"policy: {policy}")
    if name == "sim2sim":
        program.sim2sim(args, Path(target) if program.is_policy(target) else policy, out_dir)
    else:
        print(f"try it: {short('sim2sim', policy, '--video', 'true')}")


# --- the other commands -----------------------------------------------------------------------------------------------


def _longcycle(words: list[str]) -> int:
    """The acceptance suite in the checkout, or of an installed package in the working directory; pytest's exit code."""
    _need_pytest()
    command = [sys.executable, "-m", "pytest", "-m", "longcycle", *([] if "-n" in words else ["-n", "auto"])]
    checkout = (SHIPPED / "conftest.py").is_file()
    if not checkout:
        command += ["-p", "mimickit.longcycle.plugin", "--rootdir=.", str(SHIPPED / "tests/acceptance")]
    return subprocess.run([*command, *words], cwd=SHIPPED if checkout else None).returncode


def _prior(words: list[str]) -> None:
    """Train the prior of a case or of a prior's file."""
    if not words or words[0].startswith("-"):
        raise UserError(f"usage: mimickit prior {COMMANDS['prior'].usage}")
    values, stray = parse_tokens(words[1:])
    args = Args(values, dict.fromkeys(values, COMMAND_LINE), {COMMAND_LINE: tuple(stray)})
    args.check()
    if wrong := sorted(values.keys() - {*PRIOR_OPTIONS}):
        raise UserError(f"mimickit prior {words[0]}: --{wrong[0]} is not for priors; allowed are "
                        f"{', '.join(f'--{name}' for name in PRIOR_OPTIONS)}")
    changes = {key: parse_yaml(value, f"--set {key}") for key, _, value in (x.partition("=") for x in args["set"])}
    device, *more = read_devices(args)
    if more:
        raise UserError(f"mimickit prior {words[0]}: --devices {device} {' '.join(more)}: a prior is trained on one")
    file, out_dir = _prior_of(words[0])
    from mimickit.learning.diffusion import load_prior_config
    from mimickit.prior import train_prior

    out_dir = Path(args["out_dir"]) if "out_dir" in args else out_dir
    train_prior(load_prior_config(file, changes), out_dir, device, args["rand_seed"] or 0, args["overwrite"])
    print(f"prior: {out_dir / 'model.pt'}")


def _prior_of(target: str) -> tuple[Path, Path]:
    """A prior's file and the folder it is trained to, of a case or of the file."""
    if target.endswith((".yaml", ".yml")):
        return locate(target), Path(OUT_DIR, "priors", Path(target).stem)
    from mimickit.learning.config import SMPConfig, parse_agent_config

    if (args := _case_args(target, Args({}, {}))) is None:
        raise _unknown("prior", target)
    file = with_variant(args)[0]["agent_config"]
    agent = parse_agent_config(load_layered(locate(file)), file) if file else None
    if not isinstance(agent, SMPConfig):
        raise UserError(f"mimickit prior {target}: this case has no motion prior; those of agent_name SMP have")
    return agent.smp_prior_cfg, agent.smp_prior_model.parent


def _need_pytest() -> None:
    if missing := [name for name in ("pytest", "pytest_timeout", "xdist") if find_spec(name) is None]:
        raise UserError(f"mimickit longcycle: not installed: {', '.join(missing)}; pip install 'mimickit[test]'")


def _convert_agent(words: list[str]) -> None:
    from mimickit.learning.config import convert_agent_file

    old, new = _two_files(words, "convert-agent")
    new = new or old.with_stem(f"{old.stem}_converted")
    print(convert_agent_file(old, new))
    print(f"written: {new}")


def _convert_urdf(words: list[str]) -> None:
    from mimickit.util.mjcf_file import convert_urdf

    urdf, mjcf = _two_files(words, "convert-urdf")
    print(convert_urdf(urdf, mjcf or urdf.with_suffix(".xml")))


def _two_files(words: list[str], name: str) -> tuple[Path, Path | None]:
    """The file to convert, and the one to write if it was given."""
    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        raise UserError(f"usage: mimickit {name} {COMMANDS[name].usage}")
    return Path(words[0]), Path(words[1]) if len(words) > 1 else None


def _one_of(words: list[str], name: str, known: Collection[str]) -> str | None:
    """The one word of ``known`` that was given, if any."""
    if len(words) > 1 or (words and words[0] not in known):
        raise UserError(f"mimickit {name} {' '.join(words)}: allowed is one of {', '.join(known)}"
                        f"{nearest(words[0], known)}")
    return words[0] if words else None


def _completion() -> str:
    """A script for bash (zsh: after ``autoload -U bashcompinit; bashcompinit``)."""
    cases = " ".join(case.name for case in all_cases())
    flags = " ".join(f"--{name}" for name in (*OPTIONS, *SHORT))
    values = "\n".join(f'  elif [ "$before" = --{name} ]; then COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"))'
                       for name, option in OPTIONS.items()
                       if (words := option.choices or (("true", "false") if option.kind is bool else ())))
    return f"""_mimickit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{' '.join(COMMANDS)}" -- "$word"))
  elif [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "{flags}" -- "$word"))
{values}
  elif [ "$COMP_CWORD" = 2 ]; then COMPREPLY=($(compgen -W "{cases}" -- "$word") $(compgen -f -- "$word"))
  else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _mimickit mimickit"""
