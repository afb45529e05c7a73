"""The run program on the real humanoid: it trains, tests, films. How it stops and continues: tests/faults."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimickit import run

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ["cuda:0"] if torch.cuda.is_available() else ["cpu"]


def command(out, *flags, devices=DEVICES):
    return [sys.executable, "mimickit/run.py", "--arg_file", "args/deepmimic_humanoid_ppo_args.txt", *flags,
            "--engine_config", "data/engines/newton_engine.yaml", "--devices", *devices, "--num_envs", "4",
            "--visualize", "false", "--rand_seed", "7", "--out_dir", str(out),
            "--set", "env.episode_length=0.5", "agent.steps_per_iter=8", "agent.test_episodes=2",
            "agent.iters_per_output=2"]


@pytest.mark.slow
def test_two_processes_train_and_one_tests_with_video(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    devices = ["cuda:0", "cuda:1"] if torch.cuda.device_count() > 1 else ["cpu", "cpu"]
    done = subprocess.run(command(tmp_path / "train", "--max_samples", "128", devices=devices), cwd=ROOT,
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = json.loads((tmp_path / "train/result.json").read_text())
    assert trained["world_size"] == 2 and trained["samples"] == 128 and trained["outcome"] == "completed"
    assert {p.name for p in (tmp_path / "train" / "heartbeat").iterdir()} == {"rank_0", "rank_1"}
    assert not [p for prefix in ("torchelastic_*", "mimickit-*") for p in (tmp_path / "tmp").glob(prefix)]

    monkeypatch.chdir(ROOT)
    assert run.main(command(
        tmp_path / "test", "--mode", "test", "--model_file", trained["model_file"], "--test_episodes", "4",
        "--video", "true", "--video_width", "160", "--video_height", "120")[2:]) == 0
    tested = json.loads((tmp_path / "test/result.json").read_text())
    assert tested["test_episodes"] == 4 and 1 <= tested["test_episode_length"] <= 15
    assert set(tested["measures"]) >= {"root_pos_err", "body_pos_err", "success_rate"}
    assert Path(tested["video"]["file"]).stat().st_size > 0 and len(tested["video"]["png"]) >= 1


def test_a_test_that_nobody_sees_says_that_it_has_no_end(tmp_path):
    argv = [sys.executable, "mimickit/run.py", "--arg_file", "args/view_motion_humanoid_args.txt", "--num_envs", "1",
            "--engine_config", "data/engines/newton_engine.yaml", "--devices", *DEVICES, "--visualize", "false",
            "--out_dir", str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert any(line.startswith("running until Ctrl-C (no window") for line in process.stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 128 + signal.SIGINT
        finally:
            process.kill()
    assert json.loads((tmp_path / "result.json").read_text())["complete"] is False


def test_rollout_never_waits_for_the_device():
    """Under CUDA's sync detector a whole rollout passes; on CPU the same code runs with captured physics."""
    from mimickit.envs.env_builder import build_env
    from mimickit.learning.methods import build_agent
    from mimickit.learning.trainer import roll_out
    from mimickit.request_reader import read_request
    from mimickit.util.args import Args
    from mimickit.util.distributed import Distributed

    request = read_request(Args.from_argv(command("output/unused")[2:]))
    dist = Distributed.single(DEVICES[0])
    env = build_env(request.env, request.engine, 4, dist.device)
    agent = build_agent(env, request.agent, dist)
    env.reset()
    before = env.obs.clone()
    roll_out(env, agent, 8, lambda: None)  # captures
    if dist.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        roll_out(env, agent, 8, lambda: None)
    finally:
        if dist.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(env.obs).all() and not torch.equal(env.obs, before)
    env.close()
