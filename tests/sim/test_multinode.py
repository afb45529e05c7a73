"""One training over two nodes: two torchrun agents that find each other, as cluster/train_multinode.sbatch has them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimickit.util.logging import read_log

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.fixture
def start():
    """Start both agents; whatever happens, none of them is left behind."""
    agents = []

    def start(out, *flags):
        port = free_port()
        for node in range(2):
            with (out.parent / f"node_{node}.log").open("w") as log:
                agents.append(subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                     "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "1",
                     "--max-restarts", "0", "mimickit/run.py", "--mode", "train", "--visualize", "false", "--out_dir",
                     str(out), "--devices", "cpu", *flags, "--arg_file", "args/deepmimic_humanoid_ppo_args.txt",
                     "--engine_config", "data/engines/newton_engine.yaml", "--num_envs", "4", "--rand_seed", "7",
                     "--set", "env.episode_length=0.5", "agent.steps_per_iter=8", "agent.test_episodes=2",
                     "agent.iters_per_output=1"],
                    cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
        return agents[-2:]

    yield start
    for agent in agents:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def progress(out):
    path = out / "progress.json"
    return json.loads(path.read_text()).get("samples", 0) if path.exists() else 0


@pytest.mark.slow
def test_two_nodes_train_one_model_and_continue_after_a_sigterm(start, tmp_path):
    out = tmp_path / "run"
    agents = start(out)
    deadline = time.monotonic() + 120
    while progress(out) < 128:
        logs = (tmp_path / "node_0.log").read_text() + (tmp_path / "node_1.log").read_text()
        assert all(agent.poll() is None for agent in agents) and time.monotonic() < deadline, logs
        time.sleep(0.1)
    for agent in agents:
        agent.send_signal(signal.SIGTERM)
    assert all(agent.wait(60) != 0 for agent in agents)
    first = json.loads((out / "result.json").read_text())
    assert (first["outcome"], first["world_size"], first["samples"]) == ("interrupted", 2, 64 * first["iterations"])

    target = first["samples"] + 128
    agents = start(out, "--resume", str(out), "--max_samples", str(target))
    codes = [agent.wait(120) for agent in agents]
    assert codes == [0, 0], (tmp_path / "node_0.log").read_text()
    last = json.loads((out / "result.json").read_text())
    assert (last["outcome"], last["samples"], last["iterations"]) == ("completed", target, first["iterations"] + 2)
    header, rows = read_log(out / "log.txt")  # one log, without a gap and without a line twice
    assert [int(row[0]) for row in rows] == list(range(last["iterations"]))
    assert [int(row[header.index("Samples")]) for row in rows] == [64 * (i + 1) for i in range(last["iterations"])]
    assert [path.name for path in out.glob("*.pt")] == ["model.pt"]
    assert {path.name for path in (out / "heartbeat").iterdir()} == {"rank_0", "rank_1"}
    assert not list(out.glob("failures/*"))
    shared = [line for node in range(2) for line in (tmp_path / f"node_{node}.log").read_text().splitlines()
              if line.startswith("completed:")]
    assert len(shared) == 1, "the root alone reports"
