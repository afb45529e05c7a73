"""The page of the history: trends of every case, what drifts, what changed since the last good night."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimickit.longcycle.report import number
from mimickit.longcycle.results import drift
from mimickit.longcycle.results.history import RATE, History, Night, Series, changes
from mimickit.longcycle.results.pages import POLL_ENDED, Folder, day, environment, script, slug

SPARK = (130, 28)  # pixels
SPARK_NIGHTS = 40
BAND = 2.0  # standard deviations
LONGEST_LIST = 200  # nights in the table


def write_history(history: History, out: Path) -> Path:
    """Write the page of a history; returns ``index.html``."""
    jinja, folder = environment(), Folder(out)
    template = jinja.get_template("history.html.j2").module
    folder.static()
    rows = [case_row(history, case) for case in history.cases]
    marks = version_marks(history.nights)
    parts = {"head": template.head(head(history, rows)), "grid": template.grid(rows),
             "nights": template.nights(night_rows(history.nights, marks))}
    parts = {name: str(html) for name, html in parts.items()}
    panels = {}
    for case in history.cases:
        texts = [{"measure": series.measure, "verdict": series.verdict, "text": sentence(history, series)}
                 for series in history.series[case] if series.nights]
        charts = [chart(history, series, marks) for series in history.series[case] if len(series.nights) > 1]
        text = script("page.panel", slug(case), {"verdict": str(template.panel(texts))}, charts)
        panels[slug(case)] = folder.write(f"page/cases/{slug(case)}.js", text)
    title, states = "history of nights", {row["slug"]: row["verdict"] for row in rows}
    folder.write("page/live.js", script("page.live", parts, {
        "title": title, "poll": POLL_ENDED, "panels": panels, "states": states}))
    folder.write("index.html", jinja.get_template("page.html.j2").render(
        title=title, parts=parts, order=["head", "grid", "nights"], states=states, heading="Trends",
        panels=[{"slug": row["slug"], "name": row["case"]} for row in rows]))
    return folder.path / "index.html"


def head(history: History, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    good, nights = history.last_good(), history.nights
    bad = [{"case": row["case"], "slug": row["slug"], "text": "; ".join(
        f"{series.measure} {sentence(history, series)}" for series in history.series[row["case"]]
        if series.verdict == "drift") or "failed"} for row in rows if row["verdict"] in ("failed", "drift")]
    return {
        "title": "History", "passed": sum(row["last_passed"] for row in rows), "total": len(rows), "bad": bad,
        "drifting": sum(any(s.verdict == "drift" for s in history.series[row["case"]]) for row in rows),
        "better": sum(row["verdict"] == "better" for row in rows), "nights": len(nights), "damaged": history.skipped(),
        "first": day(nights[0].time)[:10] if nights else "", "last": day(nights[-1].time)[:10] if nights else "",
        "gpu_hours": sum(night.gpu_hours for night in nights), "good": day(nights[good].time) if good is not None
        else None, "good_is_last": good == len(nights) - 1,
        "changes": changes(nights[good], nights[-1]) if good is not None else []}


def case_row(history: History, case: str) -> dict[str, Any]:
    """A case in the table: its state, and the measure that tells most of it."""
    found = [series for series in history.series[case] if series.nights]
    order = ("drift", "better", "steady", "few")
    shown = min(found, key=lambda series: (order.index(series.verdict), series.measure in ("length", RATE)),
                default=None)
    nights = [night.cases[case] for night in history.nights if case in night.cases]
    last = shown.nights[-1] if shown else None
    change = shown.change if shown else None
    return {
        "case": case, "slug": slug(case), "method": case.split("_")[0], "verdict": history.verdict(case),
        "measure": shown.measure if shown else "", "last": last.value if last else None,
        "usual": f"{number(last.mean)} ± {last.sd:.2g}" if last and last.mean is not None else "",
        "change": "" if change is None else f"{change:+.1%} since {day(begun(history, shown).time)[:10]}",
        "passed": sum(night.final_ok for night in nights), "nights": len(nights), "last_passed": nights[-1].final_ok,
        "spark": spark(shown) if shown and len(shown.nights) > 1 else None}


def begun(history: History, series: Series) -> Night:
    """The night with which a drift or an improvement began."""
    return history.nights[series.at[drift.since(series.nights)]]


def sentence(history: History, series: Series) -> str:
    """What a series says, in words."""
    last, begin = series.nights[-1], drift.since(series.nights)
    gate = "" if series.bound is None else f", gate {'>=' if series.upwards else '<='} {series.bound:g}"
    if last.mean is None:
        return f"{number(last.value)}{gate}; {len(series.nights)} nights that can be compared, " \
               f"{drift.WARM_UP + 1} are needed to tell drift from noise"
    usual = f"{number(last.value)} last, usually {number(last.mean)} ± {last.sd:.2g} (sd){gate}"
    if begin is None:
        return usual
    night = begun(history, series)
    return f"{series.change or 0.0:+.1%} since {day(night.time)} " \
           f"(commit {str(night.commit)[:12]}); {usual}"


def spark(series: Series) -> dict[str, Any]:
    """A small line of the last nights, with the band of what is usual, in pixels."""
    nights = series.nights[-SPARK_NIGHTS:]
    last = next((night for night in reversed(nights) if night.mean is not None), None)
    edges = [last.mean - BAND * last.sd, last.mean + BAND * last.sd] if last else []
    values = [night.value for night in nights]
    low, high = min([*values, *edges]), max([*values, *edges])
    width, height = SPARK

    def y(value: float) -> float:
        return round(height - 3 - (height - 6) * (value - low) / ((high - low) or 1.0), 1)

    points = [(round(3 + (width - 6) * i / (len(nights) - 1), 1), y(night.value), night.verdict == "drift")
              for i, night in enumerate(nights)]
    band = (y(edges[1]), round(y(edges[0]) - y(edges[1]), 1)) if edges else (0, 0)
    return {"points": points, "path": "M" + " L".join(f"{x} {at}" for x, at, _ in points), "band": band}


def chart(history: History, series: Series, marks: dict[int, str]) -> dict[str, Any]:
    """A trend for the page's script: values, what is usual ± 2 sd, nights that drift, the gate, marked versions."""
    nights = [history.nights[i] for i in series.at]
    usual = [(night.mean, night.sd) if night.mean is not None else (None, None) for night in series.nights]
    edge = {"width": 0, "points": False, "color": "--quiet"}
    lines = [
        ("most usual", [None if m is None else m + BAND * s for m, s in usual], edge),
        ("least usual", [None if m is None else m - BAND * s for m, s in usual], edge),
        (series.measure, [night.value for night in series.nights], {"color": "--busy"}),
        ("drifts", [night.value if night.verdict == "drift" else None for night in series.nights],
         {"color": "--bad", "width": 3, "points": True}),
    ]
    if series.bound is not None:
        lines.append(("gate", [series.bound] * len(nights),
                      {"color": "--ink", "width": 1, "dash": [6, 4], "points": False}))
    seen = [(place, i) for place, i in enumerate(series.at) if i in marks]
    return {
        "title": f"{series.measure.replace('_', ' ')}, {'more' if series.upwards else 'less'} is better", "x": "night",
        "names": [f"{day(night.time)} {str(night.commit)[:8]} seed {night.seed}" for night in nights],
        "series": [{"label": label, **look} for label, _, look in lines], "bands": [{"series": [1, 2]}],
        "data": [list(range(1, len(nights) + 1)), *(values for _, values, _ in lines)],
        "marks": [{"x": place + 1, "text": marks[i]} for place, i in seen]}


def version_marks(nights: Sequence[Night]) -> dict[int, str]:
    """Letters of the nights that ran with other versions, on another machine or with another profile."""
    places = [i for i in range(1, len(nights)) if any(
        getattr(nights[i], what) != getattr(nights[i - 1], what) for what in ("versions", "machine", "profile"))]
    return {i: letters(n) for n, i in enumerate(places)}


def letters(number: int) -> str:
    """``A`` ... ``Z``, ``AA`` ..."""
    return (letters(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def night_rows(nights: Sequence[Night], marks: dict[int, str]) -> list[dict[str, Any]]:
    """The table of nights, the newest first."""
    return [{
        "time": night.time, "mark": marks.get(i, ""), "root": night.root, "total": len(night.cases),
        "passed": sum(case.final_ok for case in night.cases.values()), "commit": str(night.commit or "")[:12],
        "machine": night.machine, "seed": night.seed, "gpu_hours": night.gpu_hours, "deferred": night.deferred,
        "changes": [line for line in changes(nights[i - 1], night) if not line.startswith("commit")] if i else [],
    } for i, night in reversed(list(enumerate(nights)))][:LONGEST_LIST]
