"""Parts of the set of cases, for several machines: ``--shard 2/4``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mimickit.cases import Case
from mimickit.util.failures import UserError


@dataclass(frozen=True)
class Shard:
    """The ``index``-th (from 1) of ``count`` parts."""

    index: int
    count: int

    @property
    def suffix(self) -> str:
        """What the name of a root gets, so that shards do not meet in one."""
        return f"_{self.index}of{self.count}"


def parse_shard(text: str | None) -> Shard | None:
    """``2/4``. Raises UserError for anything but two numbers, the first from 1 to the second."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.index <= shard.count:
        raise UserError(f"--shard {text}: give K/N with K from 1 to N, 2/4")
    return shard


def part(cases: Sequence[Case], shard: Shard | None) -> list[Case]:
    """The shard's cases, sorted by name.

    Cases that train are dealt out in the order of their names, then the others: of each kind, and in all, no shard has
    more than one case more than another, and a method's cases are spread. As many shards as cases: one case each.

    Raises:
        UserError: more shards than cases, so that some machine would have nothing to do.
    """
    if shard is None:
        return list(cases)
    if shard.count > len(cases):
        raise UserError(f"--shard {shard.index}/{shard.count}: only {len(cases)} cases are selected, "
                        "give at most as many shards")
    order = sorted(cases, key=lambda case: (not case.trainable, case.name))
    return sorted(order[shard.index - 1::shard.count], key=lambda case: case.name)
