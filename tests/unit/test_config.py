from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator

from mimickit import config
from mimickit.config import Config, build, layers, load_layered, load_yaml, merge
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError

ROOT = Path(__file__).resolve().parents[2]


class Optimizer(Config):
    type: Literal["SGD", "Adam"]
    learning_rate: float


class Agent(Config):
    steps_per_iter: int
    optimizer: Optimizer
    action_std: float = 0.05


def test_numbers_written_as_text_are_converted(tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text("steps_per_iter: 32\noptimizer: {type: SGD, learning_rate: 1e-4}\n")
    agent = build(Agent, load_yaml(file), str(file))
    assert agent.optimizer.learning_rate == 1e-4 and agent.action_std == 0.05


def test_every_problem_is_reported_at_once_with_the_nearest_name():
    with pytest.raises(UserError) as error:
        optimizer = {"type": "Adm", "learning_rte": 1}
        build(Agent, {"step_per_iter": 1, "optimizer": optimizer, "action_std": "wide"}, "a.yaml")
    text = str(error.value)
    assert text.startswith("a.yaml: ")
    for part in ("unknown key 'step_per_iter' (did you mean 'steps_per_iter'?)", "missing key 'steps_per_iter'",
                 "key 'optimizer.type' = 'Adm'", "unknown key 'optimizer.learning_rte' (did you mean 'learning_rate'?)",
                 "key 'action_std' = 'wide'"):
        assert part in text, text


class Range(Config):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"Low end {self.low} exceeds high end {self.high}")
        return self


class Ranges(Config):
    speed: Range


def test_what_keys_say_together():
    data = {"low": 2, "high": 1}
    with pytest.raises(UserError) as error:
        build(Range, data, "a.yaml")
    assert str(error.value) == "a.yaml: Low end 2.0 exceeds high end 1.0"
    with pytest.raises(UserError) as error:
        build(Ranges, {"speed": data}, "a.yaml")
    assert str(error.value) == "a.yaml: key 'speed' = {'high': 1, 'low': 2}: Low end 2.0 exceeds high end 1.0"


def test_configurations_are_frozen():
    optimizer = build(Optimizer, {"type": "SGD", "learning_rate": 1}, "x")
    with pytest.raises(ValueError, match="frozen"):
        optimizer.learning_rate = 2.0


def test_missing_file_and_wrong_shape(tmp_path):
    with pytest.raises(AssetMissingError, match=r"nothing\.yaml"):
        load_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        load_yaml(tmp_path / "list.yaml")


def test_files_may_stand_on_others(tmp_path):
    for name, text in {"a": "x: 1\nm: {p: 1, q: 1}", "b": "base: a.yaml\nm: {q: 2}", "c": "y: 3\nx: 3",
                       "d": "base: [b.yaml, c.yaml]\ny: 4"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert load_layered(tmp_path / "a.yaml") == load_yaml(tmp_path / "a.yaml")
    assert load_layered(tmp_path / "b.yaml") == {"x": 1, "m": {"p": 1, "q": 2}}
    assert load_layered(tmp_path / "d.yaml") == {"x": 3, "m": {"p": 1, "q": 2}, "y": 4}
    assert [file.stem for file, _ in layers(tmp_path / "d.yaml")] == ["a", "b", "c", "d"]


def test_a_file_elsewhere_may_stand_on_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: data/envs/amp_humanoid_env.yaml\nepisode_length: 5")
    shipped = load_layered(locate("data/envs/amp_humanoid_env.yaml"))
    assert load_layered(tmp_path / "mine.yaml") == {**shipped, "episode_length": 5} != shipped


def leaves(data, above=""):
    for key, value in data.items():
        yield from leaves(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_gives_differences_only(path):
    own = load_yaml(path)
    bases = own.pop("base", [])
    before = {}
    for name in [bases] if isinstance(bases, str) else bases:
        before = merge(before, load_layered(path.parent / name))
    known = dict(leaves(before))
    assert [key for key, value in leaves(own) if known.get(key, ...) == value] == []


def test_every_layer_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("x: 1")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    read = []
    monkeypatch.setattr(config, "load_yaml", lambda path: read.append(path.stem) or load_yaml(path))
    assert load_layered(tmp_path / "b.yaml") == {"x": 1}
    assert read == ["b", "a"]


@pytest.mark.parametrize(("text", "kind", "message"), [
    ("base: other.yaml", UserError, r"other\.yaml: base this\.yaml stands on this file itself"),
    ("base: 3", UserError, r"this\.yaml: key 'base' = 3 must be the name of a file, or a list of names"),
    ("base: [gone.yaml]", AssetMissingError, r"not found: .*gone\.yaml"),
])
def test_wrong_bases(tmp_path, text, kind, message):
    (tmp_path / "this.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("base: this.yaml")
    with pytest.raises(kind, match=message):
        load_layered(tmp_path / "this.yaml")
