"""Which cases a session runs (``--shard``), and the files that decide what a case does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.cases import Case
from mimickit.config import layers, load_layered
from mimickit.longcycle.settings import relative_to
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import UserError


@dataclass(frozen=True)
class Shard:
    """The ``index``-th (from 1) of ``count`` parts."""

    index: int
    count: int

    @property
    def suffix(self) -> str:
        """Suffix of the root's name: each shard works in a root of its own."""
        return f"_{self.index}of{self.count}"


def parse_shard(text: str | None) -> Shard | None:
    """Parse ``2/4``. Raises UserError unless it is K/N with K from 1 to N."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.index <= shard.count:
        raise UserError(f"--shard {text}: give K/N with K from 1 to N, 2/4")
    return shard


def part(cases: Sequence[Case], shard: Shard | None) -> list[Case]:
    """The shard's cases, sorted by name.

    Cases that train are dealt out in order of name, then the others. Shards differ by at most one case, of each kind
    and in all, and each method is spread over them.

    Raises:
        UserError: there are more shards than cases.
    """
    if shard is None:
        return list(cases)
    if shard.count > len(cases):
        raise UserError(f"--shard {shard.index}/{shard.count}: only {len(cases)} cases are selected, "
                        "give at most as many shards")
    order = sorted(cases, key=lambda case: (not case.trainable, case.name))
    return sorted(order[shard.index - 1::shard.count], key=lambda case: case.name)


@dataclass(frozen=True)
class Inputs:
    """The files that decide what a case does; ``sha256`` maps each path to its digest, or to ``missing``."""

    char_file: str
    motion_file: str
    sha256: Mapping[str, str]


def read_inputs(root: Path, case: Case, engine_config: str, only: Sequence[str] = ()) -> Inputs:
    """Find and hash every input of a case: args, engine, env, agents, character, objects and all clips."""
    env = {**_yaml(root, case.env_config), **dict(case.env)}
    motion, character = str(env.get("motion_file") or ""), str(env.get("char_file") or "")
    objects = [o.get("file") or o.get("asset_file") for o in env.get("objects") or [] if isinstance(o, dict)]
    clips: list[Any] = []
    if motion.endswith((".yaml", ".yml")):
        clips = [entry.get("file") for entry in _yaml(root, motion).get("motions") or [] if isinstance(entry, dict)]
    agents = [file for variant in case.variants(root, only).values() for file in _layers(root, variant)]
    paths = [case.args_file, engine_config, *_layers(root, case.env_config), *agents, character, motion]
    paths += [str(path) for path in (*objects, *clips)]
    return Inputs(character, motion, {path: sha256(locate(path, root)) for path in dict.fromkeys(paths) if path})


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
    """An agent or environment file and the files it is based on, as paths below ``root``."""
    try:
        files = [file.resolve() for file, _ in layers(locate(path, root))] if path else []
        return [relative_to(relative_to(file, root.resolve()), SHIPPED) for file in files]
    except UserError:  # reported by the run program
        return [path]


def _yaml(root: Path, path: str) -> dict[str, Any]:
    """A yaml mapping, or an empty one for a broken file, which the run program reports in full."""
    try:
        return load_layered(locate(path, root))
    except UserError:
        return {}
