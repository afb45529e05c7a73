"""Writes dataset files: clips with their weights (docs/clips.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mimickit.util.assets import SHIPPED
from mimickit.util.files import write_text


def write_dataset(path: Path, title: str, weights: Mapping[Path, float]) -> None:
    """Write ``weights`` (clip file -> weight) to ``path`` below a comment; clips of this project get relative paths."""
    lines = [f"# {title}", "motions:"]
    for clip, weight in weights.items():
        clip = clip.resolve()
        place = clip.relative_to(SHIPPED) if clip.is_relative_to(SHIPPED) else clip
        lines.append(f"  - {{file: {place.as_posix()}, weight: {weight}}}")
    write_text(path, "\n".join(lines) + "\n")
