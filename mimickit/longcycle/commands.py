"""The command line of each stage of an attempt. The first mention of a flag wins, so these precede --arg_file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.cases import Case
from mimickit.config import load_layered
from mimickit.longcycle.cases import Inputs
from mimickit.longcycle.ladder import Rung, scaled_steps
from mimickit.longcycle.settings import TRANSFER, Settings
from mimickit.longcycle.stages import StageSpec, TimeBudget
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError
from mimickit.util.manifest import find_latest

TRAIN_STAGES = ("probe_train", "long_train", "bootstrap_train")


@dataclass(frozen=True)
class Attempt:
    """One rung of one case with the devices it runs on."""

    settings: Settings
    case: Case
    inputs: Inputs
    rung: Rung
    first_envs: int  # num_envs of the variant's first rung
    devices: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.settings.out / "runs" / self.case.stem / f"{self.rung.variant}_e{self.rung.num_envs}"

    @property
    def agent_config(self) -> str:
        return self.case.variants(self.settings.repo, self.settings.variants)[self.rung.variant]

    @property
    def model_file(self) -> Path:
        return self.folder / self.case.train_stage / "model.pt"

    @property
    def train_values(self) -> list[str]:
        """``--set`` values of the training stages: the profile's, and ``steps_per_iter`` for a smaller rung."""
        profile, rung = self.settings.profile, self.rung
        values = [*self.case.values, *(profile.train_set if self.case.trainable else ())]
        if self.case.trainable and self.settings.scale_steps and rung.num_envs < self.first_envs:
            name = "agent.steps_per_iter"
            given = [v.partition("=")[2] for v in values if v.startswith(f"{name}=")]
            steps = int(given[0]) if given else steps_per_iter(locate(self.agent_config, self.settings.repo))
            values = [v for v in values if not v.startswith(f"{name}=")]
            values.append(f"{name}={scaled_steps(steps, self.first_envs, rung.num_envs)}")
        return values

    @property
    def fingerprint(self) -> str:
        """What has to be the same for training to continue: inputs, sizes, devices and values."""
        return digest({
            "sha256": dict(self.inputs.sha256), "num_envs": self.rung.num_envs, "variant": self.rung.variant,
            "set": self.train_values, "world_size": len(self.devices), "kind": self.devices[0].split(":")[0],
            "seed": self.settings.profile.rand_seed,
        })

    @property
    def degraded(self) -> bool:
        return self.rung.num_envs < self.first_envs

    def log(self, stage: str) -> Path:
        return self.folder / f"{stage}.log"

    def resume_from(self) -> Path | None:
        """Where ``long_train`` continues: its own newest checkpoint, else that of ``probe_train``."""
        for stage in ("long_train", "probe_train"):
            if find_latest(self.folder / stage) is not None:
                return self.folder / stage
        return None

    def spec(self, stage: str, budget_used_s: float = 0.0) -> StageSpec:
        """The stage's command, environment, folders and time limits."""
        if stage == TRANSFER:
            return self._transfer()
        make = {"probe_train": self._probe, "long_train": self._long, "bootstrap_train": self._bootstrap,
                "test": self._test, "viz": self._viz}[stage]
        flags, key, timeout = make()
        settings, profile = self.settings, self.settings.profile
        train = stage in TRAIN_STAGES
        out_dir = self.folder / stage
        result_file = self.folder / "test.json" if stage == "test" else out_dir / "result.json"
        devices = self.devices if stage in ("probe_train", "long_train") else self.devices[:1]
        common = {
            "mode": ["train" if train else "test"],
            "engine_config": [settings.engine_config],
            **({"agent_config": [self.agent_config]} if self.case.trainable else {}),
            "out_dir": [settings.relative(out_dir)],
            "result_file": [settings.relative(result_file)],
            "devices": list(devices),
            "visualize": ["false"], "video": ["true" if stage == "viz" else "false"], "logger": ["txt"],
            "rand_seed": [str(profile.rand_seed)],
        }
        if train and flags.get("resume") != common["out_dir"]:  # what an earlier attempt left there is done with
            common["overwrite"] = ["true"]
        argv = [*settings.runner]
        for flag, values in {**common, **flags, "arg_file": [self.case.args_file]}.items():
            argv += [f"--{flag}", *values]
        env = {**profile.env, **(settings.train_env if train else {}), **(settings.viz_env if stage == "viz" else {})}
        return StageSpec(
            stage=stage, argv=tuple(argv), cwd=settings.repo, env=env, out_dir=out_dir, log=self.log(stage),
            result_file=result_file, mode="train" if train else "test", timeout=timeout,
            hang_seconds=profile.hang_seconds, startup_seconds=profile.startup_seconds,
            ranks=len(devices), grace=profile.stop_grace, key={"fingerprint": self.fingerprint, **key},
            budget=self._budget(budget_used_s) if stage == "long_train" else None)

    def _transfer(self) -> StageSpec:
        """``mimickit sim2sim`` of the trained model, on the CPU."""
        settings, profile = self.settings, self.settings.profile
        out_dir = self.folder / TRANSFER
        result_file = self.folder / "transfer.json"
        flags = {
            "test_episodes": str(profile.transfer_episodes), "rand_seed": str(profile.rand_seed),
            "out_dir": settings.relative(out_dir), "result_file": settings.relative(result_file),
            **({} if profile.max_episode_steps is None else {"max_episode_steps": str(profile.max_episode_steps)}),
            **({"disturbed_episodes": str(profile.disturbed_episodes)} if profile.disturbed_episodes else {}),
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        argv = (*settings.runner, "sim2sim", settings.relative(self.model_file), *words,
                "--devices", *["cpu"] * profile.transfer_processes)
        return StageSpec(
            stage=TRANSFER, argv=argv, cwd=settings.repo, env=profile.env, out_dir=out_dir, log=self.log(TRANSFER),
            result_file=result_file, mode="sim2sim", timeout=profile.transfer_timeout,
            hang_seconds=profile.hang_seconds, startup_seconds=profile.startup_seconds, ranks=1,
            grace=profile.stop_grace,
            key={"fingerprint": self.fingerprint, "episodes": profile.transfer_episodes,
                 "disturbed_episodes": profile.disturbed_episodes, "max_episode_steps": profile.max_episode_steps})

    def _budget(self, used_s: float) -> TimeBudget | None:
        settings = self.settings
        if settings.long_mode != "time_budget":
            return None
        left = max(3600 * settings.long_budget_hours - used_s, 0.0)
        return TimeBudget(left, settings.long_budget_signal, settings.long_budget_grace)

    def _train_flags(self, num_envs: int) -> dict[str, list[str]]:
        values = self.train_values
        return {"num_envs": [str(num_envs)], **({"set": values} if values else {})}

    def _probe(self) -> tuple[dict, dict, float]:
        profile = self.settings.profile
        flags = {**self._train_flags(self.rung.num_envs), "max_iters": [str(profile.probe_iters)]}
        return flags, {"max_iters": profile.probe_iters}, profile.probe_timeout

    def _long(self) -> tuple[dict, dict, float]:
        settings, profile = self.settings, self.settings.profile
        flags = {
            **self._train_flags(self.rung.num_envs),
            "eval_envs": [str(max(1, self.rung.num_envs // profile.envs_per_eval_env))],
            "output_samples": [str(profile.output_samples)], "output_seconds": [f"{profile.output_seconds:g}"],
        }
        if settings.long_mode == "time_budget":
            key = {"budget_hours": settings.long_budget_hours}
        else:
            flags["max_samples"] = [str(profile.long_max_samples)]
            key = {"max_samples": profile.long_max_samples}
        if (source := self.resume_from()) is not None:
            flags["resume"] = [settings.relative(source)]
        return flags, key, profile.long_timeout

    def _bootstrap(self) -> tuple[dict, dict, float]:
        profile = self.settings.profile
        steps = profile.max_episode_steps or profile.nontrainable_max_samples  # its evaluation is no longer than itself
        flags = {**self._train_flags(self.rung.num_envs), "max_samples": [str(profile.nontrainable_max_samples)],
                 "max_episode_steps": [str(steps)]}
        return flags, {"max_samples": profile.nontrainable_max_samples}, profile.probe_timeout

    def _episodes(self, episodes: int) -> tuple[dict[str, list[str]], dict[str, Any]]:
        profile = self.settings.profile
        flags = {"test_episodes": [str(episodes)]}
        if profile.max_episode_steps is not None:
            flags["max_episode_steps"] = [str(profile.max_episode_steps)]
        if self.case.trainable:
            flags["model_file"] = [self.settings.relative(self.model_file)]
        if self.case.env:
            flags["set"] = self.case.values
        return flags, {"episodes": episodes, "max_episode_steps": profile.max_episode_steps}

    def _test(self) -> tuple[dict, dict, float]:
        profile = self.settings.profile
        flags, key = self._episodes(profile.test_episodes)
        num_envs = max(profile.test_episodes, 1)  # all episodes side by side
        if self.case.trainable and profile.test_envs > num_envs:
            num_envs = min(profile.test_envs, max(num_envs, self.rung.num_envs))  # what training had room for
            flags["statistics_episodes"] = [str(profile.test_envs)]
            key = {**key, "test_envs": profile.test_envs}
        return {**flags, "num_envs": [str(num_envs)]}, key, profile.test_timeout

    def _viz(self) -> tuple[dict, dict, float]:
        profile = self.settings.profile
        flags, key = self._episodes(profile.viz_episodes)
        size = {"video_width": [str(profile.video_width)], "video_height": [str(profile.video_height)]}
        file = {"video_file": [self.settings.relative(self.folder / "viz.mp4")]}
        own = [*self.case.values, *(profile.viz_set if self.case.trainable else ())]
        values = {"set": own} if own else {}
        return {**flags, "num_envs": ["1"], **file, **size, **values}, {**key, **size, **values}, profile.viz_timeout


def steps_per_iter(agent_config: Path) -> int:
    """``steps_per_iter`` of an agent file; 32 where it is not given or the file is missing (training reports that)."""
    try:
        return int(load_layered(agent_config).get("steps_per_iter", 32))
    except AssetMissingError:
        return 32


def digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
