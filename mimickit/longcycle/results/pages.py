"""Writes pages: a folder that a browser shows from disk, from a server, or published, without the network.

``index.html`` holds the summary as of the last write. Beside it, ``page/`` holds ``live.js`` (the summary's parts and
the version of every panel, which an open page loads again and again), ``cases/<name>.js`` (the parts and charts of one
panel, loaded when it is opened), films, posters, and the scripts and styles. Everything is rendered here, by Jinja2,
which escapes all that the suite recorded; the script of the page puts parts in their places and draws charts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mimickit.longcycle.ledger import damaged_lines
from mimickit.longcycle.report import duration, number
from mimickit.longcycle.results.data import Entry, Root, Yardsticks, charts, gate_bars, without_machine
from mimickit.longcycle.settings import TRANSFER
from mimickit.util.files import atomic_path, write_text

STATIC = ("page.css", "page.js", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE")
POLL_LIVE, POLL_ENDED = 3.0, 30.0  # s between looks of an open page at live.js
POSTER = (640, 360)  # pixels
COLUMNS = {"probe_train": "probe", "long_train": "training", "bootstrap_train": "training", "test": "test",
           TRANSFER: "transfer", "viz": "film"}  # of the grid
WORDS = {"passed": "passed", "failed": "failed", "running": "running", "waiting": "waits for a device",
         "stopped": "interrupted", "open": "not run yet"}
MARKS = {"passed": "✓", "ok": "✓", "failed": "✗", "running": "▶", "waiting": "…", "stopped": "◼", "open": "·",
         "steady": "✓", "drift": "↘", "better": "↗", "few": "·"}


def environment() -> Environment:
    """Jinja2 with our templates: everything is escaped, a name that is not there is an error."""
    jinja = Environment(loader=PackageLoader("mimickit.longcycle.results"), autoescape=select_autoescape(default=True),
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"duration": duration, "number": number, "day": day, "slug": slug}
    jinja.globals |= {"marks": MARKS, "words": WORDS, "columns": COLUMNS}
    return jinja


def slug(name: str) -> str:
    """A name as part of a file's name and of an anchor."""
    return re.sub(r"[^\w.-]", "_", name)


def day(seconds: Any) -> str:
    """``2026-11-30 14:05`` of seconds since 1970; empty for anything else."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if isinstance(seconds, (int, float)) else ""


def script(call: str, *values: Any) -> str:
    """A script that hands values to the page. Line ends and non-ASCII letters are escaped by JSON."""
    return f"{call}({', '.join(json.dumps(value, separators=(',', ':')) for value in values)});\n"


def version(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


class Folder:
    """A folder of a page. Files are replaced as a whole, and only when they change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, str] = {}

    def write(self, name: str, text: str) -> str:
        """Write a text file; returns its version."""
        known = version(text)
        if self._written.get(name) != known or not (self.path / name).is_file():
            write_text(self.path / name, text)
            self._written[name] = known
        return known

    def static(self) -> None:
        """Scripts and styles."""
        folder = files("mimickit.longcycle.results") / "static"
        for name in STATIC:
            self.write(f"page/{name}", (folder / name).read_text(encoding="utf-8"))

    def take(self, source: Path, name: str, link: bool) -> str:
        """Have a copy of a file, or a second name of it where ``link`` is set and the file system can; returns where,
        with the file's age, so that a browser notices a new one."""
        target, about = self.path / name, source.stat()
        if not target.exists() or target.stat().st_mtime_ns != about.st_mtime_ns:
            with atomic_path(target) as temporary:
                if link:
                    with suppress(OSError):
                        temporary.unlink()
                        os.link(source, temporary)
                if not temporary.exists() or not temporary.stat().st_size:
                    shutil.copy2(source, temporary)
        return f"{name}?{about.st_mtime_ns // 10**9}"

    def poster(self, film: Path, name: str) -> str:
        """A picture of a film; empty where none can be made."""
        target = self.path / name
        if not target.exists() or target.stat().st_mtime < film.stat().st_mtime:
            if (image := film_picture(film)) is None:
                return ""
            image.thumbnail(POSTER)
            with atomic_path(target) as temporary:
                image.convert("RGB").save(temporary, format="JPEG", quality=80, optimize=True)
        return f"{name}?{film.stat().st_mtime_ns // 10**9}"


def film_picture(film: Path) -> Any:
    """A PIL picture of about a third of the way through a film; None when it cannot be decoded."""
    from PIL import Image

    stills = sorted(film.parent.glob(f"{film.stem}_*.png"))
    try:
        if stills:
            return Image.open(stills[len(stills) // 3])
        import av

        with av.open(str(film)) as container:
            wanted = container.streams.video[0].frames // 3
            for index, frame in enumerate(container.decode(video=0)):
                if index >= wanted:
                    return frame.to_image()
    except Exception:  # the libraries raise many types, and a page without a poster is still a page
        return None
    return None


class ReportPage:
    """The page of one root, or of several that hold a seed each.

    Args:
        out: where to write; the root itself for the page that grows while it runs.
        yardsticks: gates and baselines.
    """

    def __init__(self, roots: Sequence[Root], out: Path, yardsticks: Yardsticks | None = None) -> None:
        self.roots, self.folder = roots, Folder(out)
        self.yardsticks = yardsticks or Yardsticks()
        self.own = [root.path for root in roots] == [out.resolve()]
        self.jinja = environment()
        self.template = self.jinja.get_template("report.html.j2").module
        self._versions: dict[str, tuple[Any, str]] = {}
        self.folder.static()

    def write(self, expected: Mapping[tuple[str, str], float] | None = None, left_s: float | None = None,
              machine: Mapping[str, Any] | None = None, note: str = "") -> Path:
        """Write what has changed since the last call; returns ``index.html``.

        Args:
            expected: seconds of stages that have not run yet, by (case, stage).
            left_s: seconds until the session's end.
            machine: :meth:`mimickit.longcycle.results.machine.Machine.look`.
            note: a remark for the head, such as what was deferred.
        """
        for root in self.roots:
            root.refresh()
        cases = self.cases()
        live = any(root.alive for root in self.roots)
        rows = [self.row(case, entries, expected or {}) for case, entries in cases.items()]
        versions = {slug(case): self.panel(case, entries, expected or {}) for case, entries in cases.items()}
        head = self.head(rows, live, left_s, note)
        parts = {
            "head": self.template.head(head), "machine": self.template.machine(machine or {}),
            "grid": self.template.grid(rows, len(self.roots) > 1),
            "films": self.template.films([film for row in rows for film in row["films"]]),
        }
        parts = {name: str(html) for name, html in parts.items()}
        about = {"title": head["title"], "poll": POLL_LIVE if live else POLL_ENDED, "panels": versions, "words": WORDS,
                 "states": {row["slug"]: row["status"] for row in rows}, "live": live,
                 "written": round(time.time()) if live else 0}
        self.folder.write("page/live.js", script("page.live", parts, about))
        panels = [{"slug": row["slug"], "name": row["case"]} for row in rows]
        index = self.jinja.get_template("page.html.j2").render(
            title=head["title"], parts=parts, order=["head", "grid", "films", "machine"], panels=panels,
            heading="Cases", states=about["states"])
        self.folder.write("index.html", index)
        return self.folder.path / "index.html"

    def cases(self) -> dict[str, list[Entry]]:
        """Entries by case, each case of any root."""
        names = sorted({case for root in self.roots for case in root.cases})
        return {case: [root.entry(case) for root in self.roots if case in root.cases] for case in names}

    def head(self, rows: Sequence[Mapping[str, Any]], live: bool, left_s: float | None, note: str) -> dict[str, Any]:
        """What stands on top: counts, the session's progress, where and with what it ran."""
        statuses = [status for row in rows for status in row["statuses"]]
        root = self.roots[-1]
        passed, total, progress = statuses.count("passed"), len(statuses), root.progress
        trained = [status for row in rows for status in row["statuses"] if row["trainable"]]
        about = without_machine(root.last_environment)
        versions = about.get("versions") or {}
        ended = next((event["time"] for event in reversed(root.events) if event["event"] == "session_end"), None)
        name = ", ".join(known.name for known in self.roots)
        return {
            "title": f"{passed}/{total} {name}", "name": name, "passed": passed, "total": total,
            "failed": statuses.count("failed"), "trained_passed": trained.count("passed"), "trained": len(trained),
            "rest": total - passed - statuses.count("failed"), "live": live, "left_s": left_s if live else None,
            "done": progress.get("done", 0), "of": progress.get("total", 0),
            "status": root.state.status, "silent": root.state.status == "running" and not live,
            "begun": root.state.session.get("time"), "ended": ended, "note": note,
            "profile": about.get("profile") or root.state.session.get("profile", ""), "judged": not any(
                row["not_judged"] for row in rows),
            "devices": ", ".join(about.get("devices") or []),
            "gpus": ", ".join(dict.fromkeys(map(str, about.get("gpus") or []))),
            "commit": str(about.get("git_commit") or "")[:12], "changed": bool(about.get("git_changed")),
            "versions": [(name, versions[name]) for name in ("torch", "newton", "warp-lang", "mujoco-warp")
                         if versions.get(name)],
            "damaged": damaged_lines(root.state.damaged) if root.state.damaged else "",
        }

    def row(self, case: str, entries: Sequence[Entry], expected: Mapping[tuple[str, str], float]) -> dict[str, Any]:
        """A case in the grid: a line for each root."""
        lines, films = [], []
        for entry in entries:
            row, status = entry.row, entry.status
            lines.append({
                "seed": entry.root.seed, "root": entry.root.name, "status": status, "stages": entry.stages(expected),
                "transfers": TRANSFER in entry.stage_names,
                "rate": row.get("samples_per_s"), "samples": row.get("samples"),
                "result": self.key_result(entry), "gate": str(row.get("gate_verdict", "")).replace("_", " "),
                "cause": "" if status != "failed" else f"{row.get('failure_class')} in {row.get('failed_stage')}",
                "degraded": str(row.get("degraded")) == "1", "variant": row.get("variant", "")})
            if film := self.film(entry, len(entries) > 1):
                films.append(film)
        order = ("running", "failed", "stopped", "waiting", "open", "passed")
        return {
            "case": case, "slug": slug(case), "method": entries[0].method, "trainable": entries[0].trainable,
            "transfers": any(line["transfers"] for line in lines), "lines": lines,
            "statuses": [line["status"] for line in lines], "films": films,
            "not_judged": any(line["gate"] == "not judged" for line in lines),
            "status": min((line["status"] for line in lines), key=order.index)}

    def key_result(self, entry: Entry) -> str:
        """The measure that stands for a case: that of its first gate beyond the episode's length, with its interval."""
        from mimickit.longcycle.judge import sample

        test = entry.test
        gates = [gate.measure for gate in self.yardsticks.gates(entry.case)]
        for name in [*(gate for gate in gates if gate != "test_episode_length"), *gates, "test_return"]:
            if (value := sample(test, name)) is not None:
                half = "" if value.ci95 is None else f" ± {value.ci95:.2g}"
                return f"{name.removeprefix('test_').replace('_', ' ')} {number(value.mean)}{half}"
        return ""

    def film(self, entry: Entry, several: bool) -> dict[str, Any] | None:
        """A film that can be played, and its picture."""
        if (film := entry.film) is None:
            return None
        name = slug(f"{entry.case}_{entry.root.name}" if several else entry.case)
        return {"case": entry.case, "slug": slug(entry.case), "status": entry.status,
                "seed": entry.root.seed if several else None, "megabytes": film.stat().st_size / 1e6,
                "file": self.folder.take(film, f"page/films/{name}.mp4", self.own),
                "poster": self.folder.poster(film, f"page/posters/{name}.jpg"), "result": self.key_result(entry)}

    def panel(self, case: str, entries: Sequence[Entry], expected: Mapping[tuple[str, str], float]) -> str:
        """Write the panel of a case when something of it may have changed; returns its version."""
        stamp = [(entry.status, entry.root.counts[case], entry.film and entry.film.stat().st_mtime_ns)
                 for entry in entries]
        known = self._versions.get(case)
        if known and known[0] == stamp and not any(status == "running" for status, _, _ in stamp):
            return known[1]
        views = [{
            "root": entry.root.name, "case": case, "seed": entry.root.seed, "status": entry.status,
            "row": without_machine(entry.row),
            "stages": entry.stages(expected), "attempts": entry.attempts(), "statistics": entry.statistics(),
            "logs": entry.logs(), "film": self.film(entry, len(entries) > 1), "command": entry.command(),
            "environment": without_machine(entry.root.environment(case)), "trainable": entry.trainable,
        } for entry in entries]
        make = self.template
        parts = {
            "verdict": make.verdict(views), "film": make.film(views),
            "gates": make.gates(gate_bars(case, entries, self.yardsticks), len(views) > 1),
            "stages": make.stages(views), "logs": make.logs(views), "statistics": make.statistics(views),
            "attempts": make.attempts(views), "again": make.again(views),
        }
        text = script("page.panel", slug(case), {name: str(html) for name, html in parts.items()}, charts(entries))
        written = self.folder.write(f"page/cases/{slug(case)}.js", text)
        self._versions[case] = (stamp, written)
        return written

