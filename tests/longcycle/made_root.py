"""Roots as the suite leaves them, made in no time: for pages of any size, and with any content."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimickit.cases import TRAIN_STAGES, VIEW_STAGES
from mimickit.longcycle.events import to_line
from mimickit.longcycle.ledger import COLUMNS, replay, rows
from mimickit.longcycle.settings import Target, load_targets
from mimickit.util.files import write_json, write_tsv

BEGUN = 1_796_000_000.0
SECONDS = {"probe_train": 20.0, "long_train": 600.0, "bootstrap_train": 5.0, "test": 15.0, "viz": 20.0}


def reached(targets: Mapping[str, Target], case: str, better: float) -> dict[str, float]:
    """A value for each gate's measure: its bound, better by this share of it (negative: worse)."""
    return {gate.measure: gate.bound * (1 + better if gate.upwards else 1 - better) for gate in targets[case].gates} \
        if case in targets else {"pose_err": 1e-4}


def make_root(
    path: Path, cases: Sequence[str], seed: int = 1, film: Path | None = None, failing: Sequence[str] = (),
    message: str = "learning gate: not enough", log: str = "it went well", names: Sequence[str] | None = None,
    values: Callable[[str], dict[str, float]] | None = None, session: str = "", about: Mapping[str, Any] | None = None,
    rate: float = 50_000.0, begun: float = BEGUN,
) -> Path:
    """A finished root of these cases.

    Args:
        film: an mp4 file that every case has, or none.
        failing: cases whose test misses a gate.
        message, log: why they failed; the last lines of every log.
        values: measures of a case's test; default: somewhat better than its gates ask for.
    """
    targets, rng = load_targets(), np.random.default_rng(seed)
    session = session or f"session{seed}"
    events: list[dict[str, Any]] = [{"event": "session_start", "time": begun, "session": session, "pid": 1,
                                     "profile": "full", "cases": list(cases), "command": ["pytest", "-m", "longcycle"]}]
    for case in cases:
        stages = VIEW_STAGES if case.startswith(("view", "dof")) else TRAIN_STAGES
        folder = path / "runs" / f"{case}_args" / "tuned_e4096"
        measures = values(case) if values else reached(targets, case, 0.2)
        statistics = {name.removeprefix("test_").replace("episode_length", "length"): {
            "mean": float(value), "ci95": abs(float(value)) * 0.003, "std": abs(float(value)) * 0.05, "episodes": 1024,
            "min": 0.0, "max": 2 * float(value), "quantiles": {"50": float(value)}} for name, value in measures.items()}
        test = {"ok": True, "test_return": 200.0, "test_episode_length": 300.0, "test_episodes": 10, "nonfinite": 0,
                "contact_overflow": 0, "constraint_overflow": 0, "measures": dict(measures), "statistics": statistics}
        failed = case in failing
        for stage in stages:
            begin = {"case": case, "variant": "tuned", "num_envs": 4096, "stage": stage, "fingerprint": "f", "key": {},
                     "degraded": False, "devices": ["cuda:0"], "folder": str(folder), "out_dir": str(folder / stage),
                     "log": str(folder / f"{stage}.log"), "started": begun, "afresh": False}
            result = test if stage == "test" else {"ok": True, "samples": 30_000_000, "samples_per_s": rate}
            events.append({"event": "stage_start", "time": begun, **begin})
            events.append({"event": "stage_end", "time": begun + SECONDS[stage], **begin, "outcome": "ok",
                           "elapsed_s": SECONDS[stage], "rc": 0, "result": result})
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stage}.log").write_text(f"{stage}\n{log}\n")
        if "long_train" in stages:
            curve(folder / "long_train/log.txt", rng)
        write_json(folder / "test.json", test)
        if film is not None:
            shutil.copy(film, folder / "viz.mp4")
        verdict = {"final_ok": 1, "gate_verdict": "pass", "gate_detail": "all hold", "note": "ok"}
        if failed:
            verdict = {"final_ok": 0, "gate_verdict": "fail", "gate_detail": message, "note": "gate_in_test",
                       "failed_stage": "test", "failure_class": "gate", "message": message}
        row = {**dict.fromkeys(COLUMNS, ""), "case": f"{case}_args.txt", "method": case.split("_")[0],
               "case_type": "trainable" if "long_train" in stages else "nontrainable", "variant": "tuned",
               "num_envs": 4096, "degraded": 0, "profile": "full", "session": session, "samples": 30_000_000,
               "samples_per_s": rate, **verdict, **{f"{short}_elapsed_s": SECONDS[stage] for short, stage in zip(
                   ("probe", "long", "test", "viz"), TRAIN_STAGES, strict=True)}}
        events.append({"event": "case_end", "time": begun + 700.0, "case": case, "row": row})
    events.append({"event": "session_end", "time": begun + 900.0, "status": "finished"})
    path.mkdir(parents=True, exist_ok=True)
    (path / "ledger.jsonl").write_bytes(b"".join(map(to_line, events)))
    state = replay(events)
    write_tsv(path / "best_by_case.tsv", COLUMNS, rows(state))
    write_tsv(path / "case_manifest.tsv", ["case", "method", "case_type"], [
        {"case": f"{name}_args.txt", "method": name.split("_")[0],
         "case_type": "nontrainable" if name.startswith(("view", "dof")) else "trainable"} for name in names or cases])
    environment = {"time": "2026-12-01T02:00:00", "profile": "full", "devices": ["cuda:0"], "gpus": ["NVIDIA H200"],
                   "git_commit": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00", "git_changed": False, "python": "3.12.3",
                   "versions": {"torch": "2.13.0", "newton": "1.8.0"}, "sizes": {"rand_seed": seed}, "driver": "580",
                   "command": ["pytest", "-m", "longcycle"], "devices_per_case": 1, **(about or {})}
    write_json(path / "environment.json", environment)
    write_json(path / "environments" / f"{session}.json", environment)
    write_json(path / "progress.json", {"status": "finished", "done": len(cases), "total": len(cases), "time": begun})
    return path


def curve(file: Path, rng: np.random.Generator, rows: int = 40) -> None:
    """A learning curve as a training logs it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["Samples Test_Return Test_Episode_Length Disc_Reward_Mean Train_Return Train_Episode_Length Kl_Div"]
    for i in range(1, rows + 1):
        noise = rng.normal(0, 3, 6)
        share = 1 - np.exp(-3 * i / rows)
        lines.append(f"{i * 750_000} {220 * share + noise[0]} {300 * share + noise[1]} {share + 0.01 * noise[2]} "
                     f"{200 * share + noise[3]} {280 * share + noise[4]} {0.03 + 0.001 * noise[5]}")
    file.write_text("\n".join(lines) + "\n")


def page_data(out: Path, case: str) -> tuple[str, dict[str, str], list[dict[str, Any]]]:
    """What a panel's script hands to the page: name, parts, charts."""
    text = (out / f"page/cases/{case}.js").read_text()
    return tuple(json.loads(f"[{text.removeprefix('page.panel(').removesuffix(');' + chr(10))}]"))
