"""Results that are worth committing: one folder of data and one page for readers of the repository.

    mimickit report ROOT --commit docs/results

writes ``data/history.jsonl`` (the root's numbers are appended), ``data/records.tar.xz`` (the root without models, films
and outputs of processes: unpacked below output/train it can be judged again, merged and shown), ``data/pictures`` (a
strip of each film), ``data/curves`` (pictures), and ``README.md``, which is made of these. A root without films leaves
the pictures that are there.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimickit.longcycle.events import to_line
from mimickit.longcycle.judge import STATISTICS
from mimickit.longcycle.ledger import read_events
from mimickit.longcycle.report import number, table_line
from mimickit.longcycle.results.data import Root, Yardsticks, without_machine
from mimickit.longcycle.results.history import History, Night, append, night_of, read
from mimickit.longcycle.results.pages import day
from mimickit.util.curves import Curves, Panel, draw_panels
from mimickit.util.files import atomic_path, read_json, write_text
from mimickit.util.video import COLOR_SPREAD

STRIP_BYTES = 60_000
FRAME_HEIGHT = 150  # pixels
PICTURES = 7  # of each film
CURVE_COLUMNS = ("Test_Return", "Test_Episode_Length", "Body_Pos_Err", "Motion_Err", "Task_Reward")
CURVES_A_CASE = 3
RECORDS = {".json", ".jsonl", ".tsv", ".txt", ".yaml", ".md"}
HEAD = """# Results

What trained policies reached in the acceptance suite, and how the films look. This page is made of `data/` by
`mimickit report ROOT --commit docs/results`, which adds a root to it; [the page](../results_page.md) says what else
there is to see of a root.

| file | content |
| --- | --- |
| `data/history.jsonl` | every number: a line for each root, [in the history's layout](../results_page.md#the-history) |
| `data/records.tar.xz` | the newest root without models, films and outputs of processes: unpacked below \
`output/train` it can be judged by the present gates (`--from-results`), merged with others \
(`python -m mimickit.longcycle.merge`) and shown (`mimickit report`) |
| `data/curves/<method>.png` | its evaluations during training: a row for each case, a line for each attempt |
| `data/pictures/<case>.jpg` | seven moments of a film, cropped to the character (blue), its reference (green) and \
goals (red) |

"""
INTRODUCTION = """Means over the episodes of the test ± half the 95 % interval, a root each (letters: the table above;
*failed*: by the gates of that day). Gates are those of today. Half-skilled: the best of several policies that
learned nothing, or a part of it."""


def commit(root: Root, out: Path) -> str:
    """Add a root to the committed results; returns a line about what there is now."""
    data = out / "data"
    append(data / "history.jsonl", night_of(root, whole=True))
    write_records(root.path, data / "records.tar.xz")
    for case in root.cases:
        if (film := root.entry(case).film) is not None:
            film_strip(film, data / "pictures" / f"{case}.jpg", PICTURES)
    for method in sorted({root.entry(case).method for case in root.cases}):
        cases = [case for case in root.cases if root.entry(case).method == method]
        if rows := [row for case in cases if (row := curve_row(root.runs(case), case))]:
            draw_panels(rows, data / "curves" / f"{method}.png")
    return write_page(out)


def write_page(out: Path) -> str:
    """Write ``README.md`` from what is in ``data``."""
    data = out / "data"
    history = read(data / "history.jsonl")
    strips = [case for case in history.cases if (data / "pictures" / f"{case}.jpg").is_file()]
    figures = sorted(path.stem for path in (data / "curves").glob("*.png"))
    write_text(out / "README.md", page(history, Yardsticks(), strips, figures))
    return f"{out}: {len(history.nights)} roots, {len(history.cases)} cases, {len(strips)} film strips"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(history: History, yardsticks: Yardsticks, strips: Sequence[str], figures: Sequence[str]) -> str:
    """README.md: what ran, what every gate's measure reached, curves, films."""
    columns = ["", "date", "root", "GPUs", "seed", "commit", "passed", "GPU hours"]
    lines = [HEAD + "## What ran", "", table_line(columns), table_line(["---"] * len(columns))]
    lines += [table_line([mark(i), day(night.time)[:10], night.root, night.machine, night.seed,
                          str(night.commit or "")[:12], f"{passed(night)} of {len(night.cases)}",
                          f"{night.gpu_hours:.1f}"]) for i, night in enumerate(history.nights)]
    lines += ["", "## What was reached", "", INTRODUCTION, "",
              table_line(["case", "measure", "gate", "half-skilled", "reached"]), table_line(["---"] * 5)]
    for case in history.cases:
        lines += case_lines(history, yardsticks, case)
    if figures:
        lines += ["", "## Learning curves", ""]
        lines += [f"![learning curves of {method}](data/curves/{method}.png)" for method in figures]
    if strips:
        lines += ["", "## Films", "", "The first episode of each test's policy, evenly spaced over its length.", ""]
        for case in strips:
            lines += [f"**{case}**", "", f"![{case}](data/pictures/{case}.jpg)", ""]
    return "\n".join(lines).rstrip() + "\n"


def mark(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def passed(night: Night) -> int:
    return sum(case.final_ok for case in night.cases.values())


def case_lines(history: History, yardsticks: Yardsticks, case: str) -> list[str]:
    """A line for each gate of a case; one with the verdict where it has none."""
    nights = [(mark(i), night.cases[case]) for i, night in enumerate(history.nights) if case in night.cases]
    lines = []
    for place, gate in enumerate(yardsticks.gates(case)):
        name = STATISTICS.get(gate.measure, gate.measure)
        reached = [f"{letter} {number(found.mean)}{'' if found.ci95 is None else f' ± {found.ci95:.2g}'}"
                   f"{'' if night.final_ok else ' *failed*'}" for letter, night in nights
                   if (found := night.measures.get(name)) is not None]
        poor = [mean for _, mean in yardsticks.without_skill(case, gate.measure)]
        best = number((max if gate.upwards else min)(poor)) if poor else ""
        lines.append(table_line([case if place == 0 else "", name.replace("_", " "), f"{gate.op} {gate.bound:g}", best,
                                 "; ".join(reached) or "not measured"]))
    return lines or [table_line([case, "", "", "", "; ".join(
        f"{letter} {'passed' if night.final_ok else 'failed'}" for letter, night in nights)])]


def curve_row(runs: Sequence[Curves], title: str) -> list[Panel]:
    """A case's first informative columns, one line per attempt; empty without runs."""
    columns = [c for c in CURVE_COLUMNS if any(c in run.columns and run.line("Samples", c)[1].any() for run in runs)]
    return [Panel(title, c, [run for run in runs if c in run.columns]) for c in columns[:CURVES_A_CASE]]


# --- data -------------------------------------------------------------------------------------------------------------


def film_strip(video: Path, path: Path, pictures: int) -> bool:
    """Write pictures of a film side by side, evenly spaced in time, as a JPEG of at most ``STRIP_BYTES``.

    False when there is no film that can be decoded.
    """
    import av
    import numpy as np
    from PIL import Image

    try:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
        wanted = {round(x) for x in np.linspace(0, count - 1, pictures)} if count else set()
        with av.open(str(video)) as container:
            frames = [frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in wanted]
    except (av.FFmpegError, OSError):
        return False
    if not frames:
        return False
    box = interesting_box([np.asarray(frame) for frame in frames])
    width = round(FRAME_HEIGHT * (box[2] - box[0]) / (box[3] - box[1]))
    cells = [frame.crop(box).resize((width, FRAME_HEIGHT), Image.Resampling.LANCZOS) for frame in frames]
    strip = Image.new("RGB", ((width + 2) * len(cells) - 2, FRAME_HEIGHT), "white")
    x = 0
    for part in cells:
        strip.paste(part, (x, 0))
        x += part.width + 2
    for quality in (85, 75, 65, 50, 35, 20):
        data = io.BytesIO()
        strip.save(data, format="JPEG", quality=quality, optimize=True)
        if data.tell() <= STRIP_BYTES:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.getvalue())
    return True


def interesting_box(frames: Sequence[Any]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (pixels) that crop frames [H, W, 3] to the character, with a margin.

    Ground and sky are grey, characters coloured. The crop is between half and twice as wide as high, and at least a
    quarter of the frame high.
    """
    import numpy as np

    height, width = frames[0].shape[:2]
    coloured = np.any([frame.max(axis=2).astype(int) - frame.min(axis=2) > COLOR_SPREAD for frame in frames], axis=0)
    rows, columns = np.flatnonzero(coloured.sum(axis=1) > 2), np.flatnonzero(coloured.sum(axis=0) > 2)
    if not len(rows) or not len(columns):
        return 0, 0, width, height
    high = max(1.15 * (rows[-1] - rows[0]), 0.25 * height)
    wide = max(1.15 * (columns[-1] - columns[0]), 0.5 * high)
    high = min(max(high, wide / 2), height)
    wide = min(wide, width)
    left = min(max((columns[0] + columns[-1] - wide) / 2, 0), width - wide)
    top = min(max((rows[0] + rows[-1] - high) / 2, 0), height - high)
    return round(left), round(top), round(left + wide), round(top + high)


def write_records(root: Path, path: Path) -> None:
    """Pack what a root recorded, without models, films, pictures and process output."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for file in sorted(file for file in root.rglob("*") if file.suffix in RECORDS):
            place = file.relative_to(root)
            if "checkpoints" in place.parts:
                continue
            data = recorded_text(file).encode()
            entry = tarfile.TarInfo(str(root.name / place))
            entry.size, entry.mtime = len(data), int(file.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(data))


def recorded_text(file: Path) -> str:
    """A text file's content :func:`without_machine`; half-written lines are skipped."""
    if file.suffix == ".json":
        return json.dumps(without_machine(read_json(file)), indent=1)
    if file.suffix == ".jsonl":
        return "".join(to_line(event).decode() for event in without_machine(read_events(file)))
    return "\n".join(without_machine(file.read_text(encoding="utf-8").split("\n")))
