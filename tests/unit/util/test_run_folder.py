"""Which folder a run works in, who may write there, and that nothing of another run is lost or comes back."""

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimickit import run
from mimickit.learning.evaluation import TestResult
from mimickit.util import run_folder
from mimickit.util.args import Args
from mimickit.util.checkpoint import find_latest
from mimickit.util.distributed import Distributed
from mimickit.util.failures import NonFiniteError, UserError, failure_file, write_failure
from mimickit.util.files import FullDiskError, read_json, write_json
from mimickit.util.logging import Heartbeat
from mimickit.util.manifest import describe_file, part_names, write_manifest
from mimickit.util.processes import is_alive

ROOT = Path(__file__).resolve().parents[3]
ARGS_FILE = "args/deepmimic_humanoid_ppo_args.txt"
CASE = ["--arg_file", ARGS_FILE, "--engine_config", "data/engines/newton_engine.yaml", "--devices", "cpu",
        "--num_envs", "2", "--visualize", "false"]
TODAY = time.strftime("%Y-%m-%d")


def write_checkpoint(folder, iteration, **entries):
    """A complete checkpoint with nothing in its files."""
    path = folder / "checkpoints" / f"{iteration:010d}"
    path.mkdir(parents=True)
    for name in part_names(1):
        (path / name).touch()
    write_manifest(path, {"world_size": 1, "num_envs": 2, "iteration": iteration, **entries},
                   {name: describe_file(path / name) for name in part_names(1)})
    return path


@pytest.fixture
def trained(tmp_path):
    """A run folder with a training that failed in the end."""
    folder = tmp_path / "run"
    write_checkpoint(folder, 3, run="first")
    write_json(folder / "run.json", {"run": "first"})
    write_json(folder / "progress.json", {"iteration": 3, "samples": 12345})
    write_json(folder / "result.json", {"mode": "train", "ok": True})
    write_json(folder / "failures/rank_0.json", {"message": "the root cause"})
    write_json(folder / "failures/rank_1.json", {"message": "a consequence"})
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "log.txt").write_text("Iteration Samples\n0 10\n")
    (folder / "notes.md").write_text("mine")
    return folder


@pytest.fixture
def program(monkeypatch, capsys):
    """Run the program up to where it would build an engine; returns the exit code, what it said, and its request."""
    monkeypatch.chdir(ROOT)
    built = []
    monkeypatch.setattr(run, "join", lambda request: Distributed.single())
    monkeypatch.setattr(run, "run_stage", lambda request, dist: built.append(request) or 0)

    def main(*argv):
        built.clear()
        code = run.main([*argv, *CASE])
        said = capsys.readouterr()
        return code, said.out + said.err, built[0] if built else None

    return main


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != run_folder.LOCK}


def chosen(*argv):
    return run_folder.choose(Args.from_argv(argv))["out_dir"]


@pytest.mark.parametrize(("given", "expected"), [
    ([], f"output/case/{TODAY}-1"),
    (["--arg_file", "{folder}/plain_args.txt"], f"output/plain/{TODAY}-1"),  # it says output/
    (["--arg_file", "{folder}/named_args.txt"], "output/mine"),
    (["--arg_file", "{folder}/plain_args.txt", "--out_dir", "output/"], "output/"),  # said on the command line
    (["--resume", "output/x"], "output/x"),
    (["--resume", "output/x/checkpoints/0000000012"], "output/x"),
    (["--resume", "--out_dir", "output/x"], "output/x"),
    (["--resume", "output/x", "--out_dir", "output/y"], "output/y"),
])
def test_where_a_run_works(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain_args.txt").write_text("--out_dir output/\n")
    (tmp_path / "named_args.txt").write_text("--out_dir output/mine\n")
    argv = [word.format(folder=tmp_path) for word in given] or ["--env_config", "data/envs/case_env.yaml"]
    assert chosen(*argv) == expected


def test_every_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = tmp_path / "output/case"
    (case / f"{TODAY}-1").mkdir(parents=True)
    assert chosen("--env_config", "case_env.yaml") == f"output/case/{TODAY}-2"
    assert run_folder.make_own(case / f"{TODAY}-1") == case / f"{TODAY}-2", "somebody else was faster"


def test_the_program_says_which_folder_it_made(program, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "OUT_DIR", str(tmp_path))
    (tmp_path / "case_args.txt").write_text((ROOT / ARGS_FILE).read_text().replace("output/", str(tmp_path)))
    code, said, request = program("--arg_file", str(tmp_path / "case_args.txt"))
    assert (code, request.out_dir) == (0, tmp_path / f"case/{TODAY}-1")
    assert request.result_file == request.out_dir / "result.json" and f"run folder: {request.out_dir}" in said


def test_a_bare_resume_needs_a_folder():
    with pytest.raises(UserError, match=r"--resume \(command line\) without a path continues the run in --out_dir"):
        chosen("--resume")


def test_another_training_is_refused_with_the_choices(program, trained):
    before = files(trained)
    code, said, _ = program("--out_dir", str(trained))
    assert code == 2 and f"{trained} holds a training already (iteration 3, 12,345 samples)" in said
    assert all(choice in said for choice in (f"--resume {trained}", "--overwrite", "another --out_dir"))
    assert files(trained) == before


def test_overwriting_leaves_nothing_of_a_run(program, trained):
    code, _, request = program("--out_dir", str(trained), "--overwrite")
    assert code == 0 and request is not None
    assert set(files(trained)) == {"notes.md"} and find_latest(trained) is None


@pytest.mark.parametrize("wrong", [["--num_env", "3"], ["--mode", "trian"], ["--eval_envs", "2"]])
def test_a_mistake_overwrites_nothing(program, trained, wrong):
    """Neither the run, nor what it said about its end."""
    before = files(trained)
    for flags in (["--overwrite"], ["--resume"]):
        assert program("--out_dir", str(trained), *flags, *wrong)[0] == 2
        assert files(trained) == before


@pytest.mark.parametrize(("flags", "message"), [
    (["--resume"], "--overwrite would remove what --resume {run} continues from"),
    (["--resume", "{run}/checkpoints/0000000003"], "--overwrite would remove what --resume"),
    (["--model_file", "{run}/model.pt"], "--overwrite would remove --model_file {run}/model.pt"),
])
def test_overwriting_what_is_needed(program, trained, flags, message):
    code, said, _ = program("--out_dir", str(trained), "--overwrite", *(flag.format(run=trained) for flag in flags))
    assert code == 2 and message.format(run=trained) in said
    assert (trained / "model.pt").exists()


def test_a_continued_run_keeps_everything_but_its_end(program, trained):
    before = files(trained)
    code, _, request = program("--resume", str(trained))
    assert (code, request.out_dir) == (0, trained)
    assert files(trained) == {name: text for name, text in before.items()
                              if name != "result.json" and not name.startswith("failures")}


def test_an_older_checkpoint_cannot_be_gone_on_from_in_place(program, trained):
    """Newer checkpoints would be kept instead of those that the run then writes."""
    write_checkpoint(trained, 5, run="first")
    code, said, _ = program("--resume", str(trained / "checkpoints/0000000003"))
    assert code == 2 and "has newer checkpoints (0000000005), which going on from this one would lose" in said
    assert program("--resume", str(trained / "checkpoints/0000000003"), "--out_dir", str(trained.parent / "b"))[0] == 0


def test_checkpoints_of_another_run_never_come_back(program, trained):
    foreign = write_checkpoint(trained, 12, run="overwritten")
    nameless = write_checkpoint(trained, 13)
    assert find_latest(trained).name == "0000000003"
    for path in (foreign, nameless):
        code, said, _ = program("--resume", str(path))
        assert code == 2 and f"--resume {path} belongs to another run than the one in {trained}" in said
    (trained / "run.json").unlink()
    assert find_latest(trained).name == "0000000013", "folders of older versions name no run"


def test_names_of_runs(trained, tmp_path):
    assert run_folder.continued(trained, str(trained / "checkpoints/0000000003")) == "first"
    assert run_folder.continued(tmp_path / "other", str(trained)) is None
    (tmp_path / "other").mkdir()
    name = run_folder.name_run(tmp_path / "other")
    assert name == run_folder.identity(tmp_path / "other") != run_folder.name_run(tmp_path / "other")
    (trained / "run.json").unlink()
    assert run_folder.name_run(trained, run_folder.continued(trained, str(trained))) == ""
    assert run_folder.identity(trained) is None, "the run of an older version stays without a name"


def test_a_test_in_the_folder_of_a_training(program, trained):
    before = files(trained)
    code, said, request = program("--out_dir", str(trained), "--mode", "test", "--test_episodes", "1")
    assert (code, request.out_dir) == (0, trained / "test") and f"results go to: {trained / 'test'}" in said
    assert request.result_file == trained / "test/result.json" and files(trained) == before


def test_two_runs_in_one_folder(program, trained):
    """Held by another process, which is named; free again when that has ended, however it did."""
    code = ("import sys; from pathlib import Path; from mimickit.util import run_folder;"
            "held = run_folder.lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()")
    before = files(trained)
    with subprocess.Popen([sys.executable, "-c", code, str(trained)], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for flags in (["--resume"], ["--overwrite"]):
                code, said, _ = program("--out_dir", str(trained), *flags)
                holder = f"{trained} is in use by process {other.pid} on {os.uname().nodename} since 20"
                assert code == 2 and holder in said
            assert files(trained) == before
        finally:
            other.kill()
    assert program("--out_dir", str(trained), "--resume")[0] == 0


def test_a_holder_that_is_being_taken_apart_is_waited_for(tmp_path):
    """The system keeps a killed process's locks until it has unmapped its memory, here for some tenths of a second."""
    code = ("import sys; from pathlib import Path; from mimickit.util import run_folder; size = 600_000_000;"
            "memory = bytearray(size); memory[::4096] = b'1' * len(range(0, size, 4096));"
            "held = run_folder.lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        other.kill()
        while is_alive(other.pid):
            pass
        run_folder.lock(tmp_path).close()


def test_a_run_that_ends_lets_the_next_one_in(program, tmp_path):
    assert [program("--out_dir", str(tmp_path / "a"))[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run_folder.lock(tmp_path) is None
    assert f"{tmp_path} cannot be locked ({os.strerror(code)}): nothing keeps" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "left"), [(0, ["rank_1.json"]), (1, ["rank_0.json", "rank_2.json"])])
def test_a_process_forgets_its_own_failure(trained, monkeypatch, rank, left):
    """Under torchrun another one's may be the reason why this run ends. The first also forgets those of more processes
    than there are now."""
    write_json(trained / "failures/rank_2.json", {"message": "of a run with three processes"})
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = SimpleNamespace(args=Args.from_argv([]), out_dir=trained, result_file=trained / "result.json", mode="test")
    run.forget_last_end(given, rank)
    assert (trained / "result.json").exists(), "a test's stays until there is a new one"
    given.mode = "train"
    run.forget_last_end(given, rank)
    assert sorted(path.name for path in trained.glob("failures/*")) == left
    assert (trained / "result.json").exists() == (rank == 1)


@pytest.mark.parametrize(("kept", "said"), [
    ("", "interrupted before training began: nothing to continue; the same command starts it"),
    ("run_config.yaml", "interrupted"),
])
def test_an_interrupted_start_leaves_no_folder(program, tmp_path, monkeypatch, kept, said):
    def interrupt(request, dist):
        for name in filter(None, ("progress.json", "heartbeat/rank_0", kept)):
            (request.out_dir / name).parent.mkdir(exist_ok=True)
            (request.out_dir / name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_stage", interrupt)
    code, text, _ = program("--out_dir", str(tmp_path / "case/new"))
    assert code == 130 and text.splitlines()[-1] == said
    assert (tmp_path / "case/new").exists() == bool(kept)
    assert program("--out_dir", str(tmp_path / "case"))[1].endswith("interrupted\n") and (tmp_path / "case").is_dir()


def test_a_mistake_is_noted_where_nothing_else_is(program, tmp_path):
    (tmp_path / "new").mkdir()
    assert program("--out_dir", str(tmp_path / "new"), "--set", "fps=3")[0] == 2
    assert "--set fps=3: expected KEY=VALUE" in read_json(tmp_path / "new/failures/rank_0.json")["message"]
    assert json.loads((tmp_path / "new" / run_folder.LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("error", "said"), [
    (NonFiniteError("iteration 3: loss not finite. Try smaller learning rates"), "error (nan): iteration 3: loss not"),
    (FullDiskError(errno.ENOSPC, "No space left on device: 9.0 MiB are needed, 0.1 MiB are free", "out/model.pt"),
     "9.0 MiB are needed, 0.1 MiB are free: 'out/model.pt'"),
])
def test_what_needs_no_traceback(program, tmp_path, monkeypatch, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(run, "run_stage", fail)
    code, text, _ = program("--out_dir", str(tmp_path / "out"))
    assert code == 1 and said in text and "Traceback" not in text
    assert "Traceback" in read_json(tmp_path / "out/failures/rank_0.json")["traceback"]


@pytest.mark.parametrize(("flags", "episodes", "ok"), [
    (["--test_episodes", "4"], 0, False), ([], 0, False), (["--test_episodes", "4"], 2, False), ([], 2, True)])
def test_a_test_that_a_signal_ended(program, tmp_path, monkeypatch, flags, episodes, ok):
    """It is a result only where nobody said how many episodes there should be, and there is one at least."""
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        return TestResult(0.0, 0.0, episodes, {}, {}, 0, 0, 0, complete=False)

    monkeypatch.setattr("mimickit.learning.evaluation.run_test", interrupted)
    env = SimpleNamespace(num_envs=2)
    monkeypatch.setattr(run, "run_stage", lambda request, dist: run.test_stage(request, env, None, dist))
    code, _, _ = program("--mode", "test", "--out_dir", str(tmp_path / "out"), *flags)
    result = read_json(tmp_path / "out/result.json")
    assert (code, result["ok"], result["complete"]) == (143, ok, False)


def test_processes_of_a_torchrun_work_in_the_folder_that_the_first_one_made(program, tmp_path, monkeypatch):
    """The others only know afterwards where that is, and say there why they failed."""
    made = tmp_path / f"case/{TODAY}-7"
    made.mkdir(parents=True)

    def fail(request, dist):
        assert (request.out_dir, request.result_file) == (made, made / "result.json")
        raise RuntimeError("of rank 1")

    (tmp_path / "case_args.txt").write_text((ROOT / ARGS_FILE).read_text())
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run, "join", lambda request: SimpleNamespace(broadcast_object=lambda path: made))
    monkeypatch.setattr(run, "run_stage", fail)
    code, said, _ = program("--arg_file", str(tmp_path / "case_args.txt"))
    assert code == 1 and "of rank 1" in said and not (ROOT / "output/case").exists()
    assert [path.name for path in made.rglob("*.json")] == ["rank_1.json"]


def test_overwriting_takes_no_sign_of_life_and_no_failure_of_the_processes_that_start(tmp_path):
    """Process 0 clears the folder when others may have begun: one that beat next found its folder gone and ended."""
    heartbeat = Heartbeat(tmp_path, 1, starting=True)
    write_failure(tmp_path, 1, RuntimeError("the root cause"))
    (tmp_path / "model.pt").write_bytes(b"x")
    run_folder.clear(tmp_path)
    assert not (tmp_path / "model.pt").exists()
    heartbeat._last = -math.inf
    heartbeat.beat()
    assert failure_file(tmp_path, 1).exists()
