"""Files are looked up in the working directory, then among the shipped ones."""

from pathlib import Path

import yaml

from mimickit.anim.motion_lib import list_motions
from mimickit.config import layers
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED, locate

CLIP = "data/motions/humanoid/humanoid_walk.pkl"


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(CLIP) == SHIPPED / CLIP and locate(CLIP).is_file()
    (tmp_path / CLIP).parent.mkdir(parents=True)
    (tmp_path / CLIP).write_bytes(b"")
    assert locate(CLIP) == Path(CLIP)
    for path in ("data/none.pkl", "walk.pkl", "mimickit/run.py", str(tmp_path / "data/none.pkl"), ""):
        assert locate(path) == Path(path), "as given"


def test_a_case_is_read_from_any_folder(tmp_path, monkeypatch):
    """Args file, engine, environment, agent with what it stands on, character, clips of a dataset."""
    monkeypatch.chdir(tmp_path)
    request = read_request(Args.from_argv(["--arg_file", "args/amp_location_humanoid_args.txt", "--devices", "cpu"]))
    assert request.env.char_file == SHIPPED / "data/assets/humanoid/humanoid.xml"
    assert all(path.is_file() for path in list_motions(request.env.motion_file)[0])


def test_own_files_stand_on_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "data/agents/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(yaml.safe_dump({"base": "tuned.yaml", "steps_per_iter": 4}))
    files = [path for path, _ in layers("data/agents/mine.yaml")]
    assert files == [SHIPPED / "data/agents/tuned.yaml", Path("data/agents/mine.yaml")]
