"""The recipe of docs/characters.md, followed word by word in a project folder of its own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import contact_capacity
from mimickit import run
from tools import check_motion, render_clips

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "characters.md").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the files that the page tells people to write."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    for name in ("agents", "engines"):
        (folder / "data" / name).symlink_to(ROOT / "data" / name)
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        name = re.search(r"`(data/\S+)`", section.splitlines()[0])
        if name is None:
            continue
        kind, text = re.search(r"```(\w+)\n(.*?)```", section, re.S).groups()
        path = folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
        else:
            path.write_text(text)
    return folder


def commands():
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S):
        yield shlex.split(block.replace("\\\n", " "))


def test_the_page_names_every_file(project):
    written = sorted(str(p.relative_to(project)) for p in project.rglob("*hopper*") if p.is_file())
    assert written == [
        "data/assets/hopper/hopper.xml", "data/envs/deepmimic_hopper_env.yaml", "data/envs/view_motion_hopper_env.yaml",
        "data/motions/hopper/hopper_squat.pkl"]


def test_the_clip_passes_the_check(project, monkeypatch):
    monkeypatch.chdir(project)
    assert check_motion.main(["data/motions/hopper/hopper_squat.pkl", "--char", "data/assets/hopper/hopper.xml"]) == 0


def test_view_train_and_measure(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    view, train, measure = commands()
    assert (view[0], train[0], measure[:2]) == ("mimickit", "mimickit", ["python", "benchmarks/contact_capacity.py"])
    small = ["--devices", "cpu", "--visualize", "false"]
    assert run.main([*small, *view[1:]]) == 0
    viewed = json.loads((project / "output/hopper_view/result.json").read_text())
    assert viewed["measures"]["pose_err"] < 1e-4 and viewed["test_episode_length"] == 150

    assert run.main([*small, "--num_envs", "8", "--max_samples", "128", "--set", "agent.steps_per_iter=16",
                     "agent.test_episodes=8", "env.episode_length=1", *train[1:]]) == 0
    assert "contact capacity of hopper was never measured" in capfd.readouterr().out
    trained = json.loads((project / "output/hopper/result.json").read_text())
    assert trained["samples"] == 128 and trained["contact_overflow"] == trained["constraint_overflow"] == 0
    assert trained["evaluation"]["return"] > 1.0

    assert contact_capacity.main([*measure[2:], "--num-envs", "4", "--steps", "60", "--device", "cpu"]) == 0
    row = next(line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("hopper"))
    assert int(row[1]) > 0 and int(row[3]) > 0


def test_clips_can_be_rendered_with_what_stands_around_them(tmp_path, monkeypatch):
    from PIL import Image

    sheet = tmp_path / "sheet.png"
    monkeypatch.chdir(ROOT)
    assert render_clips.main(["data/motions/humanoid/humanoid_speed_vault.pkl", "--pictures", "2",
                              "--env", "data/envs/vault_humanoid_env.yaml", "--out", str(sheet)]) == 0
    picture = Image.open(sheet).convert("RGB")
    assert picture.size == (520, 260)
    colors = [color for _, color in picture.getcolors(1 << 20)]
    assert any(blue > red + 60 for red, _, blue in colors)  # the character
