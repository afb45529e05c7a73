"""Whole sessions of the acceptance suite around the fake trainer: what runs, what is recorded, how it ends."""

import json
import re

import pytest

from mimickit.util.files import read_tsv
from tests.longcycle.conftest import CASES, ROOT, TRAINED

FIRST = f"*test_longcycle[[]{TRAINED}[]]*"


def test_all_three_cases_pass(project):
    result = project.pytest("-m", "longcycle")
    assert result.ret == 0
    result.stdout.fnmatch_lines([
        "*profile smoke (no CUDA device found), devices cpu cpu*",
        "3 cases, 10 stages, 1 at once: about *",
        "*learning not judged*",
        "*profile smoke: learning is not judged*",
        "in output/train/longcycle_smoke: *viz.mp4*",
        "curves: *tools/plot_log.py output/train/longcycle_smoke/runs/*/long_train",
        "*3/3 final_ok=1 | trainable 1/1 | nontrainable 2/2 | deepmimic 1/1 dof 1/1 view 1/1*",
    ])
    assert [(c["case"], c["stage"]) for c in project.calls()] == [
        *((TRAINED, stage) for stage in ("probe_train", "long_train", "test", "viz")),
        *((case, stage) for case in CASES[1:] for stage in ("bootstrap_train", "test", "viz")),
    ]
    assert (project.path / "heavy.txt").read_text() == ""
    assert "kernels" not in result.stdout.str(), "a runner of one's own compiles for itself"
    assert project.progress()["status"] == "finished"
    assert {k: project.progress()[k] for k in ("done", "total", "passed", "failed")} == {
        "done": 3, "total": 3, "passed": 3, "failed": 0}


def test_stages_are_started_as_the_contract_says(project):
    project.run("--cases", TRAINED)
    probe, long, test, viz = project.calls()
    assert (probe["flags"]["max_iters"], probe["flags"]["devices"]) == (["2"], ["cpu", "cpu"])
    assert probe["flags"]["engine_config"] == ["data/engines/newton_engine.yaml"]
    folder = "output/train/longcycle_smoke/runs/deepmimic_humanoid_ppo_args/default_e8"
    assert long["flags"]["resume"] == [f"{folder}/probe_train"] and long["resumed"] == 2 * 8 * 16
    assert long["flags"]["max_samples"] == ["1000"] and long["flags"]["output_samples"] == ["1024"]
    assert test["flags"]["devices"] == ["cpu"] and test["flags"]["model_file"] == [f"{folder}/long_train/model.pt"]
    assert (viz["flags"]["video"], test["flags"]["video"]) == (["true"], ["false"])
    assert (probe["nccl"], long["nccl"], test["nccl"]) == ("1", "1", None)
    assert (viz["mesa"], test["mesa"]) == ("3.3", None)
    assert viz["flags"]["set"] == ["env.rand_reset=false"] and "set" not in test["flags"]
    left = {path.name for path in (project.path / folder).iterdir()}
    assert left >= {"probe_train", "long_train", "probe_train.log", "long_train.log", "test.log", "viz.log",
                    "test.json", "viz.mp4"}
    assert "fake test of deepmimic_humanoid_ppo says hello" in (project.path / folder / "test.log").read_text()


def test_older_scripts_read_the_table(project):
    project.run()
    rows = project.rows()
    assert sorted(rows) == sorted(CASES)
    row = rows[TRAINED]
    assert row["case"] == "deepmimic_humanoid_ppo_args.txt" and row["final_ok"] == "1"
    for column in ("out_dir", "long_out_dir", "test_log", "viz_log", "probe_out_dir", "probe_train_log",
                   "long_train_log"):
        assert (project.path / row[column]).exists(), column
    assert all((project.path / rows[case]["long_out_dir"]).is_dir() for case in CASES)
    assert (row["method"], row["case_type"], row["variant"], row["num_envs"]) == (
        "deepmimic", "trainable", "default", "8")
    assert [row[f"{s}_{w}"] for s in ("probe", "long", "test", "viz") for w in ("ok", "rc")] == ["1", "0"] * 4
    assert (row["test_return"], row["gate_verdict"], row["note"], row["samples"]) == ("9.0", "not_judged", "ok", "1024")
    assert float(row["long_elapsed_s"]) > 0 and row["samples_per_s"] == "100.0"


def test_manifest_and_environment(project):
    project.run("--cases", TRAINED, "--train-env", "NCCL_DEBUG=INFO")
    (entry,) = read_tsv(project.out / "case_manifest.tsv")
    assert {"case", "method", "case_type", "mode", "agent_config", "env_config"} <= set(entry)
    assert (entry["motion_file"], entry["char_file"]) == ("data/a.pkl", "data/char.xml")
    digests = dict(pair.split("=") for pair in entry["sha256"].split())
    assert len(digests["data/char.xml"]) == 64 and digests["data/a.pkl"] == "missing"
    environment = json.loads((project.out / "environment.json").read_text())
    assert environment["train_env"] == {"NCCL_DEBUG": "INFO"} and environment["versions"]["torch"]
    assert project.calls()[0]["nccl"] is None


def test_tables_come_from_the_ledger_alone(project):
    project.run()
    before = (project.out / "best_by_case.tsv").read_text()
    attempts = project.attempts()
    (project.out / "best_by_case.tsv").unlink()
    (project.out / "runs" / f"{TRAINED}_args" / "attempts.json").unlink()
    with (project.out / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"event": "stage_sta')  # a power cut
    from mimickit.longcycle.ledger import Ledger

    record = Ledger(project.out, project.path)
    record.write_tables(record.state(), [TRAINED])
    assert (project.out / "best_by_case.tsv").read_text() == before
    assert project.attempts() == attempts
    assert attempts[0]["note"] == "ok" and attempts[0]["versions"] == {"fake": "1"}
    assert attempts[0]["stages"]["viz"]["outcome"] == "ok"
    Ledger(project.out, project.path).append("session_end", status="finished")
    assert project.events_tolerant()[-1]["event"] == "session_end"


@pytest.mark.parametrize("form", ["{}", "{}_args", "{}_args.txt", "args/{}_args.txt"])
def test_cases_takes_every_form(project, form):
    result = project.run("--collect-only", "-q", "--cases", f"{form.format(CASES[2])},{CASES[1]}")
    result.stdout.fnmatch_lines([f"*test_longcycle[[]{CASES[1]}[]]", f"*test_longcycle[[]{CASES[2]}[]]"])
    result.stdout.no_fnmatch_line(FIRST)
    assert not (project.path / "output").exists()


def test_unknown_case_names_the_nearest(project):
    result = project.run("--cases", "deepmimic_humanoid_pp")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown case 'deepmimic_humanoid_pp' (did you mean 'deepmimic_humanoid_ppo'?)*"])


@pytest.mark.parametrize(("options", "words"), [
    (["--longcycle-profile", "ful"], "*ful: allowed are full, smoke*"),
    (["--env-ladder", "4k"], "*--env-ladder 4k*"),
    (["--env-ladder", "64,64"], "*--env-ladder 64,64: give different*"),
    (["--devices-train", "cuda:0,cuda:0"], "*cuda:0 is named twice*"),
    (["--long-mode", "time_budget", "--long-budget-hours", "0"], "*--long-budget-hours 0: must be above 0*"),
    (["--pi-plus-ladder", "40,x"], "*--pi-plus-ladder 40,x: give different*"),
    (["--env-ladder", "8", "--default-ladder", "8"], "*--env-ladder and --default-ladder: give one*"),
    (["--allocation-profile-tsv", "none.tsv"], "*--allocation-profile-tsv none.tsv: no such file*"),
    (["--require-deps", "torch,no_such_module,nor_this"], "*cannot import no_such_module (*; nor_this (*"),
    (["--root-out", "../elsewhere"], "*folder name below output/train*"),
    (["--train-env", "NCCL"], "*'NCCL' is not KEY=VALUE*"),
    (["--probe-iters", "-1"], "*must not be negative*"),
    (["--cases-per-device", "0"], "*--cases-per-device 0: at least 1*"),
    (["--engine-config", "data/engines/none.yaml"], "*data/engines/none.yaml*"),
    (["--engine-config", "data/agents/deepmimic_humanoid_ppo_agent.yaml"], "*unknown key 'steps_per_iter'*"),
])
def test_wrong_options_are_usage_errors(project, options, words):
    result = project.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_plain_pytest_never_runs_cases(project):
    (project.path / "tests/unit/test_other.py").write_text("def test_other():\n    pass\n")
    for options in ([], ["-m", ""]):
        result = project.pytest(*options)
        result.assert_outcomes(passed=1, deselected=3)
    assert not project.calls() and not (project.path / "output").exists()
    assert project.pytest("--cases", TRAINED).ret == pytest.ExitCode.USAGE_ERROR


def test_nontrainable_can_be_left_out_and_nothing_selected_says_so(project):
    result = project.run("--exclude-nontrainable", "--cases", CASES[1])
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["*no case selected*"])
    result = project.run("--exclude-nontrainable")
    result.stdout.fnmatch_lines(["*1/1 final_ok=1 | trainable 1/1 | deepmimic 1/1*"])
    assert {call["case"] for call in project.calls()} == {TRAINED}


@pytest.mark.parametrize(("behaviour", "failure_class", "cause"), [
    ("crash", "failed", "*RuntimeError: the root cause*"),
    ("nan", "nan", "*3 environments were not finite*"),
    ("no_result", "no_result", "*exit code 0, but no readable result.json*"),
    ("hang", "hang", "*no sign of life from rank_0*"),
])
def test_failed_training_is_told_and_nothing_follows(project, behaviour, failure_class, cause):
    project.rules({"stage": "long_train", "do": behaviour})
    project.profiles(hang_seconds=1, stop_grace=1)
    result = project.run("--cases", f"{TRAINED},{CASES[1]}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([
        f"*{TRAINED}: stage long_train failed, class {failure_class}:*", "*not run: test, viz*",
        "*log: *default_e8/long_train.log", "* | fake long_train of deepmimic_humanoid_ppo says hello*"])
    result.stdout.fnmatch_lines([cause])
    result.stdout.fnmatch_lines([f"FAILED   {TRAINED}: long_train {failure_class}*", "*1/2 final_ok=1*"])
    assert project.stages() == ["probe_train", "long_train"]
    row = project.rows()[TRAINED]
    assert (row["final_ok"], row["failure_class"], row["test_ok"]) == ("0", failure_class, "")
    assert project.attempts()[0]["note"] == f"{failure_class}_in_long_train"


def test_timeout(project):
    project.rules({"stage": "test", "do": "hang"})
    project.profiles(stop_grace=1)
    result = project.run("--cases", CASES[1], "--test-timeout", "1")
    result.stdout.fnmatch_lines(["*stage test failed, class timeout: still running after 1 s*"])
    assert project.stages(CASES[1]) == ["bootstrap_train", "test"]


@pytest.mark.parametrize("behaviour", ["oom", "oom_log_only"])
def test_memory_climbs_down_and_keeps_samples_per_iteration(project, behaviour):
    project.rules({"stage": "probe_train", "above_envs": 16, "do": behaviour})
    result = project.run("--cases", TRAINED, "--env-ladder", "64,32,16")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1/1 final_ok=1*"])
    assert [c["num_envs"] for c in project.calls() if c["stage"] == "probe_train"] == [64, 32, 16]
    steps = [v for c in project.calls() if c["stage"] == "long_train" for v in c["flags"]["set"]]
    assert "agent.steps_per_iter=32" in steps  # the smoke profile's 8, times 64/16
    row = project.rows()[TRAINED]
    assert (row["num_envs"], row["degraded"], row["note"]) == ("16", "1", "ok degraded")
    assert [a["note"] for a in project.attempts()] == ["oom_gpu_in_probe_train", "oom_gpu_in_probe_train", "ok"]


def test_ladder_can_be_exhausted(project):
    project.rules({"stage": "probe_train", "do": "oom"})
    result = project.run("--cases", TRAINED, "--env-ladder", "64,32")
    assert result.ret == 1 and project.stages() == ["probe_train"] * 2
    result.stdout.fnmatch_lines([f"FAILED   {TRAINED}: probe_train oom_gpu*"])


def test_hiutil_comes_first(project):
    (project.path / "data/agents/deepmimic_humanoid_ppo_agent_hiutil.yaml").write_text("steps_per_iter: 32\n")
    project.run("--cases", TRAINED)
    assert project.rows()[TRAINED]["variant"] == "hiutil"
    assert project.calls()[0]["flags"]["agent_config"] == ["data/agents/deepmimic_humanoid_ppo_agent_hiutil.yaml"]


def test_variants_can_be_chosen(project):
    for name in ("tuned", "hiutil"):
        (project.path / f"data/agents/deepmimic_humanoid_ppo_agent_{name}.yaml").write_text(
            "base: deepmimic_humanoid_ppo_agent.yaml\n")
    only = ["--cases", TRAINED, "--variants"]
    assert project.run(*only, "default").ret == 0
    assert project.rows()[TRAINED]["variant"] == "default"
    assert project.run("--cases", TRAINED).ret == 0  # not reused: another variant comes first
    assert project.rows()[TRAINED]["variant"] == "tuned"
    project.forget_calls()
    assert project.run("--cases", TRAINED).ret == 0 and not project.calls()
    assert project.run(*only, "hiutil,default").ret == 0
    assert project.rows()[TRAINED]["variant"] == "hiutil"
    result = project.run(*only, "tund")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown variant 'tund' (did you mean 'tuned'?)*tuned, hiutil, default*"])


def test_the_tuned_variant_has_its_own_number_of_environments(project):
    (project.path / "data/agents/deepmimic_humanoid_ppo_agent_tuned.yaml").write_text(
        "base: deepmimic_humanoid_ppo_agent.yaml\n")
    project.profiles(env_ladder=None, tuned_envs=128)
    project.rules({"stage": "probe_train", "do": "oom", "times": 1})
    assert project.run("--cases", TRAINED, "--devices-train", "cpu,cpu").ret == 0
    assert [(call["stage"], call["num_envs"]) for call in project.calls()[:2]] == [
        ("probe_train", 64), ("probe_train", 32)]  # the devices share them
    assert project.attempts()[-1]["degraded"] and project.rows()[TRAINED]["variant"] == "tuned"
    assert project.run("--cases", TRAINED, "--variants", "default").ret == 0
    assert project.rows()[TRAINED]["num_envs"] == "4096"


@pytest.mark.parametrize("behaviour", ["nccl", "killed"])
def test_transient_failures_get_one_more_chance(project, behaviour):
    project.rules({"stage": "long_train", "do": behaviour, "times": 1})
    assert project.run("--cases", TRAINED).ret == 0
    assert project.stages() == ["probe_train", "long_train", "long_train", "test", "viz"]
    project.rules({"stage": "long_train", "do": behaviour})
    project.forget_calls()
    assert project.run("--cases", TRAINED, "--root-out", "again").ret == 1
    assert project.stages() == ["probe_train", "long_train", "long_train"]


def test_what_never_came_to_life_gets_one_more_chance(project):
    project.profiles(startup_seconds=4, stop_grace=1)
    project.rules({"stage": "probe_train", "do": "no_start", "times": 1})
    assert project.run("--cases", TRAINED).ret == 0
    assert project.stages() == ["probe_train", "probe_train", "long_train", "test", "viz"]
    first = next(event for event in project.events() if event["event"] == "stage_end")
    assert (first["failure_class"], first["message"][:30]) == ("no_start", "2 of 2 processes did not start")


@pytest.mark.parametrize(("stage", "behaviour", "failure_class"), [
    ("test", "overflow", "overflow"), ("test", "nan_measure", "nan"), ("viz", "blank", "failed")])
def test_what_exit_codes_do_not_tell(project, stage, behaviour, failure_class):
    project.rules({"stage": stage, "do": behaviour})
    assert project.run("--cases", CASES[2]).ret == 1
    row = project.rows()[CASES[2]]
    assert (row["failed_stage"], row["failure_class"], row[f"{stage}_rc"]) == (stage, failure_class, "0")


def test_gates_decide_in_the_full_profile(project):
    out = project.path / "output/train/longcycle"
    (project.path / "targets.yaml").write_text(
        f"{TRAINED}:\n  gates: [{{measure: test_return, op: '>=', bound: 8.0, source: here}}]\n"
        f"{CASES[1]}:\n  gates: [{{measure: no_such, op: '<', bound: 8.0, source: here}}]\n")
    full = ["--longcycle-profile", "full", "--devices-train", "cpu"]
    without = project.run(*full)
    assert without.ret == pytest.ExitCode.USAGE_ERROR and not project.calls()
    without.stderr.fnmatch_lines([f"*targets.yaml: no gates for {CASES[2]}*profile full needs them*"])
    result = project.run(*full, "--cases", f"{TRAINED},{CASES[1]}")
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        f"FAILED   {CASES[1]}: test gate: learning gate: no_such is missing*", "*1/2 final_ok=1*"])
    assert project.rows(out)[TRAINED]["gate_verdict"] == "pass"
    project.rules({"stage": "test", "do": "weak"})
    assert project.run(*full, "--root-out", "weak", "--cases", TRAINED).ret == 1
    assert project.rows(out.with_name("weak"))[TRAINED]["gate_detail"] == "test_return 1 misses >= 8 by 7"


def test_budget_checkpoint_policy(project):
    project.rules({"stage": "long_train", "do": "fail_after_budget"})
    assert project.run("--cases", TRAINED).ret == 1
    policy = ["--cases", TRAINED, "--long-success-policy", "budget_checkpoint"]
    assert project.run(*policy, "--root-out", "b").ret == 0
    assert "accepted with a checkpoint" in project.rows(project.out.with_name("b"))[TRAINED]["message"]
    project.rules({"stage": "long_train", "do": "slow"})  # time is not the budget here
    assert project.run(*policy, "--root-out", "c", "--long-max-samples", "1000000", "--long-timeout", "1").ret == 1


def test_time_budget_is_counted_over_sessions(project):
    project.rules({"stage": "long_train", "do": "crash", "times": 1})
    budget = ["--cases", TRAINED, "--long-mode", "time_budget", "--long-budget-hours", "1"]
    project.run(*budget)
    events = project.events()
    used = sum(e["elapsed_s"] for e in events if e["event"] == "stage_end" and e["stage"] == "long_train")
    project.rules({"stage": "long_train", "do": "nan"})
    project.run(*budget)
    first, _ = (c for c in project.calls() if c["stage"] == "long_train")
    assert "max_samples" not in first["flags"] and "time_budget_hours" not in first["flags"]
    row = project.rows()[TRAINED]
    assert float(row["long_budget_elapsed_sec"]) > used > 0
    assert (row["long_mode"], row["long_max_samples"], row["long_budget_hours"], row["long_budget_target_sec"],
            row["long_budget_reached"], row["long_budget_signal"], row["long_stop_reason"]) == (
        "time_budget", "", "1.0", "3600.0", "0", "SIGINT", "long_exit")


def test_xdist_runs_cases_side_by_side(project):
    project.rules({"do": "slow"})
    result = project.run("-n", "2", "--cases", f"{CASES[1]},{CASES[2]}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*2/2 final_ok=1 | nontrainable 2/2 | dof 1/1 view 1/1*"])
    assert project.progress()["status"] == "finished" and len(project.rows()) == 2
    project.forget_calls()
    result = project.run("-n", "2", "--cases", f"{CASES[1]},{CASES[2]}", "--lf")
    assert result.ret == 0 and not project.calls()
    result.stdout.fnmatch_lines(["*every selected case has passed already*", "*2/2 final_ok=1*"])


def test_the_tests_own_time_limit_does_not_end_cases(project):
    ini = project.path / "pytest.ini"
    ini.write_text(ini.read_text().replace("timeout = 600", "timeout = 1"))
    project.rules({"stage": "long_train", "do": "slow"})
    long = ("--cases", TRAINED, "--long-max-samples", "3500")  # 25 iterations of 0.05 s
    result = project.pytest("-m", "longcycle", *long)
    assert result.ret == 0
    assert project.events()[-1]["time"] - project.events()[0]["time"] > 1.0
    result = project.pytest("-m", "longcycle", "--cases", CASES[1], "--timeout", "1", "--root-out", "limited")
    result.stdout.fnmatch_lines(["*timeout: 1.0s*"])


def test_the_page_names_every_option_and_only_those(project):
    text = project.pytest("--help").stdout.str()
    known = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", text))
    begin = text.index("acceptance suite (pytest -m longcycle")
    ours = set(re.findall(r"^  (--[a-z-]+)", text[begin:text.index("\n\n", begin)], flags=re.MULTILINE))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs/longcycle.md").read_text()))
    assert len(ours) > 20 and named - known == set() and ours - named == set()
