"""Numbers do not move: three iterations of every method on the CPU, compared with a recording to the last bit.

A refactoring leaves ``reference.json`` as it is. A change that is meant to move numbers records anew, and says why:
``python -m tests.sim.test_reference``.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mimickit import run
from mimickit.util.logging import read_log

ROOT = Path(__file__).resolve().parents[2]
RECORDING = Path(__file__).with_name("reference.json")
CASES = ["deepmimic_humanoid_ppo", "deepmimic_humanoid_awr", "amp_steering_humanoid", "add_humanoid", "ase_humanoid"]


def machine():
    """What decides the last bit besides the source: processor and libraries."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, value in lines}
    cpu = ", ".join(facts.get(key, "?") for key in ("model name", "cpu family", "model", "stepping"))
    return {"cpu": cpu, **{name: version(name) for name in ("torch", "warp-lang", "newton", "mujoco-warp", "numpy")}}


def three_iterations(case, out):
    """Rows of log.txt, as text, and a digest of model.pt."""
    assert run.main([
        "--arg_file", f"args/{case}_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
        "--variant", "default", "--devices", "cpu", "--num_envs", "16", "--max_iters", "3", "--rand_seed", "1",
        "--eval_envs", "4", "--visualize", "false", "--out_dir", str(out),
        "--set", "agent.steps_per_iter=8", "agent.test_episodes=0", "agent.iters_per_output=1"]) == 0
    header, rows = read_log(out / "log.txt")
    digest = hashlib.sha256()
    for name, tensor in sorted(torch.load(out / "model.pt", weights_only=True).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    numbers = [{name: value for name, value in zip(header, row, strict=True) if name != "Wall_Time"} for row in rows]
    return {"log": numbers, "model": digest.hexdigest()}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_recorded(case, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recording = json.loads(RECORDING.read_text())
    found, recorded = three_iterations(case, tmp_path), recording["cases"][case]
    if recording["machine"] == machine():
        assert found == recorded
        return
    for row, other in zip(found["log"], recorded["log"], strict=True):  # another processor rounds differently
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert float(value) == pytest.approx(float(other[name]), rel=0.02, abs=0.02, nan_ok=True), name


if __name__ == "__main__":
    import os
    import tempfile

    os.chdir(ROOT)
    torch.set_num_threads(1)  # sums in one order, as conftest.py has it
    with tempfile.TemporaryDirectory() as scratch:
        cases = {case: three_iterations(case, Path(scratch) / case) for case in CASES}
    RECORDING.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1) + "\n")
