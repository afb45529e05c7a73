"""Recorded results: judged again without running, split over machines, merged into one root."""

import json
import re
import shutil
import signal

import pytest
import yaml

from mimickit.cases import discover
from mimickit.longcycle import merge as merging
from mimickit.longcycle.cases import Shard, parse_shard, part
from mimickit.longcycle.ledger import Ledger
from mimickit.longcycle.roots import lock_session
from mimickit.util.failures import UserError
from mimickit.util.files import read_tsv, write_json, write_text
from mimickit.util.manifest import describe_file
from tests.longcycle.conftest import CASES, ROOT, TRAINED
from tests.longcycle.test_resume import running, wait_for

FULL = ("--longcycle-profile", "full", "--devices-train", "cpu")


def content(folder):
    """Every file below a folder, hidden ones too, with its bytes and time."""
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def gates(project, bound):
    """The same gate for all three cases."""
    gate = {"measure": "test_return", "op": ">=", "bound": bound, "source": "here"}
    (project.path / "targets.yaml").write_text(yaml.safe_dump({case: {"gates": [gate]} for case in CASES}))


# --from-results


def test_results_are_judged_by_the_present_gates_without_running(project):
    gates(project, 8.0)
    assert project.run(*FULL).ret == 0
    project.forget_calls()
    before = content(project.path / "output/train/longcycle")
    result = project.run("--from-results", "longcycle")
    assert result.ret == 0
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([
        "longcycle: judging output/train/longcycle again, nothing runs; profile full (the recorded one)",
        f"ok       {TRAINED}:*gate pass*", "*3/3 final_ok=1 | trainable 1/1 | nontrainable 2/2*"])
    gates(project, 9.5)
    result = project.run("--from-results", "longcycle", "--cases", f"{TRAINED},{CASES[1]}")
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        f"*{TRAINED}: stage test failed, class gate: learning gate: test_return 9*misses >= 9.5 by *",
        f"FAILED   {TRAINED}: test gate:*(log: output/train/longcycle/runs/*/test.log)", "*0/2 final_ok=1*"])
    assert not project.calls() and content(project.path / "output/train/longcycle") == before


def test_results_of_another_machine(project, tmp_path_factory):
    project.rules({"stage": "test", "case": CASES[1], "do": "crash"})
    project.run("--cases", f"{TRAINED},{CASES[1]}")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copied"
    shutil.copytree(project.out, elsewhere, ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree(project.path / "output")
    project.forget_calls()
    before = content(elsewhere)
    for options in ([], ["-n", "2"]):
        result = project.run(f"--from-results={elsewhere}", *options)
        assert result.ret == 1
        result.assert_outcomes(passed=1, failed=2)
        result.stdout.fnmatch_lines([
            f"ok       {TRAINED}:*", f"FAILED   {CASES[1]}: test failed: RuntimeError: the root cause"
            f" (log: {elsewhere}/runs/dof_test_humanoid_args/default_e1/test.log)",
            f"NOT RUN  {CASES[2]}", "*1/3 final_ok=1*"])
    result.stdout.no_fnmatch_line("*--lf*")
    assert content(elsewhere) == before and not (project.path / "output").exists() and not project.calls()


def test_results_of_a_root_in_which_a_session_works(project):
    project.rules({"stage": "long_train", "do": "slow"})
    session = project.start("--long-max-samples", "1000000")
    wait_for(lambda: running(project, "long_train"))
    result = project.run("--from-results", "longcycle_smoke")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*{TRAINED}: stage long_train failed, class not_run: no recorded end*",
                                 f"NOT RUN  {TRAINED}: in_progress_long", "*0/3 final_ok=1*"])
    assert session.poll() is None
    session.send_signal(signal.SIGINT)
    session.wait(20)


@pytest.mark.parametrize(("options", "words"), [
    (["nowhere"], "*nowhere: no recorded results: no ledger.jsonl in *output/train/nowhere or *nowhere*"),
    (["longcycle_smoke", "--lf"], "*--lf does not go with it*")])
def test_results_that_cannot_be_judged(project, options, words):
    (project.out / "runs").mkdir(parents=True)
    (project.out / "ledger.jsonl").write_text("")
    result = project.run("--from-results", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_small_results_do_not_pass_for_full_ones(project):
    gates(project, 8.0)
    project.run("--cases", CASES[1])
    result = project.run("--from-results", "longcycle_smoke", "--longcycle-profile", "full", "--cases", CASES[1])
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"FAILED   {CASES[1]}: *recorded with profile smoke, judged for full*"])


# --shard


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 32])
def test_shards_are_a_stable_and_even_partition(count):
    cases = discover(ROOT)
    shards = [part(cases, Shard(index, count)) for index in range(1, count + 1)]
    assert sorted(case.name for shard in shards for case in shard) == [case.name for case in cases]
    assert shards == [part(cases[::-1], Shard(index, count)) for index in range(1, count + 1)]
    for group in (lambda case: True, lambda case: case.trainable, lambda case: not case.trainable):
        sizes = [sum(map(group, shard)) for shard in shards]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "2/", "a/b", "-1/2", "1/0"])
def test_wrong_shards(text):
    with pytest.raises(UserError, match=f"--shard {text}: give K/N"):
        parse_shard(text)


def test_more_shards_than_cases_is_a_mistake(project):
    result = project.run("--shard", "4/4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--shard 4/4: only 3 cases are selected*"])
    assert project.pytest("--shard", "1/2").ret == pytest.ExitCode.USAGE_ERROR


# merging


def merge(project, *words):
    return project.pytester.runpython_c(
        f"import sys; from mimickit.longcycle.merge import main; sys.exit(main({list(words)!r}))")


def test_shards_merge_into_one_root(project):
    project.rules({"stage": "viz", "case": CASES[1], "do": "crash"})
    assert [project.run("--shard", shard).ret for shard in ("1/2", "2/2")] == [0, 1]
    roots = ["longcycle_smoke_1of2", "longcycle_smoke_2of2"]
    parts = [project.rows(project.out.with_name(root)) for root in roots]
    assert [sorted(part) for part in parts] == [[TRAINED, CASES[2]], [CASES[1]]]
    result = merge(project, "both", *roots)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["2 of 3 cases passed as recorded; merged into output/train/both from 2 roots"])
    for root in roots:  # what was merged stands alone
        shutil.rmtree(project.out.with_name(root))
    both = project.out.with_name("both")
    rows = project.rows(both)
    assert sorted(rows) == sorted(CASES)
    for row in rows.values():
        for column in ("out_dir", "long_out_dir", "test_log", "viz_log"):
            assert row[column].startswith("output/train/both/runs/") and (project.path / row[column]).exists()
    assert (project.path / rows[TRAINED]["viz_video"]).is_file()
    manifest = read_tsv(both / "case_manifest.tsv")
    assert [row["case"].removesuffix("_args.txt") for row in manifest] == list(CASES)
    progress = json.loads((both / "progress.json").read_text())
    assert (progress["status"], progress["total"], progress["passed"], progress["failed"]) == ("finished", 3, 2, 1)
    assert {row["session"] for row in rows.values()} == {path.stem for path in both.glob("environments/*.json")}
    assert len(list(both.glob("environments/*.json"))) == 2
    assert project.run("--from-results", "both").ret == 1

    project.rules()
    project.forget_calls()
    result = project.run("--root-out", "both", "--lf")  # continued as if it had been one root
    assert result.ret == 0 and [(c["case"], c["stage"]) for c in project.calls()] == [(CASES[1], "viz")]
    result.stdout.fnmatch_lines(["*3/3 final_ok=1*"])


class Roots:
    """Roots written by hand: one case each, its end and what decided it."""

    def __init__(self, repo):
        self.repo = repo

    def make(self, name, case=CASES[1], end=100.0, final_ok=1, key="k", ended=True, profile="full"):
        root = self.repo / "output/train" / name
        folder = f"output/train/{name}/runs/{case}_args/default_e1"
        about = {"case": case, "variant": "default", "num_envs": 1, "stage": "test", "fingerprint": "f", "key": {},
                 "degraded": False, "devices": ["cpu"], "folder": folder, "out_dir": f"{folder}/test",
                 "log": f"{folder}/test.log", "afresh": False, "started": end - 2}
        row = {"case": f"{case}_args.txt", "variant": "default", "num_envs": 1, "final_ok": final_ok, "key": key,
               "out_dir": folder, "note": "ok" if final_ok else "gate_in_test", "profile": profile}
        events = [{"event": "session_start", "time": end - 3, "session": name, "cases": [case], "passed_before": [],
                   "profile": profile}, {"event": "stage_start", "time": end - 2, **about}]
        if ended:
            result = {"outcome": "ok", "elapsed_s": 1.0, "result": {"video": {"file": f"{folder}/viz.mp4"}}}
            events += [{"event": "stage_end", "time": end - 1, **about, **result},
                       {"event": "case_end", "time": end, "case": case, "row": row}]
        (self.repo / folder).mkdir(parents=True)
        (self.repo / folder / "test.log").write_text(name)
        (root / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return root

    def merge(self, *roots, **options):
        out = self.repo / "output/train/out"
        return out, merging.merge(out, roots, self.repo, **options)


@pytest.fixture
def roots(tmp_path):
    return Roots(tmp_path)


def log_of(out):
    return next(out.glob("runs/*/*/test.log")).read_text()


def test_the_later_end_counts_and_differences_are_told(roots):
    early, late = roots.make("early", end=100.0, final_ok=1), roots.make("late", end=200.0, final_ok=0)
    out, lines = roots.merge(late, early)
    assert log_of(out) == "late" and not Ledger(out, roots.repo).state().case(CASES[1]).passed
    assert len(lines) == 2 and re.match(
        rf"conflict: {CASES[1]}: failed \(gate_in_test\) in .*late, passed in .*early; the later end counts", lines[0])
    assert lines[1].startswith("0 of 1 cases passed")


def test_other_inputs_are_a_conflict_by_name(roots):
    out, lines = roots.merge(roots.make("a", end=100.0, key="x"), roots.make("b", end=200.0, key="y"))
    assert log_of(out) == "b"
    assert re.match(rf"conflict: {CASES[1]}: .*b and .*a ran it with different inputs, sizes or gates", lines[0])
    assert any("different profiles: full, smoke" in line for line in roots.merge(
        roots.make("c", profile="smoke"), roots.make("d", case=CASES[2]), replace=True)[1])


def test_a_recorded_end_counts_more_than_a_later_beginning(roots):
    out, lines = roots.merge(roots.make("ended", end=100.0), roots.make("begun", end=200.0, ended=False))
    assert log_of(out) == "ended" and "a later attempt in" in lines[0]
    out, lines = roots.merge(roots.make("only", end=300.0, ended=False), replace=True)
    state = Ledger(out, roots.repo).state().case(CASES[1])
    assert log_of(out) == "only" and f"no end: {CASES[1]}" in lines
    assert state.running is None and state.attempts["default", 1].note() == "interrupted_in_test"


def test_a_merge_names_models_that_are_damaged(roots):
    root = roots.make("a")
    folder = root / f"runs/{CASES[1]}_args/default_e1/long_train"
    write_text(folder / "model.pt", "weights")
    write_json(folder / "result.json", {"model_file": "x/model.pt", "model": describe_file(folder / "model.pt")})
    assert not [line for line in roots.merge(root)[1] if line.startswith("damaged")]
    write_text(folder / "model.pt", "weighty")
    _, lines = roots.merge(root, replace=True)
    assert lines[0] == (f"damaged: {CASES[1]}: runs/{CASES[1]}_args/default_e1/long_train/model.pt is not what its "
                        "training wrote; it can go on from a checkpoint")


def test_a_case_that_only_waited_has_no_end(roots):
    """Its session ended while others held the devices."""
    root = roots.make("stopped")
    Ledger(root, roots.repo).append("case_waiting", case=CASES[2], devices="cuda:0")
    out, lines = roots.merge(root)
    assert lines[-1].startswith("1 of 1 cases passed") and set(Ledger(out, roots.repo).state().cases) == {CASES[1]}


def test_paths_follow_the_root(roots):
    out, _ = roots.merge(roots.make("a"))
    state = Ledger(out, roots.repo).state().case(CASES[1])
    folder = f"output/train/out/runs/{CASES[1]}_args/default_e1"
    event = state.attempts["default", 1].stages["test"]
    assert (event["log"], event["result"]["video"]["file"]) == (f"{folder}/test.log", f"{folder}/viz.mp4")
    assert state.row["out_dir"] == folder


def test_a_root_appears_whole_or_not_at_all(roots, monkeypatch):
    first = roots.make("first")
    out, _ = roots.merge(first)
    before = content(out)

    def disk_full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "write_manifest", disk_full)
    with pytest.raises(OSError, match="No space left"):
        roots.merge(first, roots.make("second", case=CASES[2]), replace=True)
    assert content(out) == before
    left = {path.name for path in out.parent.iterdir() if path.is_dir()}
    assert left == {"first", "second", "out"}


def test_roots_that_cannot_be_merged(roots):
    busy, free = roots.make("busy"), roots.make("free", case=CASES[2])
    with lock_session(busy), pytest.raises(UserError, match=r"a session works in .*busy"):
        roots.merge(busy, free)
    with pytest.raises(UserError, match="given twice"):
        roots.merge(free, free)
    with pytest.raises(UserError, match="lies inside"):
        merging.merge(free / "deeper", [free], roots.repo)
    out, _ = roots.merge(free)
    with pytest.raises(UserError, match=r"out exists.*--replace"):
        roots.merge(free)
    with lock_session(out):
        pass  # a session has worked in it: its lock is there, and free
    roots.merge(out, busy, replace=True)
    assert set(Ledger(out, roots.repo).state().cases) == {CASES[1], CASES[2]}
    other = roots.repo / "output/train/other"
    (other / "precious").mkdir(parents=True)
    with pytest.raises(UserError, match="is no root of the suite"):
        merging.merge(other, [free], roots.repo, replace=True)


def test_the_program_explains_itself(project, capsys):
    with pytest.raises(SystemExit) as end:
        merging.main(["--help"])
    assert end.value.code == 0 and "--from-results OUT" in " ".join(capsys.readouterr().out.split())
    result = merge(project, "out", "nowhere")
    assert result.ret == 2
    result.stderr.fnmatch_lines(["error: nowhere: no recorded results: *"])


