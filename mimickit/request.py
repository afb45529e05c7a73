"""What the program was asked for, in one record; :mod:`mimickit.request_reader` makes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimickit.cases import DEFAULT, TUNED, tuned_worlds
from mimickit.util.args import Args
from mimickit.util.options import ROBUST


@dataclass(frozen=True)
class Request:
    """What the command line and the configuration files say, checked as far as possible without a device."""

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
    notes: tuple[str, ...] = ()  # warnings: what is read differently from what a file says
    variant: str | None = None  # of the agent file, where an args file names one

    def moved(self, out_dir: Path) -> Request:
        """The same in another run folder."""
        args = self.args.with_value("out_dir", str(out_dir))
        return replace(self, args=args, out_dir=out_dir, result_file=result_file(args, out_dir))

    def configuration(self) -> dict[str, Any]:
        """The effective configuration, defaults and --set included: ``engine``, ``env`` and ``agent``."""
        parts = {"engine": self.engine, "env": self.env, "agent": self.agent}
        return {name: part.model_dump(mode="json") for name, part in parts.items()}


def header(request: Request) -> list[str]:
    """Lines about what matters: hyper-parameters and the number of worlds of a training; which model a test takes."""
    if request.mode == "test" and (model := request.args["model_file"]) is not None:
        return [f"model: {which_model(Path(model))}"]
    if request.variant is None or request.mode != "train":
        return []
    file, others = request.args["agent_config"], ""
    if request.variant != DEFAULT:
        others = "; --variant default takes the args file's own"
    lines = [f"environment: {ROBUST} ({request.args['env_config']})"] if request.args["variant"] == ROBUST else []
    lines += [f"hyper-parameters: {request.variant} ({file}{others})"]
    processes = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else len(request.devices)
    if request.variant == TUNED:
        worlds = tuned_worlds(file.replace(f"_{TUNED}.", "."))
        if worlds != request.num_envs * processes:
            lines.append(f"worlds: {request.num_envs * processes}; these hyper-parameters are tuned for {worlds}"
                         f" (--num_envs {max(1, worlds // processes)})")
    return lines


def which_model(file: Path) -> str:
    """A model file; a training's newest with the one that its best evaluation left."""
    best = file.parent / "checkpoints" / "best" / "model.pt"
    return f"{file} (the newest; that of the best evaluation: {best})" if best.is_file() else str(file)


def result_file(args: Args, out_dir: Path) -> Path:
    """Where the result goes."""
    return Path(args["result_file"] or out_dir / "result.json")
