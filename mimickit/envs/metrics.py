"""What is measured in tests: means over steps or over episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mimickit.envs.base import DoneFlag
from mimickit.envs.terms import Metric, StepState, Term
from mimickit.util.distributed import Distributed

if TYPE_CHECKING:
    from mimickit.envs.scene import Scene


class StepMean(Metric):
    """Means over all valid steps of a term [N, number of names].

    Args:
        where: count only the steps for which this term [N] is True.
    """

    def __init__(self, names: Sequence[str], term: Term, scene: Scene, where: Term | None = None) -> None:
        super().__init__(names, scene.num_envs, scene.device)
        self._term, self._where = term, where

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        self.means.add(self._term(now), valid if self._where is None else valid & self._where(now))


class EndRate(Metric):
    """Share of finished episodes for which ``test`` of their ``DoneFlag`` [N] is True.

    Args:
        where: count only the episodes for which this term [N] is True in their last step.
    """

    def __init__(self, name: str, test: Callable[[Tensor], Tensor], scene: Scene, where: Term | None = None) -> None:
        super().__init__((name,), scene.num_envs, scene.device)
        self._test, self._where = test, where

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        ended = done != DoneFlag.NULL
        counts = ended if self._where is None else ended & self._where(now)
        self.means.add(self._test(done).to(now.time.dtype).unsqueeze(-1), counts)


def success_rate(scene: Scene, name: str = "success_rate", where: Term | None = None) -> EndRate:
    """``success_rate``: share of finished episodes that did not fail, of all or of those ``where``."""
    return EndRate(name, lambda done: done != DoneFlag.FAIL, scene, where)


def fall_rate(scene: Scene) -> EndRate:
    """``fall_rate``: share of finished episodes that failed."""
    return EndRate("fall_rate", lambda done: done == DoneFlag.FAIL, scene)


class Largest(Metric):
    """The largest value (0-d, at least 0) so far, which its owner keeps up to date."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__((), 0, value.device)
        self._name, self._value = name, value

    def pooled(self, dist: Distributed) -> dict[str, Tensor]:
        return {self._name: dist.max_(self._value.clone())}

    def clear(self) -> None:
        self._value.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {"largest": self._value}
