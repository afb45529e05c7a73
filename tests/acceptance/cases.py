"""Cases: one file ``args/<name>_args.txt`` each; what they are, what they read, and how a user may name them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.config import layers, load_yaml
from mimickit.util.args import Args
from mimickit.util.failures import UserError
from mimickit.util.names import nearest

SUFFIX = "_args.txt"
NOT_YET = ("lcp", "smp")  # methods outside the acceptance set; --cases still takes them by name
DEFAULT = "default"  # the agent file that the args file names
TUNED = "tuned"
VARIANTS = (TUNED, "hiutil")  # agent files <agent>_<variant>.yaml, tried in this order before the args file's own
TRAIN_STAGES = ("probe_train", "long_train", "test", "viz")
VIEW_STAGES = ("bootstrap_train", "test", "viz")


@dataclass(frozen=True)
class Case:
    """One case. Paths are relative to the repository root, as the args file gives them.

    Attributes:
        name: file name without ``_args.txt``; the test id.
        trainable: mode is train and an agent is named.
        num_envs: environments per device the args file asks for.
    """

    name: str
    args_file: str
    trainable: bool
    num_envs: int
    mode: str
    env_config: str
    engine_config: str
    agent_config: str

    @property
    def file(self) -> str:
        """File name of the args file: the ``case`` column of the tables."""
        return Path(self.args_file).name

    @property
    def stem(self) -> str:
        """Folder name under ``runs/``."""
        return Path(self.args_file).stem

    @property
    def method(self) -> str:
        return self.name.split("_")[0]

    @property
    def case_type(self) -> str:
        return "trainable" if self.trainable else "nontrainable"

    @property
    def stages(self) -> tuple[str, ...]:
        return TRAIN_STAGES if self.trainable else VIEW_STAGES

    def variants(self, root: Path, only: Sequence[str] = ()) -> dict[str, str]:
        """Agent configurations to try, in order: those of ``VARIANTS`` whose file exists, then ``default``.

        Args:
            only: leave out the others; ``default`` where none is left.
        """
        if not self.trainable:
            return {DEFAULT: ""}
        config = Path(self.agent_config)
        files = {name: config.with_name(f"{config.stem}_{name}{config.suffix}") for name in VARIANTS}
        found = {name: str(file) for name, file in files.items() if (root / file).is_file()}
        known = {**found, DEFAULT: self.agent_config}
        return {name: file for name, file in known.items() if not only or name in only} or {DEFAULT: self.agent_config}


def discover(root: Path, include_newer: bool = False) -> list[Case]:
    """All cases of ``root/args``, sorted by name.

    Raises:
        UserError: an args file lacks what every case needs.
    """
    files = sorted((root / "args").glob(f"*{SUFFIX}"), key=lambda path: path.name.removesuffix(SUFFIX))
    cases = [read_case(root, path) for path in files]
    return [case for case in cases if include_newer or case.method not in NOT_YET]


def read_case(root: Path, path: Path) -> Case:
    """Read one args file. Raises UserError for a file without ``--env_config`` or with a wrong number or mode."""
    args = Args.from_argv(["--arg_file", str(path)])
    if not args.text("env_config"):
        raise UserError(f"{path}: --env_config is missing, every case needs one")
    mode = args.text("mode", "train", choices=("train", "test"))
    agent = args.text("agent_config", "")
    return Case(
        name=path.name.removesuffix(SUFFIX),
        args_file=str(path.relative_to(root)),
        trainable=mode == "train" and bool(agent),
        num_envs=args.integer("num_envs", 1, minimum=1),
        mode=mode,
        env_config=args.text("env_config"),
        engine_config=args.text("engine_config", ""),
        agent_config=agent,
    )


def select(root: Path, names: Sequence[str] | None, nontrainable: bool = True) -> list[Case]:
    """Cases named by name, stem or file name (all of the acceptance set when ``names`` is None), sorted.

    Raises:
        UserError: unknown names, all in one message with the nearest known ones.
    """
    chosen = discover(root, include_newer=names is not None)
    if names is not None:
        known = {case.name: case for case in chosen}
        wanted = {Path(name).name.removesuffix(".txt").removesuffix("_args") for name in names}
        unknown = [f"unknown case '{name}'{nearest(name, known)}" for name in sorted(wanted - known.keys())]
        if unknown:
            raise UserError("; ".join(unknown) + f"; known are: {', '.join(known) or 'none, args/ holds no case'}")
        chosen = [case for case in chosen if case.name in wanted]
    return [case for case in chosen if nontrainable or case.trainable]


@dataclass(frozen=True)
class Inputs:
    """Files that decide what a case does; ``sha256`` maps each path to its digest or to ``missing``."""

    char_file: str
    motion_file: str
    sha256: Mapping[str, str]


def read_inputs(root: Path, case: Case, engine_config: str, only: Sequence[str] = ()) -> Inputs:
    """Find and hash every input of a case: args, engine, env, agents, character, objects and all clips."""
    env = _yaml(root / case.env_config)
    motion, character = str(env.get("motion_file") or ""), str(env.get("char_file") or "")
    objects = [o.get("file") or o.get("asset_file") for o in env.get("objects") or [] if isinstance(o, dict)]
    clips: list[Any] = []
    if motion.endswith((".yaml", ".yml")):
        clips = [entry.get("file") for entry in _yaml(root / motion).get("motions") or [] if isinstance(entry, dict)]
    agents = [file for variant in case.variants(root, only).values() for file in _layers(root, variant)]
    paths = [case.args_file, engine_config, case.env_config, *agents, character, motion]
    paths += [str(path) for path in (*objects, *clips)]
    return Inputs(character, motion, {path: sha256(root / path) for path in dict.fromkeys(paths) if path})


def sha256(path: Path) -> str:
    """Hex digest of a file's content, or ``missing``."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_rows(
    root: Path, cases: Iterable[Case], engine_config: str, only: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Rows of ``case_manifest.tsv``; the sha256 column holds ``path=digest`` pairs separated by spaces."""
    rows = []
    for case in cases:
        inputs = read_inputs(root, case, engine_config, only)
        rows.append({
            "case": case.file, "method": case.method, "case_type": case.case_type, "mode": case.mode,
            "agent_config": case.agent_config, "env_config": case.env_config, "engine_config": engine_config,
            "motion_file": inputs.motion_file, "char_file": inputs.char_file, "num_envs": str(case.num_envs),
            "sha256": " ".join(f"{path}={digest}" for path, digest in inputs.sha256.items()),
        })
    return rows


def _layers(root: Path, path: str) -> list[str]:
    """An agent file and the files that it stands on, as paths below ``root``."""
    try:
        return [str(file.resolve().relative_to(root.resolve())) for file, _ in layers(root / path)] if path else []
    except (UserError, ValueError):  # reported by the run program
        return [path]


def _yaml(path: Path) -> dict[str, Any]:
    """A yaml mapping, or an empty one: a wrong file is the run program's business, which reports it in full."""
    try:
        return load_yaml(path)
    except UserError:
        return {}
