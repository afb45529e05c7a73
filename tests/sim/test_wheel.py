"""The wheel works in any folder: built from a copy of the sources, installed, used away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "mimickit", "args", "data",
           "tests/acceptance")
TINY = ["--devices", "cpu", "--num_envs", "4", "--set", "env.episode_length=0.1", "agent.steps_per_iter=4"]


@pytest.mark.wheel
def test_from_wheel_to_policy(tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    (source / "tests").mkdir(parents=True)
    work.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    wheel, = tmp_path.glob("*.whl")
    carried = {name.removeprefix("mimickit/_shipped/") for name in zipfile.ZipFile(wheel).namelist()}
    tracked = subprocess.run(["git", "ls-files", "args", "data", "tests/acceptance", "mimickit"], cwd=ROOT,
                             capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= carried and len(carried) > 200
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-compile", "--target", site, wheel], check=True)
    shutil.rmtree(source)

    def mimickit(*words):
        done = subprocess.run([sys.executable, site / "bin/mimickit", *words], cwd=work, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(site)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "deepmimic_humanoid_ppo" in mimickit("list", "cases")
    assert f"{site}/mimickit/_shipped/data/agents/tuned.yaml" in mimickit("show", "deepmimic_humanoid_ppo")
    said = mimickit("train", "deepmimic_humanoid_ppo", "--max_samples", "32", *TINY)
    run, = (work / "output/deepmimic_humanoid_ppo").iterdir()
    assert f"test: mimickit test {run.relative_to(work)}\n" in said
    assert json.loads((run / "result.json").read_text())["samples"] == 32
    assert [path.name for path in work.iterdir()] == ["output"]
    said = mimickit("longcycle", "-n", "0", "--longcycle-profile", "smoke", "--cases", "dof_test_humanoid")
    assert "1/1 final_ok=1" in said and (work / "output/train/longcycle_smoke/best_by_case.tsv").is_file()
