"""Numbers in the attributes of XML files."""

from __future__ import annotations

import math

import numpy as np

from mimickit.util.failures import UserError

MOST = 1e9  # of lengths, masses and moments


def read_numbers(text: str, count: int | None, where: str, key: str, most: float = math.inf) -> np.ndarray:
    """The numbers [count] of an attribute, float64.

    Args:
        count: how many there must be; None: one or more.
        where: file and element, for the message.
        key: the attribute.
        most: none may be larger, whatever its sign.

    Raises:
        UserError: another count, or what is no finite number.
    """
    try:
        values = np.array([float(part) for part in text.split()])
    except ValueError:
        values = np.array([math.nan])
    if len(values) != (count or max(1, len(values))) or not np.isfinite(values).all() or np.abs(values).max() > most:
        needed = "is 1 finite number" if count == 1 else f"are {f'{count} ' if count else ''}finite numbers"
        raise UserError(f"{where} has {key}=\"{text[:200]}\"; needed {needed}")
    return values


def as_text(values: np.ndarray | list[float]) -> str:
    """Text from which exactly these numbers are read."""
    return " ".join(repr(float(value)) for value in values)
