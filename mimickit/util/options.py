"""The options of the program: parsing, checks, ``--help``, completion and the reference page come from this table."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from mimickit.util.assets import DEFAULT_ENGINE_FILE
from mimickit.util.failures import UserError
from mimickit.util.logging import LoggerKind
from mimickit.util.names import nearest

UNLIMITED = 2**63 - 1
DEFAULT = "default"  # the agent file that the args file names
ROBUST = "robust"  # the environment file <env>_robust.yaml
VARIANTS = ("tuned", "hiutil")  # agent files <agent>_<variant>.yaml, in order of preference
OUT_DIR = "output/"
BEST_EPISODES = 8  # of an evaluation that may say which policy is the best so far
TRUE_WORDS = frozenset({"true", "t", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "f", "0", "no", "off"})


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        kind: ``str``, ``int``, ``float`` or ``bool``. An int may be written ``2e9`` or ``100_000``.
        help: what it does.
        default: its value where it is not given.
        low, high: bounds, inclusive.
        choices: all allowed values; none: any.
        value: how a value is written in help; none: derived from the kind.
        default_text: the default in words, where the program works it out.
        suffix: how a file name must end.
        many: it takes several values, and its value is a tuple.
        bare: it may be given without a value; a truth value always may.
        only: the mode that it is for; empty: both.
    """

    kind: type
    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    value: str = ""
    default_text: str = ""
    suffix: str = ""
    many: bool = False
    bare: bool = False
    only: str = ""

    @property
    def form(self) -> str:
        """How a value is written: ``N``, ``KEY=VALUE ...``."""
        kinds = {str: "TEXT", int: "N", float: "X", bool: "BOOL"}
        value = self.value or "|".join(self.choices) or kinds[self.kind]
        return f"{value} ..." if self.many else f"[{value}]" if self.bare else value

    @property
    def usage(self) -> str:
        """The form, and the default: ``N [1]``."""
        return f"{self.form} [{self.shown_default}]" if self.shown_default else self.form

    @property
    def shown_default(self) -> str:
        """The default as text; empty where there is none."""
        if self.default_text or self.default in (None, ()):
            return self.default_text
        return str(self.default).lower() if self.kind is bool else str(self.default)

    def parse(self, words: Sequence[str]) -> Any:
        """The value that words on a command line stand for.

        Raises:
            ValueError: they stand for none; the message says what is allowed.
        """
        if not words:
            if self.kind is bool:
                return True
            if self.bare:
                return None
            raise ValueError(f"needs at least one value: {self.value}" if self.many else "needs a value")
        if self.many:
            return tuple(words)
        if len(words) > 1:
            raise ValueError("takes one value")
        word = words[0]
        if self.kind is bool:
            if word.lower() not in TRUE_WORDS | FALSE_WORDS:
                raise ValueError("allowed are true and false")
            return word.lower() in TRUE_WORDS
        if self.kind is str:
            if self.choices and word not in self.choices:
                raise ValueError(f"allowed are {', '.join(self.choices)}{nearest(word, self.choices)}")
            if not word.lower().endswith(self.suffix):
                raise ValueError(f"the name must end in {self.suffix}")
            return word
        return self._number(word)

    def _number(self, word: str) -> float | int:
        try:
            number = float(word)
        except ValueError:
            raise ValueError("a number is needed") from None
        if not math.isfinite(number):
            raise ValueError("a finite number is needed")
        if self.kind is int:
            if number != int(number):
                raise ValueError("a whole number is needed")
            digits = word.replace("_", "")
            number = int(digits) if digits.lstrip("+-").isdecimal() else int(number)  # exact beyond 2**53
        if self.low is not None and number < self.low:
            raise ValueError(f"must be at least {self.low:g}")
        if self.high is not None and number > self.high:
            raise ValueError(f"must be at most {self.high}")
        return number


GROUPS: dict[str, dict[str, Option]] = {
    "What to run": {
        "arg_file": Option(str, "read more options from this file; the command line wins", value="FILE"),
        "mode": Option(str, "learn, or run episodes with a policy as it is", "train", choices=("train", "test")),
        "env_config": Option(str, "environment yaml; required, here or in the args file", value="FILE"),
        "engine_config": Option(str, "physics yaml", DEFAULT_ENGINE_FILE, value="FILE"),
        "agent_config": Option(str, "agent yaml; without one nothing is learned and all actions are 0", value="FILE"),
        "variant": Option(
            str, "hyper-parameters: the file <agent>_<variant>.yaml beside the agent file that the args file names, or "
            "that file itself (default). --agent_config on the command line wins. robust: the environment file "
            "<env>_robust.yaml (docs/robust.md), with the hyper-parameters that are taken without --variant",
            choices=(*VARIANTS, DEFAULT, ROBUST), default_text="tuned where there is one"),
        "set": Option(
            str, "override yaml keys: env.episode_length=5 agent.model.action_std=0.1 engine.sim_freq=120", (),
            value="KEY=VALUE", many=True),
        "rand_seed": Option(int, "seed of all random numbers; process r uses seed + 41 r", low=0, high=2**62,
                            default_text="from the clock"),
    },
    "On what": {
        "devices": Option(
            str, "one process for each; under torchrun, process r of a host takes the r-th", value="cpu|cuda:I",
            many=True, default_text="cuda:0, else cpu"),
        "num_envs": Option(int, "worlds of each process", 1, low=1, high=2**31 - 1),
        "master_port": Option(int, "port of the process group", low=1, high=65535, default_text="a free one"),
    },
    "How long": {
        "max_samples": Option(
            int, "stop training after this many samples, of all processes and all runs that it continues", UNLIMITED,
            low=1, high=UNLIMITED, default_text="no limit", only="train"),
        "max_iters": Option(
            int, "stop after this many iterations of this process, with a checkpoint", low=1,
            high=UNLIMITED, only="train"),
        "time_budget_hours": Option(float, "stop after this many hours of this process", low=0.0, only="train"),
        "test_episodes": Option(
            int, "how many episodes to run", UNLIMITED, low=1, high=UNLIMITED, default_text="no limit", only="test"),
        "statistics_episodes": Option(
            int, "run this many episodes for statistics and measures; test_return, test_episode_length and "
            "test_episodes stay those of the first --test_episodes of them", low=1, high=UNLIMITED,
            default_text="--test_episodes", only="test"),
        "uninterrupted_episodes": Option(
            int, "run this many more episodes, which no failure ends, for pos_err and time_warped_err; 0: none", low=0,
            high=UNLIMITED, default_text="--statistics_episodes, else 0", only="test"),
        "disturb": Option(
            str, "disturb the test: a set of data/disturbances (standard), a yaml file of such keys, or none "
            "(docs/robust.md)", value="none|NAME|FILE.yaml", default_text="as trained", only="test"),
        "disturbed_episodes": Option(
            int, "sim2sim: run this many more episodes, under the standard disturbances, for survival_disturbed", 0,
            low=0, high=UNLIMITED, only="test"),
        "max_episode_steps": Option(
            int, "tests and evaluations: an episode counts as ended after this many control steps. A test without "
            "--test_episodes has no such limit unless it is given", 10_000, low=1, high=2**31 - 1),
    },
    "Evaluations and checkpoints": {
        "output_samples": Option(
            int, "evaluate and save at least every N samples; whichever comes first since the last time, this or the "
            "agent's iters_per_output", low=1, high=UNLIMITED, only="train"),
        "output_seconds": Option(float, "evaluate and save at least every so many seconds", low=0.0, only="train"),
        "eval_envs": Option(
            int, "evaluate without a pause: the first N worlds of each process follow the policy as it was when the "
            "evaluation began, without randomness, while the others train. When each has ended an episode, the result "
            "is logged and the next evaluation begins. 0: training pauses and all worlds evaluate. checkpoints/best "
            f"takes evaluations of {BEST_EPISODES} episodes or more", 0, low=0,
            high=2**31 - 1, only="train"),
        "save_int_models": Option(bool, "keep the model of every output iteration", False, only="train"),
        "logger": Option(
            str, "TensorBoard or W&B besides log.txt, which is always written", "txt", choices=get_args(LoggerKind),
            only="train"),
    },
    "Where from, where to": {
        "model_file": Option(str, "start from these parameters: a model.pt of this project or of MimicKit",
                             value="FILE"),
        "resume": Option(
            str, "continue exactly, from a run folder's newest checkpoint or from one checkpoint folder. Without PATH: "
            "from --out_dir; without --out_dir: in the folder of PATH. Where the configuration has changed a warning "
            "names the keys; what the checkpoint holds stays (a fixed action_std is a parameter of the model)",
            value="PATH", bare=True, only="train"),
        "overwrite": Option(
            bool, "train in a folder that holds a training: its checkpoints, models, log, result and failures are "
            "removed once everything given has been checked", False, only="train"),
        "out_dir": Option(str, "where everything is written", OUT_DIR, value="DIR",
                          default_text="output/<case>/<date>-<n>"),
        "result_file": Option(str, "the machine-readable result", value="FILE", default_text="<out_dir>/result.json"),
    },
    "Windows and films": {
        "visualize": Option(bool, "open a window; without a display a warning says that none is opened", True,
                            only="test"),
        "viewer": Option(
            str, "gl: a window. web: a page for a browser, where no display is needed; --web is short for it. It needs "
            "pip install 'mimickit[web]'", "gl", choices=("gl", "web"), only="test"),
        "host": Option(str, "--web: address to serve on; 127.0.0.1 is seen from this machine only", "127.0.0.1",
                       value="ADDRESS", only="test"),
        "port": Option(int, "--web: port to serve on, or the next free one", 8080, low=1, high=65535, only="test"),
        "video": Option(bool, "film one episode off screen", False, only="test"),
        "video_file": Option(str, "where the film goes, with PNG frames beside it as <name>_<frame>.png",
                             value="FILE.mp4", suffix=".mp4", default_text="<out_dir>/viz.mp4", only="test"),
        "save_html": Option(str, "record one episode as a page of one file, to turn and play in any browser without "
                            "network; as --web it needs mimickit[web]", value="FILE.html", suffix=".html",
                            only="test"),
        "video_width": Option(int, "width of the film, pixels", 854, low=64, high=8192, only="test"),
        "video_height": Option(int, "height of the film, pixels", 480, low=64, high=8192, only="test"),
    },
}
SHORT = {"web": ("viewer", "web")}  # flag -> the flag and value that it stands for
OPTIONS: dict[str, Option] = {name: option for group in GROUPS.values() for name, option in group.items()}


def parse(name: str, words: Sequence[str], source: str) -> Any:
    """The value of an option. Raises UserError: the words that ``source`` gives for it stand for none."""
    try:
        return OPTIONS[name].parse(words)
    except ValueError as error:
        raise UserError(f"{' '.join([f'--{name}', *words])} ({source}): {error}") from None


def help_rows(names: Iterable[str], defaults: Mapping[str, str] | None = None, short: bool = False) -> list[str]:
    """Lines of ``--help`` about options.

    Args:
        defaults: those of a command, in words, where it has its own.
        short: what they do alone.
    """
    heads = {}
    for name in names:
        option = replace(OPTIONS[name], default_text=(defaults or {}).get(name, OPTIONS[name].default_text))
        heads[name] = f"--{name} {option.form if short else option.usage}"
    width = min(34, max(map(len, heads.values())))
    rows = []
    for name, head in heads.items():
        text = re.split(r"[;.] ", OPTIONS[name].help)[0] if short else OPTIONS[name].help
        first, *others = textwrap.wrap(text, 116 - width)
        if len(head) > width:
            rows.append(f"  {head}")
            head = ""
        rows += [f"  {head:{width}}  {first}", *(f"  {'':{width}}  {other}" for other in others)]
    return rows


def help_groups(mode: str, defaults: Mapping[str, str]) -> list[str]:
    """Lines of ``--help`` about all options of a mode but those that say which case and mode it is, by group."""
    lines = []
    for title, options in GROUPS.items():
        if names := [name for name, option in options.items()
                     if option.only in ("", mode) and name not in ("arg_file", "mode")]:
            lines += ["", f"{title}:", *help_rows(names, defaults)]
    return lines
