"""Verdicts: did the policy learn, were all numbers finite, does the film show the character?"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mimickit.longcycle.settings import TRANSFER, Gate, Target
from mimickit.longcycle.stages import StageResult

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
GATE_SEPARATOR = "; "
OVERFLOWS = ("contact_overflow", "constraint_overflow")


@dataclass(frozen=True)
class GateVerdict:
    """A verdict and the sentence that explains it.

    ``pass``, ``fail``, ``missing`` (no gate, or no such measure) or ``not_judged`` (the profile does not judge
    learning).
    """

    verdict: Literal["pass", "fail", "missing", "not_judged"]
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The end of a case. ``failure_class`` is ``gate`` for a policy that did not learn enough."""

    final_ok: bool
    failed_stage: str
    failure_class: str
    message: str
    gate: GateVerdict
    transfer: GateVerdict = GateVerdict("missing", "not run")  # in plain MuJoCo


STATISTICS = {"test_return": "return", "test_episode_length": "length"}  # their names among the statistics


@dataclass(frozen=True)
class Sample:
    """A mean, half its 95 % interval, and the number of episodes (0: interval and number are unknown)."""

    mean: float
    ci95: float | None = None
    episodes: int = 0

    def __str__(self) -> str:
        interval = "" if self.ci95 is None else f" ± {self.ci95:.2g}"
        count = f" ({self.episodes} episode{'s' if self.episodes != 1 else ''})" if self.episodes else ""
        return f"{self.mean:.6g}{interval}{count}"


def sample(result: Mapping[str, Any], name: str) -> Sample | None:
    """A measure from the test's statistics, or as a bare number where they lack it; None if not finite.

    So ``test_return`` and ``test_episode_length`` are taken over all episodes of the test, not the first ten.
    """
    summary = (result.get("statistics") or {}).get(STATISTICS.get(name, name))
    if summary is None:
        value = measure(result, name)
        return None if value is None else Sample(value)
    mean = measure(summary, "mean")
    return None if mean is None else Sample(mean, measure(summary, "ci95"), int(measure(summary, "episodes") or 0))


def measure(result: Mapping[str, Any], name: str) -> float | None:
    """A number of the test result, at the top level or under ``measures``; None when missing or not finite."""
    value = result.get(name, (result.get("measures") or {}).get(name))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def judge_gates(gates: Sequence[Gate], result: Mapping[str, Any]) -> GateVerdict:
    """The verdict of all gates together: without gates, or with a measure missing or not finite, none passes.

    A measure is the mean over all episodes of the test where its statistics name it. The detail names gates that fail
    before those that hold.
    """
    if not gates:
        return GateVerdict("missing", "no learning gate in targets.yaml")
    missed, details, verdict = [], [], "pass"
    for gate in gates:
        found = sample(result, gate.measure)
        if found is None:
            verdict = "missing"
            missed.append(f"{gate.measure} is missing or not a finite number")
            continue
        holds = COMPARE[gate.op](found.mean, gate.bound)
        share = f" ({found.mean / gate.frozen_pose:.2f} of the frozen pose's)" if gate.frozen_pose else ""
        words = f"{gate.op} {gate.bound:g}"
        if holds:
            details.append(f"{gate.measure} {found}{share} {words}")
        else:
            missed.append(f"{gate.measure} {found}{share} misses {words} by {gate.missed_by(found.mean)}")
        verdict = verdict if holds or verdict == "missing" else "fail"
    return GateVerdict(verdict, GATE_SEPARATOR.join([*missed, *details]))


def gate_words(verdict: str, detail: str) -> str:
    """A table's words on a case's gates: the verdict, and those that failed with how far they did."""
    failed = [words for words in str(detail).split(GATE_SEPARATOR) if " misses " in words or " is missing " in words]
    return ": ".join([verdict.replace("_", " "), *([GATE_SEPARATOR.join(failed)] if failed else [])])


def nonfinite_values(result: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of values that are NaN or infinite (text in JSON)."""
    found = []
    for key, value in result.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            found += nonfinite_values(value, f"{name}.")
        elif (isinstance(value, float) and not math.isfinite(value)) or \
                (isinstance(value, str) and value.lower() in ("nan", "inf", "-inf")):
            found.append(name)
    return found


def health_problem(stage: StageResult) -> tuple[str, str] | None:
    """(class, message) when a successful stage met non-finite values, or a test dropped contacts."""
    if bad := nonfinite_values(stage.result):
        return "nan", f"not finite: {', '.join(bad)}"
    if stage.failure_class:  # training accepted without a result: the test of its model decides
        return None
    count = measure(stage.result, "nonfinite")
    if count is None or count > 0:
        return "nan", "the result does not say nonfinite" if count is None else f"{count:.0f} steps were not finite"
    if stage.stage == "test":
        for name in OVERFLOWS:
            count = measure(stage.result, name)
            if count is None or count > 0:
                return "overflow", f"{name} {'is missing' if count is None else f'{count:.0f}'} in the test"
    return None


def judge_case(order: Sequence[str], stages: Mapping[str, StageResult], target: Target,
               enforce_gates: bool) -> Verdict:
    """The verdict of a case from its stages; ``order`` names them. ``transfer`` counts where the target has gates for
    it."""
    gate, transfer = (
        judge_gates(gates, stages[name].result) if name in stages and stages[name].ok else GateVerdict("missing", why)
        for name, gates, why in (("test", target.gates, "not tested"), (TRANSFER, target.transfer, "not run")))
    if not enforce_gates:
        gate, transfer = (replace(found, verdict="not_judged") for found in (gate, transfer))
    order = [name for name in order if name != TRANSFER or target.transfer]
    return replace(_judge(order, stages, gate, transfer, enforce_gates), transfer=transfer)


def _judge(order: Sequence[str], stages: Mapping[str, StageResult], gate: GateVerdict, transfer: GateVerdict,
           enforce_gates: bool) -> Verdict:
    for name in order:
        stage = stages.get(name, StageResult(name, "not_run"))
        if not stage.ok:
            return Verdict(False, name, stage.failure_class or stage.outcome, stage.message, gate)
    for name in order:
        if problem := health_problem(stages[name]):
            return Verdict(False, name, *problem, gate)
    if enforce_gates and gate.verdict != "pass":
        return Verdict(False, "test", "gate", f"learning gate: {gate.detail}", gate)
    if enforce_gates and TRANSFER in order and transfer.verdict != "pass":
        return Verdict(False, TRANSFER, "gate", f"gate of the transfer: {transfer.detail}", gate)
    return Verdict(True, "", "", "", gate)


def check_viz(video_file: Path, result: Mapping[str, Any], episodes: int) -> str:
    """What is wrong with a film; empty if nothing is.

    The file must decode to the number of frames in its result, which must match the steps it shows to within two (of
    several episodes not all need to be in it), and the frames must show a moving character.
    """
    from mimickit.util.video import check_video  # loads the decoder

    video = result.get("video")
    if not isinstance(video, Mapping) or not isinstance(video.get("frames"), int) or video["frames"] < 1:
        return f"the result names no video frames: {video!r}"
    steps, shown = measure(result, "test_episode_length"), measure(result, "test_episodes")
    expected = (steps or 0.0) * min(shown or 0.0, episodes)
    if video["frames"] > expected + 2 * episodes or (episodes == 1 and video["frames"] < expected - 2):
        return f"{video['frames']} frames for {expected:g} steps"
    try:
        check_video(video_file, video["frames"])
    except (ValueError, OSError) as error:
        return str(error)
    if len(list(video_file.parent.glob(f"{video_file.stem}_*.png"))) == 0:
        return f"no PNG frames beside {video_file.name}"
    return ""
