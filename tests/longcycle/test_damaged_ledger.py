"""A ledger with damaged lines: what is left of it counts, and nobody ends in a traceback."""

import json
import random

import pytest

from mimickit.longcycle import merge as merging
from mimickit.longcycle.events import CHECKSUM, EventFile, from_line, to_line
from mimickit.longcycle.ledger import Ledger, rows
from tests.longcycle.conftest import CASES, TRAINED
from tests.longcycle.test_results import content

WORDS = [b"null", b"[]", b"3", b'"text"', b"{}", b'{"event": []}', b'{"event": "case_end", "time": 1.0}',
         b"\xff\x00\x80", b'{"event": "stage_start", "time": 1.0, "case": "../../up"}', b"9" * 5000, b"[" * 20_000]


def cut(line):
    return line[:len(line) // 2]


def spoilt_type(name, value):
    def damage(line):
        return json.dumps({**without_checksum(line), name: value}).encode()

    return damage


def without_checksum(line):
    event = json.loads(line)
    event.pop(CHECKSUM, None)
    return event


def test_a_line_is_read_as_it_was_written():
    event = {"event": "case_reused", "time": 1.25, "case": "a", "more": [1, None, {"é": "\u2028"}], "nan": float("inf")}
    assert from_line(to_line(event)) == event
    assert from_line(json.dumps(event).encode()) == event, "older lines have no checksum"


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word[:24].decode(errors="replace"))
def test_what_is_no_event(word):
    assert from_line(word) is None


def test_no_flipped_bit_is_taken_for_a_result():
    """Each bit of a line in turn: the line is refused, or, where its checksum's name was hit, says what it said."""
    event = {"event": "case_end", "time": 1.5, "case": "a", "row": {
        "case": "a_args.txt", "variant": "default", "num_envs": 8, "final_ok": 1, "test_return": 9.25}}
    line = to_line(event).rstrip(b"\n")
    for place in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[place // 8] ^= 1 << place % 8
        found = from_line(bytes(flipped))
        assert found is None or {name: found[name] for name in event} == event, bytes(flipped)


@pytest.mark.parametrize(("name", "value"), [
    ("time", "now"), ("time", None), ("time", float("nan")), ("case", 3), ("case", "a/b"), ("case", "..\\x"),
    ("num_envs", "8"), ("num_envs", 8.5), ("stage", "lunch"), ("key", []), ("devices", "cpu"), ("outcome", "fine"),
    ("elapsed_s", "1"), ("result", []), ("log", 3), ("out_dir", "a\0b"), ("started", None), ("event", "stage_stort")])
def test_wrong_types_are_no_events(name, value):
    event = {"event": "stage_end", "time": 1.0, "case": "a", "variant": "default", "num_envs": 8, "stage": "test",
             "fingerprint": "f", "key": {}, "degraded": False, "devices": ["cpu"], "folder": "runs/a", "started": 1.0,
             "out_dir": "runs/a/test", "log": "runs/a/test.log", "afresh": False, "outcome": "ok", "elapsed_s": 1}
    assert from_line(json.dumps(event).encode()) == event
    assert from_line(json.dumps({**event, name: value}).encode()) is None


def test_every_line_damaged_in_turn(project, monkeypatch, capsys):
    """--lf and a merge take what is left: no traceback, a wrong number in no table, and the damage is told."""
    project.rules({"stage": "test", "case": TRAINED, "do": "crash", "times": 1})
    assert project.run().ret == 1
    assert project.run("--lf").ret == 0
    ledger = project.out / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines()
    whole = {row["case"]: row for row in rows(Ledger(project.out, project.path).state())}
    ends = {(e["case"], e["stage"], e["started"]) for e in project.events() if e["event"] == "stage_end"}
    monkeypatch.chdir(project.path)
    merged = set()  # kinds of events; each merge copies the root
    for number, line in enumerate(lines):
        for damage in (cut, lambda line: b"null", spoilt_type("time", "x"), flip):
            ledger.write_bytes(b"\n".join([*lines[:number], damage(line), *lines[number + 1:]]) + b"\n")
            state = Ledger(project.out, project.path).state()
            assert state.damaged == 1
            for row in rows(state):
                assert row == whole[row["case"]] or json.loads(line)["event"] == "case_end"
            if json.loads(line)["event"] == "stage_start":
                known = {(name, stage, event["started"]) for name, case in state.cases.items()
                         for attempt in case.attempts.values() for stage, event in attempt.stages.items()
                         if event["event"] == "stage_end"}
                assert known <= ends and len(rows(state)) == len(CASES), "the end stands for the attempt"
        if json.loads(line)["event"] in merged:
            continue
        merged.add(json.loads(line)["event"])
        assert merging.main(["merged", "longcycle_smoke", "--replace"]) == 0
        assert "1 damaged line was passed over" in capsys.readouterr().out
        assert EventFile(project.path / "output/train/merged/ledger.jsonl").read().damaged == 0


def flip(line):
    place = random.Random(len(line)).randrange(len(line) - 25)
    return line[:place] + bytes([line[place] ^ 4]) + line[place + 1:]


@pytest.mark.parametrize("kinds", [{"session_start", "stage_start"}, {"stage_end", "case_end"}])
def test_sessions_over_a_damaged_ledger(project, kinds):
    project.run("--cases", f"{TRAINED},{CASES[1]}")
    project.forget_calls()
    ledger = project.out / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    for kind in kinds:
        number = next(i for i, event in enumerate(events)
                      if event["event"] == kind and event.get("stage", "long_train") == "long_train")
        lines[number] = cut(lines[number]) + b"\n"
    ledger.write_bytes(b"".join(lines))
    before = content(project.out)
    judged = project.run("--from-results", "longcycle_smoke", "--cases", f"{TRAINED},{CASES[1]}")
    judged.stdout.fnmatch_lines(["*2 damaged lines were passed over in ledger.jsonl*"])
    assert judged.ret == (1 if "case_end" in kinds else 0)
    assert content(project.out) == before
    result = project.run("--lf", "--cases", f"{TRAINED},{CASES[1]}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*2 damaged lines were passed over in ledger.jsonl*", "*2/2 final_ok=1*"])
    assert "Traceback" not in judged.stdout.str() + result.stdout.str() + result.stderr.str()
    assert project.stages() == (["long_train", "test", "viz"] if "case_end" in kinds else [])


def test_a_live_line_reads_only_what_was_appended(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, tmp_path)
    for _ in range(20):
        ledger.append("case_waiting", case="a", devices="cpu")
    read = []
    monkeypatch.setattr("mimickit.longcycle.events.from_line", lambda line: read.append(line) or from_line(line))
    ledger.refresh_progress()
    assert read == []
    Ledger(tmp_path, tmp_path).append("session_end", status="finished")  # another process
    read.clear()
    assert ledger.refresh_progress()["status"] == "finished" and len(read) == 1
    text = ledger.path.read_bytes()
    ledger.path.write_bytes(text[:len(text) // 2])  # shrunk: read as a whole, the last line is cut
    state = ledger.state()
    assert (len(ledger.events()), state.damaged, state.status) == (10, 1, "starting")
    other = tmp_path / "other"
    other.write_bytes(text + text)
    other.replace(ledger.path)
    assert len(ledger.events()) == 42
