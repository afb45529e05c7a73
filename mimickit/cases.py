"""Cases, the variants of their hyper-parameters, and the worlds those need. Nothing heavy is imported here.

A case is a file ``args/<name>_args.txt``. Beside its agent file there may be variants ``<agent>_<variant>.yaml``; a
training takes ``tuned`` where it exists (docs/learning.md). Beside its environment file there may be
``<env>_robust.yaml`` (docs/robust.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimickit.util.args import COMMAND_LINE, Args
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import UserError
from mimickit.util.names import nearest
from mimickit.util.options import DEFAULT, ROBUST, VARIANTS

SUFFIX = "_args.txt"
NOT_YET = ("lcp", "smp")  # methods outside the acceptance set; --cases can still name them
TUNED = VARIANTS[0]
TUNED_WORLDS = 4096  # of all devices together, for the tuned variant
FEWER_WORLDS = {  # agents that need more iterations for their samples
    "amp_task_humanoid_agent": 2048, "add_smpl_agent": 2048, "amp_smpl_agent": 2048, "deepmimic_smpl_ppo_agent": 2048}
TRAIN_STAGES = ("probe_train", "long_train", "test", "viz")  # of the acceptance suite
VIEW_STAGES = ("bootstrap_train", "test", "viz")


@dataclass(frozen=True)
class Case:
    """One case. Paths are relative to the project folder, as the args file gives them.

    Attributes:
        name: file name without ``_args.txt``; the test id.
        trainable: mode is train and an agent is named.
        num_envs: environments per device the args file asks for.
        env: keys of the environment, and their values as yaml, in which a case is not as its args file says.
    """

    name: str
    args_file: str
    trainable: bool
    num_envs: int
    mode: str
    env_config: str
    engine_config: str
    agent_config: str
    env: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> list[str]:
        """``--set`` values of all stages."""
        return [f"env.{key}={value}" for key, value in self.env]

    @property
    def file(self) -> str:
        """The ``case`` column of the tables: the file name of its own args file, if it has one."""
        return f"{self.name}{SUFFIX}"

    @property
    def stem(self) -> str:
        """Folder name under ``runs/``."""
        return self.file.removesuffix(".txt")

    @property
    def method(self) -> str:
        return self.name.split("_")[0]

    @property
    def case_type(self) -> str:
        return "trainable" if self.trainable else "nontrainable"

    @property
    def stages(self) -> tuple[str, ...]:
        return TRAIN_STAGES if self.trainable else VIEW_STAGES

    @property
    def train_stage(self) -> str:
        """The stage whose model is tested."""
        return self.stages[-3]

    def variants(self, root: Path, only: Sequence[str] = ()) -> dict[str, str]:
        """Agent configurations to try, in order: those of ``VARIANTS`` whose file exists, then ``default``.

        Args:
            only: leave out the others; ``default`` where none is left.
        """
        if not self.trainable:
            return {DEFAULT: ""}
        known = variants(self.agent_config, locate(self.agent_config, root).parent)
        return {name: file for name, file in known.items() if not only or name in only} or {DEFAULT: self.agent_config}


def discover(root: Path, include_newer: bool = False) -> list[Case]:
    """All cases of ``root/args``, sorted by name; the shipped ones where that folder does not exist.

    Raises:
        UserError: an args file lacks what every case needs.
    """
    files = sorted(locate("args", root).glob(f"*{SUFFIX}"), key=lambda path: path.name.removesuffix(SUFFIX))
    cases = [read_case(path) for path in files]
    return [case for case in cases if include_newer or case.method not in NOT_YET]


def read_case(path: Path) -> Case:
    """Read one args file. Raises UserError if it has no ``--env_config``, or a wrong number or mode."""
    args = Args.from_argv(["--arg_file", str(path)])
    if not args["env_config"]:
        raise UserError(f"{path}: --env_config is missing, every case needs one")
    mode = args["mode"]
    agent = args["agent_config"] or ""
    return Case(
        name=path.name.removesuffix(SUFFIX),
        args_file=f"args/{path.name}",
        trainable=mode == "train" and bool(agent),
        num_envs=args["num_envs"],
        mode=mode,
        env_config=args["env_config"],
        engine_config=args["engine_config"],
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


def variants(agent_config: str, folder: Path | None = None) -> dict[str, str]:
    """Agent files by variant: those of ``VARIANTS`` whose file exists, then ``default``.

    Args:
        folder: where the agent file lies, if not where :func:`locate` finds it.
    """
    config = Path(agent_config)
    folder = locate(config).parent if folder is None else folder
    files = {name: config.with_name(f"{config.stem}_{name}{config.suffix}") for name in VARIANTS}
    return {**{name: str(file) for name, file in files.items() if (folder / file.name).is_file()},
            DEFAULT: agent_config}


def tuned_worlds(agent_config: str, usual: int = TUNED_WORLDS) -> int:
    """Worlds of all devices together that the ``tuned`` variant of an agent file is tuned for."""
    return FEWER_WORLDS.get(Path(agent_config).stem, usual)


def with_variant(args: Args) -> tuple[Args, str | None]:
    """The arguments with the agent file of ``--variant``, and the variant's name; None if no args file names an agent.

    Without ``--variant`` that is ``tuned`` where it exists. ``robust`` changes the environment file only. An agent file
    that the command line or a run names stays.

    Raises:
        UserError: no such variant, or one on the command line for such an agent file.
    """
    wanted = args["variant"]
    agent = args["agent_config"]
    given = args.source.get("agent_config") != args["arg_file"]
    if agent is None or given:
        if wanted is not None and args.source["variant"] == COMMAND_LINE:
            why = f"--agent_config {agent} is given too: give one of them" if given else "there is no --agent_config"
            raise UserError(f"--variant {wanted}: {why}")
        return args, None
    known = variants(agent)
    name = next(iter(known)) if wanted in (None, ROBUST) else wanted
    if name not in known:
        raise UserError(f"--variant {name} ({args.source['variant']}): {agent} has {', '.join(known)}")
    if wanted == ROBUST:
        args = args.with_value("env_config", robust_env(args), source=f"variant {ROBUST}")
    return (args if name == DEFAULT else args.with_value("agent_config", known[name], source=f"variant {name}")), name


def robust_env(args: Args) -> str:
    """The environment file of ``--variant robust``. Raises UserError where there is none."""
    env = args["env_config"]
    if args.source.get("env_config") != args["arg_file"]:
        raise UserError(f"--variant {ROBUST}: --env_config {env} is given too: give one of them")
    if env is None or not has_robust(env):
        names = [case.name for case in all_cases() if has_robust(case.env_config)]
        raise UserError(f"--variant {ROBUST}: {env} has no {ROBUST} variant; these cases have: {', '.join(names)}")
    return robust_file(env)


def robust_file(env_config: str) -> str:
    """``deepmimic_g1_env_robust.yaml`` beside ``deepmimic_g1_env.yaml``."""
    return str(Path(env_config).with_stem(f"{Path(env_config).stem}_{ROBUST}"))


def has_robust(env_config: str) -> bool:
    """Whether an environment file has a robust variant."""
    return locate(robust_file(env_config)).is_file()


def all_cases() -> list[Case]:
    """The cases of the working directory, and the shipped ones with other names; sorted.

    Raises:
        UserError: an args file lacks what every case needs.
    """
    found = {case.name: case for root in (SHIPPED, Path()) for case in discover(root, include_newer=True)}
    return [found[name] for name in sorted(found)]
