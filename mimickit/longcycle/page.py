"""A page of results from what the acceptance suite left behind, small enough for the repository.

    mimickit report output/train/longcycle --out docs/results/two_h200

Writes tables, attempts, a strip of pictures a case (from its film), learning curves, a README.md, and records.tar.xz:
the root without models, films and outputs of processes. Unpacked below output/train it can be judged again
(--from-results), merged with others and exported. Works on a root that is not finished too: what is missing is said.
Machine paths are left out. A picture that is there already stays where a root has no film.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.longcycle.events import to_line
from mimickit.longcycle.judge import gate_words, sample
from mimickit.longcycle.ledger import read_events
from mimickit.longcycle.roots import ENVIRONMENTS
from mimickit.util.curves import Curves, Panel, draw_panels, joined, read_curves
from mimickit.util.failures import AssetMissingError, UserError, explains_mistakes
from mimickit.util.files import atomic_path, read_json, read_tsv, write_json, write_text
from mimickit.util.video import COLOR_SPREAD

OWN_FOLDERS = ("mimickit", "tests", "data", "args", "output", "tools", r"\.venv")
FOREIGN_PATH = re.compile(rf"(?<![\w.])/[^\s'\":]*?/(?=(?:{'|'.join(OWN_FOLDERS)})(?:/|$))")
GPU_IDENTITY = re.compile(r"\bGPU-[0-9a-f]+(?:-[0-9a-f]+)*")
STRIP_BYTES = 60_000
FRAME_HEIGHT = 150  # pixels
SHOWN_MEASURES = ("survival", "success_rate", "run_up_success_rate", "task_reward", "goal_err", "vel_err", "facing_err",
                  "body_pos_err", "pos_err", "time_warped_err", "motion_err", "motion_dist", "coverage_err",
                  "test_enc_reward", "pose_err")
CURVE_COLUMNS = ("Test_Return", "Test_Episode_Length", "Body_Pos_Err", "Motion_Err", "Task_Reward")
CURVES_A_CASE = 3
RECORDS = {".json", ".jsonl", ".tsv", ".txt", ".yaml", ".md"}


@dataclass(frozen=True)
class Result:
    """One case.

    Attributes:
        row: its line in best_by_case.tsv, None without a recorded end.
        test: its test.json, or {}.
        folder: its best attempt's folder, None without one.
        devices: how many it trained on, 0 if not known.
    """

    name: str
    method: str
    row: Mapping[str, str] | None
    test: Mapping[str, Any]
    folder: Path | None
    devices: int = 0


# --- reading ----------------------------------------------------------------------------------------------------------


def read_root(root: Path) -> list[Result]:
    """All cases of a root, in the order of its manifest.

    Raises:
        AssetMissingError: the folder is none of the suite's.
    """
    manifest = root / "case_manifest.tsv"
    if not manifest.is_file():
        raise AssetMissingError(f"{root}: no case_manifest.tsv there; give a folder below output/train that "
                                "pytest -m longcycle has written")
    rows = {row["case"]: row for row in read_tsv(root / "best_by_case.tsv")}
    found = []
    for entry in read_tsv(manifest):
        row = rows.get(entry["case"])
        stem = entry["case"].removesuffix(".txt")
        folder = root / "runs" / stem / f"{row['variant']}_e{row['num_envs']}" if row else None
        test = read_json(folder / "test.json") if folder is not None else {}
        attempts = read_json(root / "runs" / stem / "attempts.json").get("attempts", []) if row else []
        devices = [attempt.get("devices", ()) for attempt in attempts
                   if row["variant"] == attempt.get("variant") and row["num_envs"] == str(attempt.get("num_envs"))]
        found.append(Result(stem.removesuffix("_args"), entry["method"], row, test, folder,
                            len(devices[-1]) if devices else 0))
    return found


def read_runs(folder: Path) -> list[Curves]:
    """One curve per attempt of a case: its trial and its training joined."""
    runs = []
    for attempt in sorted(path for path in folder.glob("*_e*") if path.is_dir()):
        logs = [path for stage in ("probe_train", "long_train") if (path := attempt / stage / "log.txt").is_file()]
        parts = [part for path in logs if len((part := read_curves(path)).columns.get("Samples", ())) > 0]
        if parts:
            runs.append(joined(parts, attempt.name))
    return runs


# --- writing ----------------------------------------------------------------------------------------------------------


def without_machine(value: Any) -> Any:
    """Texts of a JSON value without the machine's folders and GPU identities.

    Paths begin at the repository; paths elsewhere are reduced to names.
    """
    if isinstance(value, str):
        text = GPU_IDENTITY.sub("GPU", FOREIGN_PATH.sub("", value))
        return Path(text).name if text.startswith("/") and " " not in text else text
    if isinstance(value, Mapping):
        return {key: without_machine(item) for key, item in value.items()}
    return [without_machine(item) for item in value] if isinstance(value, list) else value


def read_environments(root: Path, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The machines of the sessions whose results are shown, in order of time."""
    sessions = {result.row["session"] for result in results if result.row}
    found = [read_json(root / ENVIRONMENTS / f"{session}.json") for session in sessions]
    return sorted(map(without_machine, filter(None, found)), key=lambda known: (known["time"], known["command"]))


def command_line(environment: Mapping[str, Any]) -> str:
    """The command that started a session."""
    given = [word for word in (environment.get("command") or [])[1:] if word != "--lf"]
    return shlex.join(["pytest", *(given or ["-m", "longcycle"])])


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


def curve_row(runs: Sequence[Curves], title: str) -> list[Panel]:
    """A case's first informative columns, one line per attempt; empty without runs."""
    columns = [c for c in CURVE_COLUMNS if any(c in run.columns and run.line("Samples", c)[1].any() for run in runs)]
    return [Panel(title, c, [run for run in runs if c in run.columns]) for c in columns[:CURVES_A_CASE]]


def export(root: Path, out: Path, pictures: int) -> dict[str, Any]:
    """Write everything; returns the counts that the command prints."""
    results = read_root(root)
    environments = read_environments(root, results)
    for name in ("best_by_case.tsv", "case_manifest.tsv"):
        if (root / name).is_file():
            write_text(out / name, recorded_text(root / name))
    write_json(out / "environments.json", environments)
    strips, figures = set(), {}
    for result in results:
        if attempts := read_json(root / "runs" / f"{result.name}_args" / "attempts.json"):
            write_json(out / "attempts" / f"{result.name}.json", without_machine(attempts))
        strip = out / "pictures" / f"{result.name}.jpg"
        if result.folder is not None and (film_strip(result.folder / "viz.mp4", strip, pictures) or strip.is_file()):
            strips.add(result.name)
    for method in sorted({result.method for result in results}):
        names = [result.name for result in results if result.method == method]
        rows = [row for name in names if (row := curve_row(read_runs(root / "runs" / f"{name}_args"), name))]
        if rows:
            draw_panels(rows, out / "curves" / f"{method}.png")
            figures[method] = f"curves/{method}.png"
    write_records(root, out / "records.tar.xz")
    write_text(out / "README.md", page(out.name, results, environments, strips, figures))
    return {"cases": len(results), "with_an_end": sum(r.row is not None for r in results), "strips": len(strips),
            "curves": len(figures)}


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


# --- the page ---------------------------------------------------------------------------------------------------------


def page(name: str, results: Sequence[Result], environments: Sequence[Mapping[str, Any]], strips: set[str],
         figures: Mapping[str, str]) -> str:
    """README.md."""
    passed = [r for r in results if r.row and r.row["final_ok"] == "1"]
    ended = [r for r in results if r.row]
    lines = [
        f"# {name}: {len(passed)} of {len(results)} cases passed", "",
        *(line for environment in environments for line in session_lines(environment)),
        *([f"{len(results) - len(ended)} of {len(results)} cases have no recorded end.", ""]
          if len(ended) < len(results) else []),
        "Return and length (control steps) are means over all episodes of the test, ± half the 95 % interval; gate: "
        "the learning gate as it was then (`--from-results` judges by the present ones); seconds: of all stages. "
        "What each measure is: "
        "[run_folder.md](../../run_folder.md). Further columns: [best_by_case.tsv](best_by_case.tsv), attempts: "
        "`attempts/`, all that was recorded but models and films: [records.tar.xz](records.tar.xz).", "",
        "| case | passed | variant | samples | samples/s | return | length | episodes | measures | gate | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(table_row(result) for result in results), "",
    ]
    if figures:
        lines += ["## Learning curves", "", "Evaluations during training over samples; one line an attempt.", ""]
        for method, path in figures.items():
            lines += [f"### {method}", "", f"![learning curves of {method}]({path})", ""]
    if strips:
        lines += ["## Films", "", "The first episode of each test's policy, evenly spaced over its length.", ""]
        for result in results:
            if result.name in strips:
                lines += [f"**{result.name}**", "", f"![{result.name}](pictures/{result.name}.jpg)", ""]
    return "\n".join(lines)


def session_lines(environment: Mapping[str, Any]) -> list[str]:
    """When, where and with what a session ran, and its command."""
    versions = environment.get("versions") or {}
    gpus = [gpu if isinstance(gpu, str) else str(gpu.get("name", gpu)) for gpu in environment.get("gpus") or []]
    shown = [f"{name} {versions[name]}" for name in ("torch", "newton", "warp-lang", "mujoco-warp") if name in versions]
    commit = str(environment.get("git_commit") or "unknown")[:12]
    changed = " with local changes" if environment.get("git_changed") else ""
    words = [
        f"{environment['time'][:10]}, profile `{environment.get('profile', 'unknown')}`, ",
        f"devices {' '.join(environment.get('devices') or ['unknown'])}",
        f" ({', '.join(dict.fromkeys(gpus))})" if gpus else "",
        f", {', '.join(shown)}, commit {commit}{changed}.",
    ]
    lines = ["".join(words)]
    if environment.get("profile") == "smoke":
        lines.append("The smoke profile trains for seconds: it shows that everything works, not what is learned.")
    return [*lines, "", "```sh", command_line(environment), "```", ""]


def table_row(result: Result) -> str:
    """One line of the table."""
    row = result.row
    if row is None:
        return f"| {result.name} | not run |" + " |" * 9
    seconds = sum(float(row[key]) for key in row if key.endswith("_elapsed_s") and row[key])
    verdict = "yes" if row["final_ok"] == "1" else f"no: {row['note']}"
    episodes = (result.test.get("statistics") or {}).get("return", {}).get("episodes", row["test_episodes"])
    measures = ", ".join(f"{name} {shown}" for name in SHOWN_MEASURES if (shown := value_of(result, name)))
    attempt = f"{row['variant']}_e{row['num_envs']}" + (f" on {result.devices} devices" if result.devices > 1 else "")
    cells = [
        result.name, verdict, attempt, count(row["samples"]), count(row["samples_per_s"]),
        value_of(result, "test_return") or number(row["test_return"]),
        value_of(result, "test_episode_length") or number(row["test_episode_length"]),
        str(episodes), measures, gate_words(row["gate_verdict"], row.get("gate_detail", "")), f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def value_of(result: Result, name: str) -> str:
    """``10.5 ± 0.08`` where the statistics name it, a bare number where only the measures do, or nothing."""
    found = sample(result.test, name)
    if found is None:
        return ""
    return number(found.mean) + ("" if found.ci95 is None else f" ± {found.ci95:.2g}")


def number(value: Any) -> str:
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return "-"


def count(value: Any) -> str:
    """``30,000,128``; ``-`` for nothing."""
    try:
        return f"{round(float(value)):,}"
    except (TypeError, ValueError):
        return "-"


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mimickit report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="output/train/<root-out>")
    parser.add_argument("--out", type=Path, help="folder to write (docs/results/<root-out>)")
    parser.add_argument("--pictures", type=int, default=7, help="of each film (7)")
    args = parser.parse_args(argv)
    if args.pictures < 1:
        raise UserError(f"--pictures {args.pictures}: at least 1")
    out = args.out or Path("docs/results") / args.root.name
    done = export(args.root, out, args.pictures)
    print(f"{out}: {done['with_an_end']} of {done['cases']} cases, {done['strips']} film strips, "
          f"{done['curves']} pictures of curves")
    return 0
