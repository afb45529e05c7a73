"""The history of nights: what sessions append, its page, comparisons, messages, budgets, and bisection."""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mimickit.longcycle.ledger import read_events
from mimickit.longcycle.results import cli, compare, history, notify
from mimickit.longcycle.results.data import Root
from mimickit.longcycle.settings import load_targets
from mimickit.util.failures import UserError
from tests.longcycle.conftest import CASES, TRAINED
from tests.longcycle.made_root import make_root, reached
from tests.longcycle.test_drift import BEGIN, CHANGED, night, sixty_nights
from tests.longcycle.test_resume import wait_for


def written(path, known: history.History):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(night.model_dump_json(by_alias=True) + "\n" for night in known.nights))
    return path


@pytest.fixture
def receiver():
    """A web server that keeps what it is sent: (path, JSON), and answers as ``code`` says."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.got.append((self.path, body, self.headers.get("Authorization")))
            self.send_response(server.code)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.code = [], 200
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_session_appends_what_ended_in_it(project):
    path = project.path / history.HISTORY
    project.rules({"stage": "test", "case": TRAINED, "do": "crash", "times": 1})
    project.run("--cases", f"{TRAINED},view_motion_humanoid", "--rand-seed", "3")
    first = path.read_text()
    project.run("--cases", f"{TRAINED},view_motion_humanoid", "--rand-seed", "3", "--lf")
    assert path.read_text().startswith(first) and path.read_text().count("\n") == 2
    failed, passed = history.read(path).nights
    assert {name: case.final_ok for name, case in failed.cases.items()} == {
        TRAINED: False, "view_motion_humanoid": True}
    assert list(passed.cases) == [TRAINED] and passed.cases[TRAINED].final_ok
    case = passed.cases[TRAINED]
    assert (passed.seed, passed.profile, case.samples_per_s) == (3, "smoke", 100.0)
    assert set(case.seconds) == {"probe_train", "long_train", "test", "viz"} and case.measures["pose_err"].mean == 1e-4
    project.run("--cases", TRAINED, "--rand-seed", "3")  # reused: nothing ended
    assert len(history.read(path).nights) == 2


def test_a_night_has_what_the_root_says(tmp_path):
    root = Root(make_root(tmp_path / "night", CASES, seed=5, failing=[TRAINED]))
    found = history.night_of(root)
    assert (found.seed, found.commit[:6], found.machine, found.root) == (5, "c0ffee", "1 x NVIDIA H200", "night")
    case = found.cases[TRAINED]
    assert not case.final_ok and case.measures["return"].ci95 == pytest.approx(1.2 * 0.003 * case.gates[0].bound)
    assert case.gates[0].measure == "test_return"
    assert sum(case.gpu_hours for case in found.cases.values()) == pytest.approx(found.gpu_hours, abs=1e-3)
    path = tmp_path / "history.jsonl"
    assert history.append(path, found) and not history.append(path, found), "a session stands there once"
    assert history.read(path).nights == (found,)


def test_a_history_that_cannot_be_written_fails_nobody(project):
    (project.path / history.HISTORY).mkdir(parents=True)
    result = project.run("--cases", TRAINED)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["output/history/history.jsonl has no line of this session: *"])


def test_damaged_lines_are_counted_and_kept(tmp_path):
    path = written(tmp_path / "history.jsonl", history.History(sixty_nights(1).nights[:3]))
    with path.open("a") as file:
        file.write('{"kind": "night", "time": 1e9, "ses')
    history.append(path, night(9, {CHANGED: 200.0}))
    known = history.read(path)
    assert len(known.nights) == 4 and known.damaged == 1


@pytest.mark.parametrize("line", [
    {"schema": 2}, {"schema": 0}, {"time": 1e300}, {"time": float("nan")}, {"gpu_hours": float("inf")},
    {"cases": {CHANGED: {"final_ok": True, "measures": {"success": {"mean": float("nan")}}}}}])
def test_lines_that_cannot_be_understood_are_told_of(tmp_path, capsys, line):
    """Another schema, times and numbers that are none: skipped, and said on the terminal and the page."""
    path = written(tmp_path / "history.jsonl", history.History(sixty_nights(1).nights[:3]))
    good = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps({**good, "session": "odd", **line}) + "\n")
    assert cli.main(["--history", str(path)]) == 0
    told = "1 line was skipped: damaged, or of a schema other than 1"
    out = capsys.readouterr().out
    assert "3 nights" in out and told in out and told in (tmp_path / "index.html").read_text()


def test_a_measure_that_is_no_number_costs_no_night(tmp_path):
    """A mean or an interval that is not finite is left out; the night and the other measures stay."""
    root = make_root(tmp_path / "night", [TRAINED])
    path = next(root.glob("runs/*/*/test.json"))
    test = json.loads(path.read_text())
    first, second = list(test["statistics"])[:2]
    test["statistics"][first]["mean"] = test["statistics"][second]["ci95"] = float("nan")
    path.write_text(json.dumps(test))
    history.append(tmp_path / "history.jsonl", history.night_of(Root(root), whole=True))
    known = history.read(tmp_path / "history.jsonl")
    measures = known.nights[0].cases[TRAINED].measures
    assert not known.damaged and first not in measures and measures[second].ci95 is None


def test_a_page_of_somebody_else_is_not_replaced(tmp_path, capsys):
    path = written(tmp_path / "history.jsonl", history.History(sixty_nights(1).nights[:3]))
    (tmp_path / "index.html").write_text("mine")
    assert cli.main(["--history", str(path)]) == 2 and "give --out DIR" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine" and not (tmp_path / "page").exists()
    assert cli.main(["--history", str(path), "--out", str(tmp_path / "out")]) == 0


def test_the_page_names_the_drift_and_what_changed(tmp_path, capsys):
    nights = list(sixty_nights(1).nights)
    nights[BEGIN:] = [night.model_copy(update={"versions": {"torch": "2.13.0"}}) for night in nights[BEGIN:]]
    path = written(tmp_path / "history.jsonl", history.History(tuple(nights)))
    assert cli.main(["--history", str(path)]) == 0
    assert f"60 nights, 25 cases; {CHANGED} drifting" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert "torch 2.11.0 → 2.13.0" in page and "1 drifts" in page.replace("<strong class=\"bad\">", "")
    panel = (tmp_path / f"page/cases/{CHANGED}.js").read_text()
    assert '"text":"A"' in panel, "the night of the new version is marked"


def test_accepting_and_mistakes(tmp_path, capsys):
    path = written(tmp_path / "h/history.jsonl", sixty_nights(1))
    for words, text in ((["--accept", "amp_none", "--reason", "x"], "no such case"),
                        (["--accept", CHANGED], "say why")):
        assert cli.main(["--history", str(path), *words]) == 2
        assert text in capsys.readouterr().err
    assert cli.main(["--history", str(path), "--accept", CHANGED, "--reason", "new reward"]) == 0
    assert "none drifting" in capsys.readouterr().out
    assert cli.main(["--history", str(tmp_path / "none.jsonl")]) == 2
    assert cli.main(["--webhook", "http://x", "root"]) == 2
    assert "goes with --history" in capsys.readouterr().err


def test_a_message_comes_only_when_something_changes(tmp_path, receiver, monkeypatch):
    path, nights = tmp_path / "history.jsonl", sixty_nights(1).nights
    sent = []
    for count in (BEGIN - 1, BEGIN, BEGIN + 5, BEGIN + 6, 60):
        sent.append(notify.notify(history.History(nights[:count]), path, receiver.address, None))
    assert [text.startswith("told") for text in sent] == [False, False, True, False, False]
    (_, told, _), = receiver.got
    assert told["news"][0]["case"] == CHANGED and (told["bad"], told["news"][0]["now"]) == (True, "drift")
    assert told["last_good"]["commit"] in {night.commit for night in nights[BEGIN - 2:BEGIN]} and told["changed_since"]
    failing = history.History((*nights, night(60, {CHANGED: 50.0}, ok=False)))
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    notify.notify(failing, path, None, "owner/name", "https://page", receiver.address)
    place, issue, token = receiver.got[-1]
    assert (place, token) == ("/repos/owner/name/issues", "Bearer secret")
    assert issue["title"] == f"{CHANGED} fails" and "gate_in_test" in issue["body"] and "https://page" in issue["body"]


def test_a_message_that_was_not_taken_is_sent_again(tmp_path, receiver, capsys):
    path = written(tmp_path / "history.jsonl", sixty_nights(1))
    receiver.code = 500
    assert cli.main(["--history", str(path), "--webhook", receiver.address]) == 2
    assert "did not take the message: 500" in capsys.readouterr().err
    receiver.code = 200
    assert cli.main(["--history", str(path), "--webhook", receiver.address]) == 0 and len(receiver.got) == 2


def test_each_way_is_told_once(tmp_path, receiver, monkeypatch):
    """An issue that GitHub does not take is opened the next time, and the webhook gets nothing twice."""
    path, known = tmp_path / "history.jsonl", sixty_nights(1)
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    with pytest.raises(UserError, match="was not reached"):
        notify.notify(known, path, receiver.address, "owner/name", github="http://127.0.0.1:9")
    assert len(receiver.got) == 1
    assert notify.notify(known, path, receiver.address, "owner/name", github=receiver.address).startswith("told")
    assert [place for place, *_ in receiver.got[1:]] == ["/repos/owner/name/issues"]
    assert notify.notify(known, path, receiver.address, "owner/name", github=receiver.address).startswith("nothing")


def test_an_address_that_is_none_is_found_before_it_is_needed(tmp_path, monkeypatch):
    path, quiet = tmp_path / "history.jsonl", history.History(sixty_nights(1).nights[:3])
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    for webhook, repository, text in (("ftp://x", None, "--webhook ftp://x"), (None, "name", "give OWNER/NAME"),
                                      (None, "owner/name", "GITHUB_TOKEN is not set")):
        with pytest.raises(UserError, match=text):
            notify.notify(quiet, path, webhook, repository)


def test_two_roots_are_compared(tmp_path, capsys, monkeypatch):
    targets = load_targets()
    monkeypatch.chdir(tmp_path)
    make_root(tmp_path / "a", [TRAINED, "amp_humanoid"])
    make_root(tmp_path / "b", [TRAINED, "amp_humanoid"], values=lambda case: reached(
        targets, case, 0.05 if case == TRAINED else 0.2))
    assert cli.main(["compare", "a", "b"]) == 1
    text = capsys.readouterr().out
    bound = targets[TRAINED].gates[0].bound
    assert f"worse   test_return                  {1.2 * bound:g} → {1.05 * bound:g}" in text
    assert "(-12.5%), tests alone" in text
    assert "same    motion_err" in text
    assert cli.main(["compare", "a", "a"]) == 0 and cli.main(["compare", "a"]) == 2


def test_scatter_between_trainings_widens_the_interval(tmp_path):
    targets = load_targets()
    a = Root(make_root(tmp_path / "a", [TRAINED]))
    b = Root(make_root(tmp_path / "b", [TRAINED], values=lambda case: reached(targets, case, 0.1)))
    roots = [Root(make_root(tmp_path / f"s{i}", [TRAINED], seed=i, values=lambda case, i=i: reached(
        targets, case, 0.05 * i))) for i in range(1, 5)]
    nights = tuple(history.night_of(root) for root in roots)
    alone, known = (compare.compare(a, b, history.History(lines))[TRAINED][0] for lines in ((), nights))
    assert (alone.verdict, known.verdict) == ("worse", "same") and known.half > 10 * alone.half


def test_a_budget_defers_what_has_waited_least(project):
    """Three cases of one hour each and two hours: the one that ran last waits, unless it failed."""
    names = (TRAINED, "dof_test_humanoid", "view_motion_humanoid")
    path = project.path / history.HISTORY
    case = {"final_ok": True, "gpu_hours": 1.0}
    for place, name in enumerate(names):
        history.append(path, history.Night(time=1e9 + place, session=str(place), root="r", profile="smoke",
                                           cases={name: case}))
    result = project.run("--budget-gpu-hours", "2.5")
    assert sorted({call["case"] for call in project.calls()}) == sorted(names[:2])
    result.stdout.fnmatch_lines(["*budget 2.5 GPU hours: 2 cases, about 2.00; deferred: view_motion_humanoid (1.00)*",
                                 "deferred by --budget-gpu-hours: view_motion_humanoid", "2/2 final_ok=1*"])
    assert "Deferred by --budget-gpu-hours: view_motion_humanoid" in (project.out / "summary.md").read_text()
    assert history.read(path).nights[-1].deferred == ["view_motion_humanoid"]
    assert "deferred by --budget-gpu-hours" in (project.out / "index.html").read_text()
    project.forget_calls()
    project.run("--budget-gpu-hours", "1.5", "--root-out", "next")
    assert {call["case"] for call in project.calls()} == {"view_motion_humanoid"}, "it has waited longest now"
    assert project.run("--budget-gpu-hours", "0").ret == 4


def test_a_budget_with_workers(project):
    result = project.run("--budget-gpu-hours", "0.001", "-n", "2")
    result.stdout.fnmatch_lines(["*more than the whole budget takes*"])
    assert not project.calls()


def commit(project, message: str) -> str:
    for words in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m",
                                  message]):
        subprocess.run(["git", *words], cwd=project.path, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.path, check=True, capture_output=True,
                          text=True).stdout.strip()


def bisect(project, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mimickit", "bisect", "--case", TRAINED, *words], cwd=project.path,
                          capture_output=True, text=True, timeout=200)


def test_a_planted_regression_is_found(project):
    """Smoke profile: the policy gets weaker with the fourth of seven commits; one commit cannot be trained."""
    (project.path / ".gitignore").write_text("output/\ncalls.jsonl\nheavy.txt\n__pycache__/\n")
    subprocess.run(["git", "init", "-q"], cwd=project.path, check=True)
    commits = []
    for number in range(7):
        rules = [{"stage": "test", "do": "weak"}] if number >= 3 else []
        rules = [{"stage": "long_train", "do": "crash"}] if number == 1 else rules
        project.rules(*rules)
        commits.append(commit(project, f"change {number}"))
    begun = bisect(project, "--good", commits[0], "--bad", "HEAD", "--", "-q")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    assert f"became worse with {commits[3][:7]} change 3" in begun.stdout
    assert "good: test_return above 5" in begun.stdout and "fake.json" in begun.stdout
    assert 4 <= begun.stdout.count("training ") <= 6
    again = bisect(project, "--good", commits[0], "--bad", "HEAD", "--", "-q")
    assert "change 3" in again.stdout and "training " not in again.stdout, "what is known is not trained again"
    trees = subprocess.run(["git", "worktree", "list"], cwd=project.path, capture_output=True, text=True).stdout
    assert trees.count("\n") == 1
    for words, text in ((["--good", "HEAD", "--bad", commits[0]], "is no ancestor"),
                        (["--good", "none", "--bad", "HEAD"], "no such commit"),
                        (["--good", commits[4], "--bad", commits[6]], "does not differ")):
        done = bisect(project, *words)
        assert done.returncode == 2 and text in done.stderr, done.stderr


def test_a_bisection_that_cannot_begin_or_is_interrupted(project):
    """Wrong options keep nothing; an unknown measure is found after one training; Ctrl-C ends with a checkpoint."""
    (project.path / ".gitignore").write_text("output/\ncalls.jsonl\nheavy.txt\n__pycache__/\n")
    subprocess.run(["git", "init", "-q"], cwd=project.path, check=True)
    project.rules({"stage": "long_train", "do": "slow"})
    commits = [commit(project, "slow")]
    project.rules()
    commits.append(commit(project, "quick"))
    ends = ["--good", commits[0], "--bad", commits[1]]
    wrong = bisect(project, *ends, "--", "--longcycle-profile", "smokee")
    assert wrong.returncode == 2 and "did you mean 'smoke'?" in wrong.stderr, wrong.stderr
    assert not list(project.path.glob("output/bisect/*/trees/*")), "the worktree is removed"
    words = [sys.executable, "-m", "mimickit", "bisect", "--case", TRAINED, *ends, "--measure", "none", "--", "-q"]
    running = subprocess.Popen(words, cwd=project.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    root = f"output/bisect/{TRAINED}*/trees/*/output/train/bisect"
    wait_for(lambda: list(project.path.glob(f"{root}/runs/*/*/long_train")))
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(timeout=60) == 130
    told = running.stderr.read()
    assert "waiting for the training's checkpoint" in told and "the same command continues" in told
    events = read_events(next(project.path.glob(f"{root}/ledger.jsonl")))
    ends = {event["stage"]: event["outcome"] for event in events if event["event"] == "stage_end"}
    assert ends == {"probe_train": "ok", "long_train": "interrupted"}
    done = subprocess.run(words, cwd=project.path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout.count("training ") == 1, done.stdout
    assert "--measure none: not measured at the good commit. Measured: " in done.stderr
