"""Stands in for mimickit/run.py: same flags, same files, no physics; misbehaves as ``fake.json`` asks.

``fake.json``: list of rules {"stage", "case", "above_envs", "times", "do"}; the first rule that fits is used up to
``times`` times. ``calls.jsonl`` gets one line per start: stage, case, num_envs, resumed samples, all flags.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mimickit.util.args import Args
from mimickit.util.failures import NonFiniteError, write_failure
from mimickit.util.files import write_json, write_text
from mimickit.util.manifest import describe_file, find_latest, write_manifest

STOP = {"signal": 0}


def main() -> int:
    moved = sys.argv[1] == "sim2sim"  # of a model file
    args = Args.from_argv(sys.argv[3:] if moved else sys.argv[1:])
    out = Path(args["out_dir"])
    stage, case = out.name, (out.parents[1].name if moved else Path(args["arg_file"]).name).removesuffix(".txt")
    case = case.removesuffix("_args")
    num_envs, processes = args["num_envs"], len(args["devices"])
    behaviour = rule(stage, case, num_envs)
    start = resumed_samples(args)
    call = {"stage": stage, "case": case, "num_envs": num_envs, "resumed": start, "do": behaviour,
            "flags": dict(args.values), "nccl": os.environ.get("NCCL_P2P_DISABLE"),
            "mesa": os.environ.get("MESA_GL_VERSION_OVERRIDE"), "time": time.time(), "pid": os.getpid()}
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    print(f"fake {stage} of {case} says hello", flush=True)
    if behaviour and (code := misbehave(behaviour, out)) is not None:
        return code
    result_file = Path(args["result_file"])
    common = {"ok": True, "nonfinite": 0, "contact_overflow": 0, "constraint_overflow": 0, "versions": {"fake": "1"}}
    if behaviour == "overflow":
        common["contact_overflow"] = 3
    if moved:
        length = 3.0 if behaviour == "weak" else 10.0
        write_json(result_file, {**common, "mode": "sim2sim", "test_episode_length": length,
                                 "test_episodes": args["test_episodes"], "measures": {"survival": 1.0}})
        return 0
    if args["mode"] == "train":
        return train(args, out, result_file, common, start, num_envs * processes, behaviour)
    measures = {"pose_err": 0.0001, "body_pos_err": "nan" if behaviour == "nan_measure" else 0.1}
    result = {**common, "mode": "test", "test_return": 9.0, "test_episode_length": 10.0,
              "test_episodes": args["test_episodes"], "measures": measures, "video": None}
    if behaviour == "weak":
        result["test_return"] = 1.0
    if args["video"]:
        video = Path(args["video_file"])
        shutil.copy("blank.mp4" if behaviour == "blank" else "sample.mp4", video)
        video.with_name("viz_00000.png").write_bytes(b"png")
        result["video"] = {"file": str(video), "frames": 10, "png": ["viz_00000.png"]}
    write_json(result_file, result)
    return 0


def rule(stage: str, case: str, num_envs: int) -> str:
    rules = json.loads(Path("fake.json").read_text()) if Path("fake.json").exists() else []
    calls = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()] \
        if Path("calls.jsonl").exists() else []
    for entry in rules:
        used = [c for c in calls if c["do"] == entry["do"] and c["stage"] == stage]
        if (entry.get("stage", stage) == stage and entry.get("case", case) == case
                and num_envs > entry.get("above_envs", 0) and len(used) < entry.get("times", 10**9)):
            return entry["do"]
    return ""


def resumed_samples(args: Args) -> int:
    source = args["resume"]
    if source is None:
        return 0
    return int((find_latest(Path(source)) / "samples").read_text())


def misbehave(behaviour: str, out: Path) -> int | None:
    if behaviour == "crash":
        print("something odd happened on the way", flush=True)
        write_failure(out, 1, RuntimeError("a consequence"))
        failure = RuntimeError("the root cause")
        write_failure(out, 0, failure)
        data = json.loads((out / "failures/rank_0.json").read_text())
        write_json(out / "failures/rank_0.json", {**data, "time": data["time"] - 60})
        return 1
    if behaviour == "nan":
        write_failure(out, 0, NonFiniteError("3 environments were not finite in iteration 5"))
        return 1
    if behaviour == "oom":
        write_failure(out, 0, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
        return 1
    if behaviour == "oom_log_only":
        print("torch.OutOfMemoryError: CUDA out of memory.", flush=True)
        return 1
    if behaviour == "no_result":
        return 0
    if behaviour == "nccl":
        write_failure(out, 0, RuntimeError("NCCL error: unhandled system error"))
        return 1
    if behaviour == "file_for_test":  # in the place of the next stage's folder
        (out.parent / "test").write_text("in the way")
    if behaviour == "no_ledger":  # for pytest it is as if the disk were full: the ledger cannot grow
        ledger = out.parents[3] / "ledger.jsonl"
        pid = next(json.loads(line)["pid"] for line in ledger.read_text().splitlines() if '"session_start"' in line)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (ledger.stat().st_size,) * 2)
    if behaviour == "no_start":
        time.sleep(1000)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour in ("hang", "spawn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if behaviour == "spawn":  # a grandchild in a session of its own, as torchrun starts its workers
            sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            Path("sleeper.pid").write_text(str(sleeper.pid))
        (out / "heartbeat").mkdir()
        (out / "heartbeat/rank_0").touch()
        time.sleep(1000)
    return None


def train(args: Args, out: Path, result_file: Path, common: dict, samples: int, per_step: int, behaviour: str) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: STOP.update(signal=number))
    target = args["max_samples"]
    iterations, limit = 0, args["max_iters"] or 10**9
    while samples < target and iterations < limit and not STOP["signal"]:
        samples, iterations = samples + 8 * per_step, iterations + 1
        if behaviour == "slow":
            time.sleep(0.05)
            log(out, samples)
        (out / "heartbeat").mkdir(exist_ok=True)
        for rank in range(len(args["devices"])):
            (out / f"heartbeat/rank_{rank}").touch()
        write_json(out / "progress.json", {"samples": samples, "max_samples": target, "samples_per_s": 100.0,
                                           "eta_s": 60.0, "phase": "training", "time": time.time()})
        if behaviour == "slow" and samples >= 600:
            save(out, iterations, samples)
    save(out, iterations, samples)
    if behaviour == "fail_after_budget":
        write_failure(out, 0, RuntimeError("failed while closing"))
        return 1
    outcome = "interrupted" if STOP["signal"] else "completed"
    write_json(result_file, {**common, "mode": "train", "outcome": outcome, "samples": samples,
                             "iterations": iterations, "samples_per_s": 100.0,
                             "model_file": str(out / "model.pt"), "model": describe_file(out / "model.pt")})
    return 128 + STOP["signal"] if STOP["signal"] else 0


def log(out: Path, samples: int) -> None:
    """A row of the learning curve."""
    file = out / "log.txt"
    head = "" if file.exists() else "Samples Test_Return Test_Episode_Length\n"
    with file.open("a") as lines:
        lines.write(f"{head}{samples} {samples / 100} {min(samples, 300)}\n")


def save(out: Path, iterations: int, samples: int) -> None:
    aside, folder = (out / "checkpoints" / f"{start}{iterations:010d}" for start in (".", ""))
    for name in ("samples", "shared.pt", "rank_0.pt"):
        write_text(aside / name, str(samples))
    files = {name: describe_file(aside / name) for name in ("shared.pt", "rank_0.pt")}
    write_manifest(aside, {"world_size": 1}, files)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    write_text(out / "model.pt", str(samples))


if __name__ == "__main__":
    sys.exit(main())
