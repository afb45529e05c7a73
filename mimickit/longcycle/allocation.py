"""Allocation profiles: the variant and number of environments with which each case begins on this machine.

``tools/measure_allocation.py OUT.tsv`` writes one; ``pytest -m longcycle --allocation-profile-tsv OUT.tsv`` uses it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mimickit.cases import discover
from mimickit.longcycle.settings import Allocation
from mimickit.util.failures import UserError
from mimickit.util.files import read_tsv
from mimickit.util.names import nearest

NEEDED = ("case", "status", "variant", "num_envs", "agent_config")


def read_allocation(file: str | None, repo: Path, variants: Sequence[str] = ()) -> dict[str, Allocation]:
    """First attempts by case name, from the rows with ``status`` ``ok`` and a positive ``num_envs``.

    Args:
        variants: the variants a session tries; empty: all.

    Raises:
        UserError: no such file, a missing column, or a row that names an unknown case, variant or agent file.
    """
    if file is None:
        return {}
    path = repo / file
    if not path.is_file():
        raise UserError(f"--allocation-profile-tsv {file}: no such file")
    try:
        rows = read_tsv(path)
    except UnicodeDecodeError as error:
        raise UserError(f"--allocation-profile-tsv {file}: is no text ({error})") from None
    if not rows:
        raise UserError(f"--allocation-profile-tsv {file}: it has no rows")
    for number, row in enumerate(rows, 2):
        if lacking := [name for name in NEEDED if name not in row]:
            raise UserError(f"--allocation-profile-tsv {file}: line {number} has no column {', '.join(lacking)}")
    known = {case.name: case for case in discover(repo, include_newer=True)}
    found = {}
    for row in rows:
        name = case_name(row)
        where = f"--allocation-profile-tsv {file}: {row['case']}"
        if name not in known:
            raise UserError(f"{where} is no case of args/{nearest(name, known)}")
        if not re.fullmatch(r"-?[0-9]{1,9}", row["num_envs"]):
            raise UserError(f"{where}: num_envs '{row['num_envs'][:80]}' is not a whole number")
        case, num_envs = known[name], int(row["num_envs"])
        if row["status"] != "ok" or num_envs < 1 or not case.trainable:
            continue
        agents = case.variants(repo, variants)
        if row["variant"] not in agents:
            raise UserError(f"{where}: variant '{row['variant']}' is not one of {', '.join(agents)}")
        if row["agent_config"] not in ("", agents[row["variant"]]):
            raise UserError(f"{where}: agent_config {row['agent_config']} is not variant {row['variant']}'s, "
                            f"{agents[row['variant']]}")
        found[name] = Allocation(row["variant"], num_envs, agents[row["variant"]])
    return found


def case_name(row: dict[str, str]) -> str:
    return Path(row["case"]).name.removesuffix(".txt").removesuffix("_args")
