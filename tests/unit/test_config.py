from typing import Literal

import pytest

from mimickit.config import Config, build, load_yaml
from mimickit.util.failures import AssetMissingError, UserError


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


def test_configurations_are_frozen():
    optimizer = build(Optimizer, {"type": "SGD", "learning_rate": 1}, "x")
    with pytest.raises(ValueError, match="frozen"):
        optimizer.learning_rate = 2.0


def test_unsafe_yaml_tag_is_refused(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("a: !!python/object/apply:os.system ['touch hacked']\n")
    with pytest.raises(UserError, match=r"evil\.yaml is not readable as YAML"):
        load_yaml(file)


def test_missing_file_and_wrong_shape(tmp_path):
    with pytest.raises(AssetMissingError, match=r"nothing\.yaml"):
        load_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        load_yaml(tmp_path / "list.yaml")
