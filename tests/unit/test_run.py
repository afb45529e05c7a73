"""What the run program says about flags and overrides before anything starts."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mimickit import request_reader, run
from mimickit.config import load_layered
from mimickit.learning.config import DummyConfig, parse_agent_config
from mimickit.util.args import Args
from mimickit.util.distributed import Distributed
from mimickit.util.manifest import describe_file

ROOT = Path(__file__).resolve().parents[2]
CASE = ["--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
        "--devices", "cpu", "--visualize", "false"]
ENV, AGENT = "data/envs/deepmimic_humanoid_env.yaml", "data/agents/deepmimic_humanoid_ppo_agent.yaml"
TUNED = AGENT.replace(".yaml", "_tuned.yaml")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the program with flags before the case's own; returns the message that it refuses them with."""
    monkeypatch.chdir(ROOT)

    def main(*argv):
        assert run.main([*argv, *CASE, "--out_dir", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return main


def test_a_damaged_model_is_refused(refused, tmp_path):
    """It is not the file that its training's result tells of; a copy elsewhere is taken for what it is."""
    model = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(9)}, model)
    (tmp_path / "result.json").write_text(json.dumps({"model_file": "a/model.pt", "model": describe_file(model)}))
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    message = refused("--model_file", str(model))
    assert message.startswith(f"error: --model_file {model} is damaged: it is not the file of {len(data)} bytes that ")
    assert f"--resume {tmp_path} trains on from its newest checkpoint and writes the model anew" in message


def test_files_that_are_read_differently_are_told_once(tmp_path, monkeypatch, capsys):
    """MimicKit's engine files and older agent files: one line each, from the process that a person started."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "join", lambda request: Distributed.single())
    monkeypatch.setattr(run, "run_stage", lambda request, dist: request.engine.sim_freq)
    data = load_layered(ROOT / AGENT)
    older = {key: value for key, value in data.items() if not key.startswith(("actor", "critic"))}
    older |= {"optimizer": {"type": "SGD", "learning_rate": 1e-4}, "update_epochs": 5, "batch_size": 4}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(older))
    argv = ["--agent_config", str(tmp_path / "old.yaml"), "--engine_config", "data/engines/isaac_gym_engine.yaml"]
    for started, expected in ((None, ["isaac_gym_engine.yaml is for engine", "old.yaml has the layout before"]),
                              ("1.0", [])):
        if started:
            monkeypatch.setenv(run.STARTED, started)
        assert run.main([*argv, *CASE, "--out_dir", str(tmp_path / "out")]) == 240
        said = capsys.readouterr().err.splitlines()
        assert len(said) == len(expected) and all(part in line for part, line in zip(expected, said)), said


def test_an_unknown_environment_is_told_before_missing_files(refused, tmp_path):
    (tmp_path / "ball.yaml").write_text("env_name: task_dodgebal\n")
    text = refused("--env_config", str(tmp_path / "ball.yaml"), "--agent_config", "data/agents/dodgeball_agent.yaml")
    assert "ball.yaml: env_name 'task_dodgebal' is not supported (did you mean 'task_dodgeball'?)" in text


@pytest.mark.parametrize(("assignments", "message"), [
    (["agent.steps_per_iter=4", "agent.actor_optimizer.learning_rate=fast"],
     "key 'actor_optimizer.learning_rate' (from --set) = 'fast': "),
    (["agent.agent_name=PPP"], "agent_name 'PPP' is not supported (did you mean 'PPO'?); supported: PPO, LCP, AWR, "
                               "AMP, ADD, ASE, SMP, Dummy (with --set agent.agent_name=PPP)"),
    (["env.episode_length=-5"], f"{ENV}: key 'episode_length' (from --set) = -5: input should be greater than 0"),
    (["env.engine.sim_frq=240"], f"{ENV}, key 'engine': unknown key 'sim_frq' (from --set) (did you mean 'sim_freq'?)"),
    (["engine.sim_freq=100"], "data/engines/newton_engine.yaml: sim_freq 100 must be a multiple of control_freq 30 "
                              "(with --set engine.sim_freq=100)"),
    (["agent.model=3", "agent.model.action_std=1"], "--set agent.model.action_std=1: another --set gives 'model' a "
                                                    "value that has no keys"),
])
def test_wrong_overrides(refused, assignments, message):
    assert message in refused("--set", *assignments)


def test_a_files_own_mistake_is_not_blamed_on_an_override(refused, tmp_path):
    data = load_layered(ROOT / ENV) | {"episode_lenght": 3}
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(data))
    text = refused("--env_config", str(tmp_path / "env.yaml"), "--set", "env.global_obs=true")
    assert text.endswith("env.yaml: unknown key 'episode_lenght' (did you mean 'episode_length'?)")


@pytest.mark.parametrize(("flag", "place", "message"), [
    ("out_dir", "/proc/foo", "cannot write there: No such file or directory (/proc)"),
    ("out_dir", "{file}", "cannot write there: Not a directory"),
    ("out_dir", "{file}/run", "cannot write there: Not a directory"),
    ("result_file", "{file}/result.json", "cannot write there: Not a directory"),
    ("result_file", "{folder}", "cannot write there: it is a folder"),
    ("video_file", "/proc/foo/a.mp4", "cannot write there: No such file or directory"),
])
def test_places_that_cannot_be_written(refused, tmp_path, flag, place, message):
    (tmp_path / "file").touch()
    place = place.format(file=tmp_path / "file", folder=tmp_path)
    assert f"--{flag} {place}: {message}" in refused(f"--{flag}", place)
    assert os.listdir(tmp_path) == ["file"], "looking leaves nothing"


def test_a_read_only_place_and_a_full_disk(refused, monkeypatch):
    def failing(code):
        def open_file(**_):
            raise OSError(code, os.strerror(code))

        return open_file

    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.EROFS))
    assert "Read-only file system" in refused()
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        request_reader.check_writable(Args.from_argv(CASE), "out_dir")


def warnings_of(capsys, mode, agent, info=(), argv=()):
    env = SimpleNamespace(info=dict.fromkeys(info))
    given = SimpleNamespace(mode=mode, agent=agent, args=Args.from_argv(argv), env=SimpleNamespace(env_name="amp"))
    run.warn_if_pointless(given, env)
    return capsys.readouterr().err


def test_warnings_about_pointless_runs(capsys):
    ppo, amp = (parse_agent_config(load_layered(ROOT / file))
                for file in (AGENT, "data/agents/amp_humanoid_agent.yaml"))
    assert "no --model_file: testing a policy that has learned nothing" in warnings_of(capsys, "test", ppo)
    assert "agent PPO does not use the style data" in warnings_of(capsys, "train", ppo, ["disc_obs"])
    assert warnings_of(capsys, "test", ppo, ["disc_obs"], ["--model_file", "model.pt"]) == ""
    assert warnings_of(capsys, "test", DummyConfig()) == warnings_of(capsys, "train", amp, ["disc_obs"]) == ""


def test_files_in_the_run_folder_stand_alone(tmp_path, monkeypatch):
    """Written from what was read once: without ``base`` and without overrides."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "agent.yaml").write_text(f"base: {os.path.relpath(ROOT / AGENT, tmp_path)}\nsteps_per_iter: 7\n")
    argv = ["--agent_config", str(tmp_path / "agent.yaml"), "--out_dir", str(tmp_path / "out"), *CASE,
            "--set", "agent.iters_per_output=3"]
    given = request_reader.read_request(Args.from_argv(argv))
    assert (given.agent.steps_per_iter, given.agent.iters_per_output) == (7, 3)
    run.save_configuration(given, None, SimpleNamespace(world_size=1))
    written = yaml.safe_load((tmp_path / "out/agent_config.yaml").read_text())
    assert written == load_layered(ROOT / AGENT) | {"steps_per_iter": 7}
    assert yaml.safe_load((tmp_path / "out/env_config.yaml").read_text()) == load_layered(ROOT / ENV)


def test_a_start_reads_every_file_once(monkeypatch):
    monkeypatch.chdir(ROOT)
    read = []
    monkeypatch.setattr("mimickit.config.read_bytes", lambda path, limit: read.append(Path(path).resolve())
                        or Path(path).read_bytes())
    request_reader.read_request(Args.from_argv(CASE))
    assert len(read) > 5 and len(read) == len(set(read)), read


def test_a_test_without_end_says_so(capsys, monkeypatch):
    monkeypatch.setattr(run, "SIGN_OF_LIFE", 0.0)
    tell = run.sign_of_life(SimpleNamespace(num_envs=4))
    tell()
    tell()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("running until Ctrl-C (no window") and len(lines) == 3
    assert lines[2].startswith("still running: 2 control steps in 4 worlds")


@pytest.mark.parametrize(("exit_codes", "code", "said"), [
    ((1, -15), 1, "error: process 0 failed (exit code 1); what they said"),  # torchrun ends the others with SIGTERM
    ((1, -9), 137, "error: process 0 failed (exit code 1); process 1 was killed (SIGKILL); what they said"),
    ((2, 1), 2, "error: process 0 failed (exit code 2); process 1 failed (exit code 1); what they said"),
    ((-15, -15), 143, "error: process 0 was killed (SIGTERM); process 1 was killed (SIGTERM); what they said"),
])
def test_the_process_that_failed_first_tells_how_all_ended(tmp_path, monkeypatch, capsys, exit_codes, code, said):
    def torchrun(argv):
        raise ChildFailedError("run", {rank: ProcessFailure(rank, 1, number, "") for rank, number in
                                       enumerate(exit_codes)})

    monkeypatch.setattr("torch.distributed.run.main", torchrun)
    for name in (run.STARTED, run.LAUNCHER, run.PROGRAM, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    asked = SimpleNamespace(args=Args.from_argv([]), out_dir=tmp_path, devices=("cpu", "cpu"), seed=1)
    assert run.launch([], asked) == code
    assert said in capsys.readouterr().err


def test_idle_threads_sleep_unless_somebody_wants_otherwise(monkeypatch):
    for given, then in (("ACTIVE", "ACTIVE"), (None, "PASSIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
        if given is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        assert run.main(["--version"]) == 0
        assert os.environ["OMP_WAIT_POLICY"] == then


def test_an_interruption_before_the_start_is_told(tmp_path, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "read_request", interrupted)
    assert run.main([*CASE, "--out_dir", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interruption_of_the_imports_is_quiet(tmp_path):
    slow = "import sys, time\nprint('begun', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "pydantic.py").write_text(slow)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    # what a shell runs in the background ignores SIGINT, and so would its children
    with subprocess.Popen([sys.executable, "mimickit/run.py", "list"], cwd=ROOT, env=environ, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        next(line for line in process.stderr if line == "begun\n")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said == "interrupted\n"


@pytest.mark.parametrize("file", ["mimickit/run.py", "mimickit/kernels.py"])
def test_a_safe_path_keeps_what_pythonpath_names(tmp_path, file):
    """With PYTHONSAFEPATH (``python -P``) the first entry of the path is not the program's folder."""
    (tmp_path / "pydantic.py").write_text("raise SystemExit(7)")
    done = subprocess.run([sys.executable, "-P", file, "--help"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 7, done.stderr
