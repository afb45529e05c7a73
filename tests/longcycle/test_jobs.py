"""The suite as a job: options from a file, exit codes, JUnit, the job's summary, budgets over sessions."""

import os
import re
import signal
import time
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from mimickit.longcycle import devices
from mimickit.longcycle.options import OPTIONS, read_options_file, root_out
from mimickit.longcycle.roots import BASE
from mimickit.util.failures import UserError
from tests.longcycle.conftest import CASES, ROOT, TRAINED
from tests.longcycle.test_resume import trained, wait_for

# every option that users of the older runner script look for (the suite's contract)
CONTRACT = {
    "--cases": "deepmimic_humanoid_ppo,dof_test_humanoid", "--engine-config": "data/engines/newton_engine.yaml",
    "--devices-train": "cpu,cpu", "--devices-nontrainable": "cpu", "--env-ladder": "8,4",
    "--include-nontrainable": None, "--long-mode": "time_budget", "--long-max-samples": "1000",
    "--long-budget-hours": "1", "--long-success-policy": "budget_checkpoint", "--probe-iters": "8",
    "--probe-timeout": "900", "--long-timeout": "0", "--test-timeout": "600", "--viz-timeout": "600",
    "--test-episodes": "10", "--viz-episodes": "1", "--nontrainable-num-envs": "1",
    "--nontrainable-max-samples": "128", "--root-out": "named", "--resume-skip-status": "none",
    "--longcycle-profile": "smoke",
}
CHOICES = {"--long-mode": ("max_samples", "time_budget"), "--resume-skip-status": ("ok", "all", "none"),
           "--long-success-policy": ("strict_exit", "budget_checkpoint")}


def test_every_option_of_the_contract_is_taken(project):
    words = [word for name, value in CONTRACT.items() for word in (name, *([value] if value else []))]
    result = project.run(*words, "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*test_longcycle[[]{TRAINED}[]]", f"*test_longcycle[[]{CASES[1]}[]]"])
    result = project.run("--exclude-nontrainable", "--collect-only", "-q")
    result.stdout.no_fnmatch_line(f"*{CASES[1]}*")
    page = (ROOT / "docs/longcycle.md").read_text()
    for name in (*CONTRACT, "--exclude-nontrainable"):
        assert f"`{name}" in page, f"{name} is not on the page"
    for name, choices in CHOICES.items():
        assert OPTIONS[name[2:]].choices == choices


# --longcycle-options


def test_options_from_a_file_and_the_command_line_wins(project):
    (project.path / "night.yaml").write_text(yaml.safe_dump({
        "cases": [TRAINED, CASES[1]], "root-out": "night", "long-max-samples": 2000, "test-episodes": 3,
        "exclude-nontrainable": True, "train-env": {"NCCL_DEBUG": "INFO", "A": 1}, "probe-timeout": 30}))
    assert project.run("--longcycle-options", "night.yaml", "--test-episodes", "4").ret == 0
    out = project.out.with_name("night")
    assert sorted(project.rows(out)) == [TRAINED]
    probe, long, test, _ = project.calls()
    assert long["flags"]["max_samples"] == ["2000"] and test["flags"]["test_episodes"] == ["4"]
    assert probe["nccl"] is None and '"NCCL_DEBUG": "INFO"' in (out / "environment.json").read_text()
    project.forget_calls()
    result = project.run("--longcycle-options", "night.yaml", "--include-nontrainable", "-n", "2")
    assert sorted(project.rows(out)) == [TRAINED, CASES[1]]
    result.stdout.fnmatch_lines(["*2/2 final_ok=1*"])
    assert {call["flags"]["test_episodes"][0] for call in project.calls() if call["stage"] == "test"} == {"3"}


@pytest.mark.parametrize(("text", "words"), [
    ("long-max-sample: 5", "unknown option 'long-max-sample' (did you mean 'long-max-samples'?)"),
    ("--cases: a", "unknown option '--cases' (did you mean 'cases'?)"),
    ("longcycle-options: more.yaml", "unknown option 'longcycle-options'"),
    ("long-max-samples: 3e7", "long-max-samples: '3e7' is not a whole number"),
    ("long-max-samples: many", "long-max-samples: 'many' is not a whole number"),
    ("long-max-samples: 3.0e+7", "long-max-samples: 30000000.0 is not a whole number"),
    ("probe-timeout: true", "probe-timeout: True is not a number"),
    ("exclude-nontrainable: 1", "exclude-nontrainable: 1 is not true or false"),
    ("long-mode: forever", "long-mode: forever: allowed are max_samples, time_budget"),
    ("probe-iters: -1", "--probe-iters -1: must not be negative"),
    ("cases: deepmimic_humanoid_pp", "unknown case 'deepmimic_humanoid_pp'"),
    ("[a, b]", "night.yaml"),
])
def test_wrong_options_files_are_usage_errors(project, text, words):
    (project.path / "night.yaml").write_text(text)
    result = project.run("--longcycle-options", "night.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR and words in result.stderr.str()


def test_a_missing_options_file_is_a_usage_error(project):
    result = project.run("--longcycle-options", "none.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR and "none.yaml" in result.stderr.str()


def test_the_shipped_options_file_is_valid():
    values = read_options_file(ROOT / "tests/acceptance/nightly.yaml")
    assert values["root-out"] == "nightly" and values["long-timeout"] > 0


# exit codes


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_nothing_selected_is_a_failure_also_after_everything_passed(project, workers):
    typo = ["-k", "deepmimic_humanoid_pppo", *workers]
    result = project.run(*typo)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["*no case selected: look at -k*"])
    assert project.run("-k", "view_motion", *workers).ret == 0
    assert project.run(*typo, "--lf").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    if not workers:
        assert project.run("-k", "view_motion", "--lf").ret == 0
        assert project.run("--from-results", "longcycle_smoke", *typo).ret == pytest.ExitCode.NO_TESTS_COLLECTED


# JUnit and the job's summary


def junit(path):
    """Properties and messages of each case in a JUnit file."""
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        failure = case.find("failure")
        found[re.search(r"\[(.*)\]", case.get("name"))[1]] = (
            {entry.get("name"): entry.get("value") for entry in case.iter("property")},
            None if failure is None else failure.get("message"))
    return found


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_junit_holds_the_numbers_of_every_case(project, workers):
    project.rules({"stage": "test", "case": CASES[1], "do": "crash"})
    result = project.run("--junitxml", "junit.xml", *workers)
    assert result.ret == 1 and "PytestWarning" not in result.stdout.str()
    cases = junit(project.path / "junit.xml")
    values, failure = cases[TRAINED]
    assert failure is None and float(values["elapsed_s"]) > 0
    for name, value in {"outcome": "ok", "samples": "1024", "samples_per_s": "100.0", "variant": "default",
                        "num_envs": "8", "gate_verdict": "not_judged", "probe_train": "ok", "long_train": "ok",
                        "test": "ok", "viz": "ok", "failed_stage": ""}.items():
        assert values[name] == value, name
    assert float(values["long_train_elapsed_s"]) > 0
    values, failure = cases[CASES[1]]
    assert "the root cause" in failure
    assert [values[name] for name in ("outcome", "failed_stage", "bootstrap_train", "test", "viz")] == [
        "failed", "test", "ok", "failed", "not_run"]
    again = project.run("--from-results", "longcycle_smoke", "--junitxml", "again.xml")
    assert again.ret == 1 and junit(project.path / "again.xml")[TRAINED][0] == cases[TRAINED][0]


def test_the_jobs_summary(project, monkeypatch):
    page = project.path / "step.md"
    page.write_text("# before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    project.rules({"stage": "long_train", "do": "oom"}, {"stage": "bootstrap_train", "case": CASES[2], "do": "slow"})
    session = project.start("--nontrainable-max-samples", "3000")
    wait_for(lambda: trained(project, "bootstrap_train", CASES[2]))
    session.send_signal(signal.SIGTERM)
    assert session.wait(20) == 2
    text = (project.out / "summary.md").read_text()
    assert page.read_text() == f"# before\n{text}\n"
    lines = text.splitlines()
    counts = "1/3 final_ok=1 | trainable 0/1 | nontrainable 1/2 | deepmimic 0/1 dof 1/1 view 0/1"
    assert lines[0] == f"## longcycle: {counts}"
    table = {cells[1]: cells[2:-1] for line in lines if line.startswith("|")
             for cells in [[cell.strip() for cell in line.split("|")]]}
    assert len({len(cells) for cells in table.values()}) == 1, "every line has as many cells as the head"
    assert table["case"][:5] == ["probe", "long", "test", "transfer", "viz"] and table["case"][-1] == "verdict"
    assert re.fullmatch(r"\d:\d\d", table[TRAINED][0]) and re.fullmatch(r"\*\*failed\*\* \d:\d\d", table[TRAINED][1])
    assert table[TRAINED][2:5] == ["", "", ""] and table[TRAINED][-1] == "**oom_gpu in long_train**"
    assert table[CASES[1]][0] == "" and table[CASES[1]][-1] == "ok"
    assert table[CASES[2]][-1] == "**not run** (interrupted_in_bootstrap_train)"
    assert lines[-1].startswith(f"- **{TRAINED}**: long_train, class `oom_gpu`: RuntimeError: CUDA out of memory")
    assert lines[-1].endswith("/long_train.log`)")
    project.rules()
    assert project.run("--lf", "--from-results", "longcycle_smoke").ret == pytest.ExitCode.USAGE_ERROR
    project.run("--from-results", "longcycle_smoke")
    assert page.read_text().count("## longcycle: 1/3") == 2


# budgets


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_hours_used_before_an_interruption_count(project, number):
    budget = ["--cases", TRAINED, "--long-mode", "time_budget", "--long-budget-hours", str(4 / 3600)]
    project.rules({"stage": "long_train", "do": "slow"})
    begin = time.time()
    session = project.start(*budget)
    wait_for(lambda: list(project.out.glob("runs/*/*/long_train/checkpoints/*/samples")))
    session.send_signal(number)
    session.wait(20)
    most = time.time() - begin
    assert project.run(*budget, "--lf").ret == 0
    first, second = (call for call in project.calls() if call["stage"] == "long_train")
    ends = [e for e in project.events() if e["event"] == "stage_end" and e["stage"] == "long_train"]
    assert [end["outcome"] for end in ends] == ["interrupted", "ok"] and 0.0 < ends[0]["elapsed_s"] < most
    assert [end["stop_reason"] for end in ends] == ["", "long_budget_reached_SIGINT"]
    assert "max_samples" not in first["flags"]
    assert second["resumed"] > 0 and ends[1]["elapsed_s"] < 4.0 - ends[0]["elapsed_s"] + 1.5
    project.forget_calls()
    assert project.run(*budget, "--lf").ret == 0 and not project.calls()


def test_a_root_that_cannot_be_written_is_named(project):
    project.out.parent.mkdir(parents=True)
    project.out.write_text("in the way")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR and not project.calls()
    result.stderr.fnmatch_lines(["*cannot write to output/train/longcycle_smoke: *exists*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "output/train/mine"])
def test_a_root_that_is_a_link_is_named(tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / BASE).mkdir(parents=True)
    (tmp_path / BASE / "mine").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=f"--root-out mine: output/train/mine is a link to .*{target}. A session works "
                                        "in a folder of its own: let output/train .* be the link"):
        root_out("mine", "full", None, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/output").symlink_to(tmp_path / "elsewhere")
    assert root_out("mine", "full", None, tmp_path / "other") == tmp_path / "other/output/train/mine"


@pytest.mark.parametrize("number", devices.NO_LOCKS)
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(devices.fcntl, "flock", flock)
    for lock in (devices.try_lock, lambda path: devices.file_lock(path).__enter__()):
        with pytest.raises(UserError, match=r"x\.lock cannot be locked, its file system has no locks"):
            lock(tmp_path / "x.lock")


def test_a_session_on_a_file_system_without_locks_says_so(project):
    with (project.path / "conftest.py").open("a") as file:
        file.write("import fcntl\ndef flock(*_):\n    raise OSError(37, 'No locks available')\nfcntl.flock = flock\n")
    result = project.run("--cases", CASES[1])
    assert result.ret == pytest.ExitCode.USAGE_ERROR and not project.calls()
    result.stderr.fnmatch_lines(["*.session.lock cannot be locked, its file system has no locks*let `output` be a*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_stage_that_cannot_be_started_has_an_end(project):
    """Something is in the place of its folder; the next case goes on."""
    folder = project.out / f"runs/{CASES[1]}_args/default_e1"
    project.rules({"stage": "bootstrap_train", "case": CASES[1], "do": "file_for_test"})
    result = project.run("--cases", f"{CASES[1]},{CASES[2]}")
    result.assert_outcomes(passed=1, failed=1)
    (end,) = [e for e in project.events() if e["event"] == "stage_end" and e["outcome"] != "ok"]
    assert (end["stage"], end["outcome"], end["failure_class"]) == ("test", "failed", "failed")
    assert end["message"].startswith("could not be started: ") and "exists" in end["message"]
    assert project.rows()[CASES[1]]["note"] == "failed_in_test"
    (folder / "test").unlink()
    project.forget_calls()
    assert project.run("--lf", "--cases", CASES[1]).ret == 0 and project.stages(CASES[1]) == ["test", "viz"]


def test_a_disk_that_fills_up_ends_in_words(project):
    """The ledger cannot be written any more once the film of the last case is being made."""
    project.rules({"stage": "viz", "do": "no_ledger"})  # in the session's process
    result = project.pytest("-m", "longcycle", "--cases", CASES[1])
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*could not be written: *Make room and continue with --lf*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
