"""The suite's own parts, one by one: ladder, gates, devices, settings, ends of processes, tables."""

import math
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

from mimickit.cases import discover, select
from mimickit.longcycle import devices, environment, judge, ladder, ledger, lifecycle, report, settings, stages
from mimickit.longcycle.ladder import Rung, Trial
from mimickit.util import files
from mimickit.util.failures import FAILURE_CLASSES, UserError
from tests.faults.single_stage import run_code as run
from tests.faults.single_stage import stage_spec
from tests.longcycle.conftest import CASES, ROOT, TRAINED


def test_halving():
    assert ladder.halving(4096) == (4096, 2048, 1024, 512, 256, 128, 64, 32)
    assert ladder.halving(40) == (40,) and ladder.halving(8) == (8,)


def test_only_memory_climbs_down():
    rungs = ladder.rungs({"hiutil": [64, 32], "default": [64, 32]})
    assert rungs == [Rung("hiutil", 64), Rung("hiutil", 32), Rung("default", 64), Rung("default", 32)]
    assert ladder.next_rung(rungs, []) == rungs[0]
    for outcome in ("ok", *FAILURE_CLASSES):
        after = ladder.next_rung(rungs, [Trial(rungs[1], outcome)])
        expected = {"oom_gpu": rungs[2], "oom_host": rungs[2], "nccl": rungs[1], "cuda_fault": rungs[1],
                    "preempted": rungs[1], "no_start": rungs[1]}.get(outcome)
        assert after == expected, outcome
    assert ladder.next_rung(rungs, [Trial(rungs[3], "oom_gpu")]) is None
    assert ladder.next_rung(rungs, [Trial(rungs[0], "nccl"), Trial(rungs[0], "preempted")]) is None
    assert ladder.next_rung(rungs, [Trial(rungs[0], "nccl"), Trial(rungs[0], "oom_gpu")]) == rungs[1]
    assert ladder.next_rung(rungs, [Trial(rungs[0], "oom_gpu"), Trial(rungs[1], "nccl")]) == rungs[1]


def test_samples_per_iteration_stay():
    assert ladder.scaled_steps(32, 4096, 512) == 256
    assert ladder.scaled_steps(32, 4096, 40) == 3277  # 3276.8 rounded up
    assert ladder.scaled_steps(32, 64, 128) == 32


def gate(op=">=", bound=8.0, measure="test_return"):
    return settings.Gate(measure=measure, op=op, bound=bound, source="here")


@pytest.mark.parametrize(("gates", "result", "verdict"), [
    ([gate()], {"test_return": 8.0}, "pass"),
    ([gate()], {"test_return": 7.99}, "fail"),
    ([gate(">")], {"test_return": 8.0}, "fail"),
    ([gate("<", 0.1, "pose_err")], {"measures": {"pose_err": 0.05}}, "pass"),
    ([gate("<=", 0.1, "pose_err")], {"measures": {"pose_err": 0.2}}, "fail"),
    ([gate()], {"test_return": "nan"}, "missing"),
    ([gate()], {"test_return": math.nan}, "missing"),
    ([gate()], {"test_return": True}, "missing"),
    ([gate()], {}, "missing"),
    ([], {"test_return": 100.0}, "missing"),
    ([gate(), gate(measure="test_episode_length")], {"test_return": 9.0, "test_episode_length": 3.0}, "fail"),
    ([gate(measure="x"), gate()], {"test_return": 1.0}, "missing"),
])
def test_gates(gates, result, verdict):
    assert judge.judge_gates(gates, result).verdict == verdict


def done(stage, **result):
    return stages.StageResult(stage, "ok", result={"nonfinite": 0, "contact_overflow": 0, "constraint_overflow": 0,
                                                   **result})


@pytest.mark.parametrize(("change", "expected"), [
    ({}, ("", "")),
    ({"test": done("test", contact_overflow=1)}, ("test", "overflow")),
    ({"long_train": done("long_train", contact_overflow=1)}, ("", "")),
    ({"long_train": done("long_train", nonfinite=1)}, ("long_train", "nan")),
    ({"test": done("test", measures={"a": "inf"})}, ("test", "nan")),
    ({"test": stages.StageResult("test", "ok", result={"nonfinite": 0})}, ("test", "overflow")),
    ({"viz": stages.StageResult("viz", "not_run")}, ("viz", "not_run")),
    ({"viz": stages.StageResult("viz", "failed", "viz_gl")}, ("viz", "viz_gl")),
])
def test_final_ok_needs_everything(change, expected):
    order = ("probe_train", "long_train", "test", "viz")
    results = {name: done(name) for name in order} | change
    verdict = judge.judge_case(order, results, settings.Target(), enforce_gates=False)
    assert (verdict.failed_stage, verdict.failure_class) == expected
    assert verdict.final_ok == (expected == ("", ""))
    enforced = judge.judge_case(order, results, settings.Target(), enforce_gates=True)
    assert not enforced.final_ok


def test_video_has_to_fit_its_result(sample_videos):
    video = sample_videos / "sample.mp4"
    result = {"video": {"frames": 10}, "test_episode_length": 10.0, "test_episodes": 1}
    assert "no PNG" in judge.check_viz(video, result, 1)
    assert "10 frames for 50 steps" in judge.check_viz(video, {**result, "test_episode_length": 50.0}, 1)
    assert "10 frames for 5 steps" in judge.check_viz(video, {**result, "test_episode_length": 5.0}, 1)
    assert "no PNG" in judge.check_viz(video, {**result, "test_episodes": 2}, 2), "one of two episodes was filmed"
    assert "names no video" in judge.check_viz(video, {**result, "video": None}, 1)
    assert "decoded" in judge.check_viz(video, {**result, "video": {"frames": 9}}, 1)
    assert "blank" in judge.check_viz(sample_videos / "blank.mp4", result, 1)
    assert judge.check_viz(sample_videos / "missing.mp4", result, 1)


def test_shipped_data_is_valid():
    profiles = settings.load_profiles()
    assert set(profiles.profiles) == {"full", "smoke"}
    full = profiles.profiles["full"]
    assert (full.long_max_samples, full.probe_iters, full.test_episodes) == (30_000_000, 8, 10) and full.enforce_gates
    assert not profiles.profiles["smoke"].enforce_gates
    assert profiles.train_env["NCCL_P2P_DISABLE"] == "1" and len(profiles.train_env) == 4
    targets, cases = settings.load_targets(), {case.name: case for case in discover(ROOT)}
    assert set(CASES) <= set(cases)
    for name in cases:
        assert targets[name].gates, f"{name} has no learning gate in targets.yaml"
        assert all(len(g.source) > 20 for g in targets[name].gates if g.rule == "fixed"), "say where it comes from"


def test_cases_of_the_checkout():
    cases = {case.name: case for case in discover(ROOT)}
    assert list(cases) == sorted(cases)
    trained = cases["deepmimic_humanoid_ppo"]
    assert trained.trainable and trained.num_envs == 4096 and trained.stages[0] == "probe_train"
    assert (trained.file, trained.stem) == ("deepmimic_humanoid_ppo_args.txt", "deepmimic_humanoid_ppo_args")
    for name in ("dof_test_humanoid", "view_motion_humanoid"):
        assert not cases[name].trainable and cases[name].mode == "test" and cases[name].stages[0] == "bootstrap_train"
    with pytest.raises(UserError, match=r"unknown case 'view_motion_humanod'.*did you mean 'view_motion_humanoid'"):
        select(ROOT, ["view_motion_humanod"])


def test_newer_methods_only_by_name(tmp_path):
    (tmp_path / "args").mkdir()
    for name in ("lcp_g1_ppo", "amp_g1"):
        (tmp_path / f"args/{name}_args.txt").write_text("--env_config e.yaml\n")
    assert [case.name for case in discover(tmp_path)] == ["amp_g1"]
    assert [case.name for case in select(tmp_path, ["lcp_g1_ppo"])] == ["lcp_g1_ppo"]


@pytest.mark.parametrize(("mask", "gpus", "expected"), [
    (None, 2, ["cuda:0", "cuda:1"]), ("", 2, []), ("1", 2, ["cuda:0"]), ("-1", 2, []), ("0,-1,1", 4, ["cuda:0"]),
    ("GPU-a,GPU-b", 4, ["cuda:0", "cuda:1"]), ("0,1", 0, []), ("0,1,2", 2, ["cuda:0", "cuda:1"])])
def test_visible_cuda(mask, gpus, expected):
    environ = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    assert devices.visible_cuda(environ, ["gpu"] * gpus) == expected


def test_default_devices():
    eight = [f"cuda:{i}" for i in range(8)]
    assert settings.choose_devices(None, "full", eight, 2, 1) == (("cuda:0", "cuda:1"), 2)
    assert settings.choose_devices(None, "full", eight, 2, 4) == (tuple(eight), 2)
    assert settings.choose_devices(None, "full", eight, 2, 8) == (tuple(eight), 1)
    assert settings.choose_devices(None, "full", eight[:1], 2, 1) == (("cuda:0",), 1)
    assert settings.choose_devices(None, "full", [], 2, 1) == (("cpu", "cpu"), 2)
    assert settings.choose_devices(None, "smoke", eight, 2, 1) == (("cpu", "cpu"), 2)
    assert settings.choose_devices(["cuda:3"], "smoke", eight, 2, 1) == (("cuda:3",), 1)


@pytest.mark.parametrize(("mask", "uuids", "name"), [
    ("4,6", (), "cuda-6"), (None, (), "cuda-1"), (None, ("GPU-a", "GPU-b"), "GPU-b"),
    ("1,0", ("GPU-a", "GPU-b"), "GPU-a"), ("GPU-c,GPU-d", (), "GPU-d"), ("0,GPU-b", ("GPU-a", "GPU-b9"), "GPU-b9")])
def test_sessions_agree_on_the_names_of_devices(mask, uuids, name):
    environ = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    assert devices.physical_name("cuda:1", environ, uuids) == name


def test_leases_are_exclusive_and_all_or_nothing(tmp_path):
    pool = ["cuda:0", "cuda:1", "cuda:2"]

    def give_up():
        raise TimeoutError

    with devices.lease(pool, 2, tmp_path) as first:
        assert first == ["cuda:0", "cuda:1"]
        with pytest.raises(TimeoutError), devices.lease(pool, 2, tmp_path, waiting=give_up):
            pass
        with devices.lease(pool, 1, tmp_path) as second:
            assert second == ["cuda:2"]
    with devices.lease(pool, 3, tmp_path) as everything:
        assert everything == pool


@pytest.mark.parametrize("slots", [1, 2])
def test_a_lease_that_waits_holds_nothing(tmp_path, slots):
    """One of its two devices is taken: meanwhile others may have the free one."""
    pool, seen = ["cuda:0", "cuda:1"], []

    def held():
        raise AssertionError("one that waits holds the free device")

    def look():
        with devices.lease(["cuda:0"], 1, tmp_path / "locks", waiting=held) as other:
            seen.append(other)
        raise TimeoutError

    name = devices.physical_name("cuda:1")
    with devices.file_lock(tmp_path / "locks" / f"{name}.lock"), pytest.raises(TimeoutError), \
            devices.lease(pool, 2, tmp_path / "locks", slots, waiting=look):
        pass
    assert seen == [["cuda:0"]]


def test_what_a_verdict_depends_on():
    """Inputs, sizes and gates; not how patient the session is."""
    case = next(case for case in discover(ROOT) if case.name == TRAINED)
    profile = settings.load_profiles().profiles["smoke"]
    asked = settings.Settings(
        repo=ROOT, out=ROOT / "output/train/none", profile_name="smoke", profile_reason="", profile=profile,
        targets={TRAINED: settings.Target(gates=(gate(),))}, train_env={}, viz_env={}, pool=("cpu",), per_case=1)

    def key(**changes):
        return lifecycle.case_key(replace(asked, **changes), case)

    others = [
        key(targets={TRAINED: settings.Target(gates=gates)})
        for gates in ((), (gate(bound=8.5),), (gate(">"),), (gate(measure="test_episode_length"),), (gate(), gate()))]
    others += [key(profile=profile.model_copy(update={name: getattr(profile, name) + 1}))
               for name in ("long_max_samples", "probe_iters", "test_episodes", "rand_seed")]
    others += [key(ladder=(64,)), key(scale_steps=False), key(profile_name="full"),
               key(long_mode="time_budget", long_budget_hours=1.0), key(long_mode="time_budget", long_budget_hours=2.0)]
    assert len({key(), *others}) == 1 + len(others)
    assert key(profile=profile.model_copy(update={"hang_seconds": 1.0, "long_timeout": 5.0})) == key()
    assert key(targets=asked.targets | {CASES[1]: settings.Target(gates=(gate(),))}) == key()  # another case's


def test_all_hours_before_an_interruption_count():
    """Twice interrupted, both parts are used up; an attempt that begins afresh has its whole budget again."""
    def event(kind, stage, seconds=0.0, outcome="interrupted", afresh=False, fingerprint="f"):
        return {"event": kind, "time": 0.0, "case": TRAINED, "variant": "default", "num_envs": 8, "stage": stage,
                "fingerprint": fingerprint, "afresh": afresh, "devices": ["cpu"], "degraded": False, "folder": "x",
                "started": 0.0, "out_dir": "x", "log": "x", "outcome": outcome, "failure_class": "",
                "elapsed_s": seconds}

    def used(*events):
        return ledger.replay(events).case(TRAINED).attempts["default", 8].train_seconds

    probe = [event("stage_start", "probe_train", afresh=True), event("stage_end", "probe_train", 5.0, "ok")]
    parts = [each for seconds in (100.0, 20.0, 3.0)
             for each in (event("stage_start", "long_train"), event("stage_end", "long_train", seconds))]
    test = [event("stage_start", "test"), event("stage_end", "test", 50.0, "ok")]
    assert used(*probe, *parts[:4]) == 120.0
    assert used(*probe, *parts, *test) == 123.0
    assert used(*probe, *parts, event("stage_start", "probe_train", afresh=True)) == 0.0
    assert used(*probe, *parts, event("stage_start", "long_train", fingerprint="other")) == 0.0


def test_exit_code_and_result_decide_together(tmp_path):
    write = "open('out/result.json', 'w').write('{}');"
    ok = run(tmp_path, write.format('{"mode": "test", "ok": true}') + "import os; print(os.environ['WORD'])",
             env={"WORD": "hello"})
    assert ok.ok and ok.tail == "hello" and ok.result["mode"] == "test"
    assert run(tmp_path, "pass").failure_class == "no_result", "the result of an earlier run must not count"
    assert run(tmp_path, write.format('{"mode": "train", "ok": true}')).failure_class == "no_result"
    assert run(tmp_path, write.format('{"mode": "test", "ok": false}')).failure_class == "failed"
    assert run(tmp_path, write.format('{"mode": "test", "ok": true}') + "raise SystemExit(3)").failure_class == "failed"
    assert run(tmp_path, "raise SystemExit(2)").failure_class == "config"
    assert run(tmp_path, "print('No space left on device'); raise SystemExit(1)").failure_class == "disk"
    assert run(tmp_path, "raise SystemExit(1)").failure_class == "failed", "only this run's lines of the log count"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ends_by_signals_from_outside(tmp_path, number):
    result = run(tmp_path, f"import os; os.kill(os.getpid(), {int(number)})")
    assert (result.rc, result.failure_class) == (128 + number, "preempted")


def test_orphans_end_with_their_stage(tmp_path):
    code = ("import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
            "open('pid', 'w').write(str(p.pid))")
    run(tmp_path, code)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 2.0
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")


def test_an_interrupted_wait_is_recorded(tmp_path):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        stages.run_stage(stage_spec(tmp_path, ["sleep", "100"]), seen.append, stop_requested=lambda: True)
    assert [result.outcome for result in seen] == ["interrupted"]


def test_table_text_survives_tabs_and_lines(tmp_path):
    path = tmp_path / "table.tsv"
    files.write_tsv(path, ("a", "b"), [{"a": "x\ty\nz", "b": None}, {"b": '"quoted" or not'}])
    assert path.read_text() == 'a\tb\nx y z\t\n\t"quoted" or not\n'
    assert files.read_tsv(path) == [{"a": "x y z", "b": ""}, {"a": "", "b": '"quoted" or not'}]
    path.write_text("")
    assert files.read_tsv(path) == files.read_tsv(tmp_path / "none.tsv") == []


def test_numbers_and_durations():
    assert [report.number(v) for v in (30_000_000, 61_234.0, 19.4, 2048)] == ["30.0M", "61.2k", "19.4", "2048"]
    assert [report.duration(v) for v in (245, 7445, None, math.inf)] == ["4:05", "2:04:05", "-", "-"]


def test_an_archive_tells_its_commit(tmp_path):
    assert environment.commit(tmp_path) is None
    shutil.copy(ROOT / ".git_archival.txt", tmp_path)
    assert environment.commit(tmp_path) is None, "what a checkout holds is no commit"
    (tmp_path / ".git_archival.txt").write_text(f"node: {'0af5' * 10}\n")
    assert environment.commit(tmp_path) == "0af5" * 10
