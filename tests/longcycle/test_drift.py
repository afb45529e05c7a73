"""Drift told from noise: at the rates that the page states."""

import numpy as np
import pytest

from mimickit.longcycle.results import drift, history
from mimickit.longcycle.results.history import Accept, CaseNight, GateNow, Measure, Night

CASES = [f"amp_case_{i}" for i in range(25)]
NIGHTS, CHANGED, BEGIN, NOISE = 60, CASES[7], 40, 0.02


def night(index: int, values: dict[str, float], ok: bool = True, **about) -> Night:
    """A night of cases with one gate each, ``success >= 100``."""
    gate = GateNow(measure="success", op=">=", bound=100.0)
    return Night(**{"time": 1e9 + 86400.0 * index, "session": f"s{index}", "root": f"night{index}", "profile": "full",
                    "commit": f"{index:040d}", "versions": {"torch": "2.11.0"}, "gpus": ["H200"], "devices": 1,
                    "cases": {name: CaseNight(final_ok=ok, note="ok" if ok else "gate_in_test", samples=3e7,
                                              samples_per_s=5e4, gates=[gate], gpu_hours=0.1,
                                              measures={"success": Measure(mean=value, ci95=1.0, episodes=1024)})
                              for name, value in values.items()}, **about})


def sixty_nights(seed: int, drop: float = 0.08) -> history.History:
    """25 cases that scatter by 2 %; one of them falls on a night."""
    rng = np.random.default_rng(seed)
    scatter = 200.0 * (1 + NOISE * rng.standard_normal((NIGHTS, len(CASES))))
    scatter[BEGIN:, CASES.index(CHANGED)] *= 1 - drop
    return history.History(tuple(night(i, dict(zip(CASES, map(float, row), strict=True)))
                                 for i, row in enumerate(scatter)))


def test_a_drop_of_8_percent_in_one_of_25_cases_is_found_within_three_nights():
    """Its gate still holds all the time, and none of the other 24 cases is called drifting."""
    known = sixty_nights(1)
    first = {case: next((i for i, night in enumerate(series.nights) if night.verdict == "drift"), None)
             for case in CASES for series in known.series[case] if series.measure == "success"}
    assert BEGIN < first.pop(CHANGED) <= BEGIN + 2
    assert set(first.values()) == {None}
    assert known.verdict(CHANGED) == "drift" and known.last_good() in (BEGIN - 1, BEGIN - 2)
    series = known.series[CHANGED][0]
    assert series.change == pytest.approx(-0.08, abs=0.02)
    assert known.nights[series.at[drift.since(series.nights)]].time == pytest.approx(1e9 + 86400.0 * BEGIN, abs=2e5)


def test_rates_are_those_that_are_stated():
    """Fewer than 1 of 1,000 measures that only scatter; a fall by 4 sd is found within three nights in 87 %."""
    rng = np.random.default_rng(5)
    measures = 1500
    false = sum(any(night.verdict == "drift" for night in drift.watch(values))
                for values in (100 + 2 * rng.standard_normal((measures, 60))).tolist())
    assert false <= 5, "1.1 are expected; more than 5 come once in 1,000 times"
    found = 0
    for _ in range(300):
        begin, values = int(rng.integers(15, 55)), 100 + 2 * rng.standard_normal(60)
        values[begin:] -= 8
        nights = drift.watch(values.tolist())
        found += any(night.verdict == "drift" for night in nights[begin:begin + 3])
    assert found >= 240, "261 are expected, give or take 6"


def test_one_bad_night_is_no_drift_and_a_lasting_one_stays():
    values = [100.0, 101, 99, 102, 98, 100, 101, 99, 100, 101, 99, 100]
    assert drift.watch([*values, 20.0])[-1].verdict == "steady"
    assert drift.watch([*values, 20.0, 100.0, 100.0, 100.0])[-1].verdict == "steady"
    low = drift.watch([*values, *[90.0] * 40])
    assert [night.verdict for night in low[-39:]] == ["drift"] * 39, "the new level does not become the old one"
    assert drift.since(low) == len(values)
    back = drift.watch([*values, *[90.0] * 5, *[100.0] * 15])
    assert back[-1].verdict == "steady"
    assert drift.watch([*values, *[110.0] * 5])[-1].verdict == "better"
    assert drift.watch([*values, *[110.0] * 5], upwards=False)[-1].verdict == "drift"
    assert drift.watch(values[:8])[-1].verdict == "few"


def test_scatter_is_at_least_the_tests_own():
    """A rate of 1.00 in all nights says little about the next one; its interval does."""
    values, errors = [1.0] * 20 + [0.97] * 3, [0.04] * 23
    assert drift.watch(values)[-1].verdict == "drift"
    assert drift.watch(values, errors=errors)[-1].verdict == "steady"


def test_an_accepted_level_is_the_new_reference():
    known = sixty_nights(2)
    assert known.verdict(CHANGED) == "drift"
    wanted = Accept(time=known.nights[BEGIN - 1].time, cases=[CHANGED], reason="wanted")
    after = history.History(known.nights, (wanted,))
    assert after.verdict(CHANGED) == "steady"


def test_other_profiles_and_machines_are_not_compared():
    nights = [night(i, {CHANGED: 200.0 + i % 3}) for i in range(12)]
    nights += [night(12 + i, {CHANGED: 20.0}, profile="smoke") for i in range(5)]
    nights += [night(20, {CHANGED: 200.0}, gpus=["H100"])]
    success, rate = history.History(tuple(nights)).series[CHANGED]
    assert len(success.nights) == 13 and len(rate.nights) == 1
    small = history.History((*nights, night(30, {CHANGED: 1.0}, ok=False, profile="smoke")))
    assert small.verdict(CHANGED) == "failed" and small.watched().verdict(CHANGED) == "steady"


def test_students_t_as_a_normal_score():
    scipy = pytest.importorskip("scipy.stats")
    for freedom in (7, 12, 40):
        for t in (-5.0, -2.0, 0.5, 3.0):
            assert drift.normal_score(t, freedom) == pytest.approx(scipy.norm.ppf(scipy.t.cdf(t, freedom)), abs=0.03)
