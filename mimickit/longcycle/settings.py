"""What a session has decided before it starts: profile, options, devices. Plain values, no pytest objects."""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from mimickit.cases import DEFAULT, TUNED_WORLDS, VARIANTS, Case
from mimickit.config import Config, build, load_yaml
from mimickit.longcycle.devices import training_pool
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import UserError
from mimickit.util.names import check_known, nearest

FILES = SHIPPED / "tests" / "acceptance"
PROFILES_FILE = FILES / "profiles.yaml"
TARGETS_FILE = FILES / "targets.yaml"
BASELINES_FILE = FILES / "baselines.yaml"
COST_WITHOUT_TRAINING = 0.2
TRANSFER = "transfer"  # the stage that runs the exported policy in plain MuJoCo
PACKAGE = Path(__file__).resolve().parents[1]
RUNNER = (sys.executable, str(PACKAGE / "run.py"))
DEFAULT_ENGINE = "data/engines/newton_engine.yaml"
DEFAULT_LADDER, PI_PLUS, AMP_PI_PLUS = LADDERS = ("default-ladder", "pi-plus-ladder", "amp-pi-plus-ladder")
GROUPS = {"amp_pi_plus": AMP_PI_PLUS, "add_pi_plus": PI_PLUS, "deepmimic_pi_plus_ppo": PI_PLUS}
CASE_SETS = ACCEPTANCE, YARDSTICK = "acceptance", "yardstick"
BUDGET_HOURS = 24.0
BUDGET_SIGNALS = ("SIGINT", "SIGTERM")


class Profile(Config):
    """Sizes of one profile (seconds, samples, iterations, episodes). A timeout of 0 means none.

    Attributes:
        enforce_gates: learning gates decide; otherwise they are only reported.
        hang_seconds: a process without a heartbeat for so long counts as hanging; 0: never.
        startup_seconds: the same for a process that has not yet joined the others; 0: never.
        stop_grace: s between SIGTERM and SIGKILL, for a checkpoint.
        test_envs: episodes behind the statistics and gates of a trainable case's test, one per environment (in fewer
            environments if training had fewer). At least ``test_episodes``.
        envs_per_eval_env: long_train evaluates in one of this many environments while the others train.
        transfer_episodes: episodes of a trainable case's policy in plain MuJoCo; 0: no stage ``transfer``.
        disturbed_episodes: further ones there, under the standard disturbances (docs/robust.md).
        transfer_processes: processes that run them, on the CPU.
        tuned_envs: environments of all devices together that the ``tuned`` variant starts with, unless
            mimickit/cases.py has another number for the agent; ``auto``: from there; null: the args file's.
        cpu_processes: training processes where no GPU is used.
        max_episode_steps: longest episode of test and viz, in steps.
        stage_seconds: duration of the stages, for the estimate at the start; of long_train for a case of cost 1.
        env: environment of every stage; train_set, viz_set: ``--set`` values of trainable cases' training and film.
    """

    enforce_gates: bool
    env_ladder: tuple[int, ...] | None
    tuned_envs: int | None
    probe_iters: int
    long_max_samples: int
    envs_per_eval_env: int
    output_samples: int
    output_seconds: float
    test_episodes: int
    viz_episodes: int
    nontrainable_num_envs: int
    nontrainable_max_samples: int
    max_episode_steps: int | None
    probe_timeout: float
    long_timeout: float
    test_timeout: float
    viz_timeout: float
    hang_seconds: float
    startup_seconds: float
    stop_grace: float
    cpu_processes: int
    video_width: int
    video_height: int
    rand_seed: int
    env: dict[str, str]
    train_set: tuple[str, ...]
    viz_set: tuple[str, ...]
    stage_seconds: dict[str, float]
    test_envs: int = 0
    transfer_episodes: int = 0
    disturbed_episodes: int = 0
    transfer_processes: int = 1
    transfer_timeout: float = 0.0

    @field_validator("tuned_envs", mode="before")
    @classmethod
    def _of_the_library(cls, value: object) -> object:
        return TUNED_WORLDS if value == "auto" else value


class ProfilesFile(Config):
    profiles: dict[str, Profile]
    train_env: dict[str, str]
    viz_env: dict[str, str]


def deviation(measure: str, seeds: Sequence[float]) -> float:
    """Standard deviation of what two or more seeds reached, as gates take it: at least 2 % of their mean, or 1 % for a
    share or a length, because three seeds may agree by chance."""
    bounded = measure in ("survival", "test_episode_length") or measure.endswith("_rate") or "success_rate" in measure
    return max(statistics.stdev(seeds), (0.01 if bounded else 0.02) * abs(statistics.fmean(seeds)))


class Gate(Config):
    """``measure op bound``: a condition on the test's result, and what the bound comes from.

    Attributes:
        rule, seeds, baseline: see the head of targets.yaml. source: of a bound that no seeds stand behind.
        frozen_pose: of a limb error, that of the mean pose carried along with the reference's root, in the same unit.
    """

    measure: str
    op: Literal[">=", "<=", ">", "<"]
    bound: float
    rule: Literal["seeds", "half_way", "provisional", "fixed"] = "fixed"
    seeds: tuple[float, ...] = ()
    baseline: dict[str, float] = Field(default_factory=dict)
    frozen_pose: float | None = None
    source: str = ""

    def missed_by(self, value: float) -> str:
        """How far a value lies on the wrong side of the bound, in deviations of the seeds too where those are known."""
        miss = abs(self.bound - value)
        if len(self.seeds) < 2:
            return f"{miss:.3g}"
        return f"{miss:.3g}, {miss / deviation(self.measure, self.seeds):.1f} deviations of the seeds"

    @property
    def upwards(self) -> bool:
        """Whether larger is better."""
        return self.op in (">=", ">")


class Target(Config):
    """What a case has to reach, and how it is trained; ``open``: half-skilled policies that no gate stops."""

    gates: tuple[Gate, ...] = ()
    open: tuple[str, ...] = ()
    transfer: tuple[Gate, ...] = ()
    env_ladder: tuple[PositiveInt, ...] | None = None
    tuned_envs: PositiveInt | None = None
    cost: PositiveFloat = 1.0

    @field_validator("env_ladder")
    @classmethod
    def _no_size_twice(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a size is named twice")
        return value


@dataclass(frozen=True)
class Allocation:
    """The attempt with which an allocation profile has a case begin."""

    variant: str
    num_envs: int  # per device
    agent_config: str


@dataclass(frozen=True)
class Settings:
    """One session's decisions; the same in every pytest-xdist worker.

    Attributes:
        repo: repository root, the working directory of all stages.
        out: ``output/train/<root-out>``.
        profile: sizes after options were applied; profile_reason says why this profile.
        pool, per_case: devices to lease from, and how many a trainable case takes.
        cases_per_device: cases that may use a GPU at once.
        view_devices: devices of nontrainable cases; empty means the first of the leased ones.
        ladder: the ``--env-ladder`` option; ladders: those of groups of cases, by the name of their option.
        long_budget_signal, long_budget_grace: sent to a training when its hours are used up, and s it has to end.
        allocation: first attempts by case; allocation_only: no other attempt follows.
        notes: further remarks for the header.
        deferred: cases that the budget of GPU hours leaves for another night.
        variants: the ``--variants`` option; empty: all.
        case_set: one of ``CASE_SETS``.
    """

    repo: Path
    out: Path
    profile_name: str
    profile_reason: str
    profile: Profile
    targets: Mapping[str, Target]
    train_env: Mapping[str, str]
    viz_env: Mapping[str, str]
    pool: tuple[str, ...]
    per_case: int
    cases_per_device: int = 1
    view_devices: tuple[str, ...] = ()
    engine_config: str = DEFAULT_ENGINE
    runner: tuple[str, ...] = RUNNER
    ladder: tuple[int, ...] | None = None
    ladders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    scale_steps: bool = True
    long_mode: Literal["max_samples", "time_budget"] = "max_samples"
    long_budget_hours: float | None = None
    long_budget_signal: str = BUDGET_SIGNALS[0]
    long_budget_grace: float = 300.0
    long_success_policy: Literal["strict_exit", "budget_checkpoint"] = "strict_exit"
    resume_skip_status: Literal["ok", "all", "none"] = "ok"
    allocation: Mapping[str, Allocation] = field(default_factory=dict)
    allocation_only: bool = False
    notes: tuple[str, ...] = ()
    case_set: str = ACCEPTANCE
    deferred: tuple[str, ...] = ()

    @property
    def lock_dir(self) -> Path:
        """Where devices are locked, per host: a checkout may be on a shared file system."""
        return self.repo / "output" / ".device_locks" / platform.node()

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled before the first case; not for a ``--runner``."""
        return self.runner == RUNNER

    @property
    def stop_file(self) -> Path:
        """Exists while the session is being interrupted, which tells workers to end their stages."""
        return self.out / ".stop"

    def stages(self, case: Case) -> tuple[str, ...]:
        """The stages of a case, in order."""
        if not (case.trainable and self.profile.transfer_episodes):
            return case.stages
        after = case.stages.index("test") + 1
        return (*case.stages[:after], TRANSFER, *case.stages[after:])

    def target(self, case_name: str) -> Target:
        return self.targets.get(case_name, Target())

    def cost(self, case: Case) -> float:
        """Load that a case puts on a device, in trainings of one humanoid."""
        return self.target(case.name).cost if case.trainable else COST_WITHOUT_TRAINING

    def header(self) -> str:
        devices = f"{self.per_case} of {len(self.pool)}" if len(self.pool) > self.per_case else " ".join(self.pool)
        if self.cases_per_device > 1:
            devices += f" ({self.cases_per_device} cases each)"
        where = self.relative(self.out)
        words = f"profile {self.profile_name} ({self.profile_reason}), devices {devices}, files in {where}"
        return "; ".join([words, *self.notes])

    def relative(self, path: Path | str) -> str:
        """A path relative to the repository root, for tables and messages."""
        return relative_to(path, self.repo)


def relative_to(path: Path | str, folder: Path) -> str:
    """A path relative to ``folder``; unchanged when it lies elsewhere."""
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def ladder_name(case: str) -> str:
    """The option whose ladder is a case's."""
    return GROUPS.get(case, DEFAULT_LADDER)


def load_profiles(path: Path = PROFILES_FILE) -> ProfilesFile:
    return build(ProfilesFile, load_yaml(path), str(path))


def load_targets(path: Path = TARGETS_FILE) -> dict[str, Target]:
    return {name: build(Target, data or {}, f"{path}: {name}") for name, data in load_yaml(path).items()}


def choose_profile(asked: str | None, known: Mapping[str, Profile], cuda: list[str]) -> tuple[str, str]:
    """Name of the profile and the reason. Raises UserError for an unknown name."""
    if asked is not None:
        if asked not in known:
            raise UserError(f"--longcycle-profile {asked}: allowed are {', '.join(known)}{nearest(asked, known)}")
        return asked, "asked for with --longcycle-profile"
    if cuda:
        return "full", f"{len(cuda)} CUDA device{'s' if len(cuda) > 1 else ''} found"
    return "smoke", "no CUDA device found"


def choose_devices(asked: list[str] | None, profile_name: str, cuda: list[str], cpu_processes: int,
                   sessions: int) -> tuple[tuple[str, ...], int]:
    """The devices to lease from, and how many a case takes. The smoke profile uses CPU processes by default."""
    if asked:
        if twice := [name for i, name in enumerate(asked) if name != "cpu" and name in asked[:i]]:
            raise UserError(f"--devices-train {','.join(asked)}: {twice[0]} is named twice, each process needs a GPU "
                            "of its own")
        return tuple(asked), len(asked)
    if cuda and profile_name != "smoke":
        pool, per_case = training_pool(cuda, sessions)
        return tuple(pool), per_case
    return ("cpu",) * cpu_processes, cpu_processes


def parse_env(text: str | None, default: Mapping[str, str]) -> dict[str, str]:
    """``KEY=VALUE,KEY=VALUE`` as a mapping, ``none`` as an empty one, nothing as the default."""
    if text is None:
        return dict(default)
    if text.strip().lower() in ("", "none"):
        return {}
    pairs = [entry.partition("=") for entry in text.split(",")]
    if wrong := [key for key, equals, _ in pairs if not equals or not key]:
        raise UserError(f"--train-env {text}: '{wrong[0]}' is not KEY=VALUE (or give: none)")
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_variants(text: str | None) -> tuple[str, ...]:
    """``tuned,default``. Raises UserError for unknown ones."""
    names, known = tuple(parse_list(text) or ()), (*VARIANTS, DEFAULT)
    check_known(names, known, f"--variants {text}: unknown variant")
    return names


def parse_ladder(text: str | None, option: str = "env-ladder") -> tuple[int, ...] | None:
    """``4096,1024,256`` as integers. Raises UserError for anything else, naming the option."""
    if text is None:
        return None
    try:
        ladder = tuple(int(part) for part in text.split(","))
    except ValueError:
        ladder = ()
    if not ladder or min(ladder) < 1 or len(set(ladder)) < len(ladder):
        raise UserError(f"--{option} {text}: give different positive whole numbers separated by commas, "
                        "4096,2048,1024")
    return ladder


def parse_list(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def parse_runner(text: str | None) -> tuple[str, ...]:
    """The program that runs a stage; ``{python}`` stands for the running interpreter."""
    if text is None:
        return RUNNER
    return tuple(part.replace("{python}", sys.executable) for part in shlex.split(text))
