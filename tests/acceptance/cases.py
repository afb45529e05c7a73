"""The files that decide what a case does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.cases import Case
from mimickit.config import layers, load_layered
from mimickit.util.failures import UserError


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
    paths = [case.args_file, engine_config, *_layers(root, case.env_config), *agents, character, motion]
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
    """An agent or environment file and the files that it stands on, as paths below ``root``."""
    try:
        return [str(file.resolve().relative_to(root.resolve())) for file, _ in layers(root / path)] if path else []
    except (UserError, ValueError):  # reported by the run program
        return [path]


def _yaml(path: Path) -> dict[str, Any]:
    """A yaml mapping, or an empty one: a wrong file is the run program's business, which reports it in full."""
    try:
        return load_layered(path)
    except UserError:
        return {}
