"""Agent files of MimicKit before February 2026."""

from pathlib import Path

import pytest
import torch
import yaml

from mimickit import run
from mimickit.config import load_layered
from mimickit.learning.config import OptimizerConfig, convert_agent_file, parse_agent_config, present_layout
from mimickit.learning.optim import FlatOptimizer
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

FILES = sorted((Path(__file__).resolve().parents[3] / "data/agents").glob("*_agent*.yaml"))
FILES = [path for path in FILES if "tuned" not in path.stem]


def older(data, **changes):
    """The same agent as its file looked then."""
    networks = [key.removesuffix("_optimizer") for key in data if key.endswith("_optimizer")]
    split = {f"{network}_{name}" for network in networks for name in ("optimizer", "epochs", "batch_size")}
    kept = {key: value for key, value in data.items() if key not in split}
    kept |= {"optimizer": {"type": "SGD", "learning_rate": "2e-4"}, "update_epochs": 5, "batch_size": 4,
             "critic_loss_weight": 1.0}
    if "disc" in networks:
        kept |= {"disc_batch_size": 2048, "disc_loss_weight": 5, "disc_weight_decay": "1e-4"}
    if "enc" in networks:
        kept |= {"enc_loss_weight": 0.5}
    return kept | changes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_older_files_of_every_method(path):
    present = load_layered(path)
    data, told = present_layout(older(present), "old.yaml")
    config, now = parse_agent_config(older(present), "old.yaml"), parse_agent_config(present)
    assert config == parse_agent_config(data) and type(config) is type(now)
    rates = {"actor": 2e-4, "critic": 2e-4, "disc": 1e-3, "enc": 1e-4}
    networks = [name.removesuffix("_optimizer") for name in type(now).model_fields if name.endswith("_optimizer")]
    for network in networks:
        optimizer = getattr(config, f"{network}_optimizer")
        assert (optimizer.type, optimizer.learning_rate) == ("SGD", rates[network])
        assert optimizer.weight_decay == (1e-4 if network == "disc" else 0.0)
        assert getattr(config, f"{network}_epochs") == 5 and getattr(config, f"{network}_batch_size") == 4
        assert f"{network}_optimizer {{type: SGD" in told and f"{network}_epochs" in told
    assert ("disc_batch_size 2048 counted demonstrations" in told) == ("disc" in networks)
    rest = {name for name in type(now).model_fields if name.split("_")[0] not in networks}
    assert all(getattr(config, name) == getattr(now, name) for name in rest)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_mapped_optimizers_step_as_the_summed_loss_did(kind):
    weight, given = 5.0, {"type": kind, "learning_rate": 0.01, "weight_decay": 0.1, "grad_clip": 3.0}
    if kind == "Adam":
        given["grad_clip"] = 0.0  # AdamW's steps do not depend on the size of the loss but for this bound
    present, _ = present_layout(older(load_layered(FILES[0]), optimizer=given, critic_loss_weight=weight), "old.yaml")
    parameters = []
    for config, factor in ((given, weight), (present["critic_optimizer"], 1.0)):
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = FlatOptimizer({"p": parameter}, OptimizerConfig(**config), Distributed.single())
        for step in range(3):
            optimizer.set_gradient(factor * (0.4 * parameter[0] + (0.2 + step) * parameter[1]))
            optimizer.step()
        parameters.append(parameter.detach().clone())
    assert not torch.equal(parameters[0], torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-6, atol=1e-6)


def test_present_keys_win_and_leftovers_are_told():
    present = load_layered(FILES[0])
    data, told = present_layout({**present, "critic_loss_weight": 1.0}, "x.yaml")
    assert data == present and told.endswith("critic_loss_weight not used")
    data, _ = present_layout(older(present, critic_epochs=2, disc_batch_size=2), "x.yaml")
    assert (data["actor_epochs"], data["critic_epochs"], data["disc_batch_size"]) == (5, 2, 2)
    assert present_layout(present, "x.yaml") == (present, None)


@pytest.mark.parametrize(("changes", "message"), [
    ({"critic_loss_weight": 0}, "x.yaml: critic_loss_weight = 0 must be above 0"),
    ({"disc_loss_weight": "much"}, "x.yaml: key 'disc_loss_weight' = 'much' must be a number"),
    ({"optimizer": "SGD"}, "x.yaml: key 'optimizer' must be a mapping"),
    ({"optimizer": {"type": "SGD"}}, "x.yaml: .*missing key 'actor_optimizer.learning_rate'"),
])
def test_mistakes_in_older_files(changes, message):
    with pytest.raises(UserError, match=message):
        parse_agent_config(older(load_layered(FILES[0]), **changes), "x.yaml")


def test_the_converter(tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "old_converted.yaml"
    old.write_text(yaml.safe_dump(older(load_layered(FILES[0])), sort_keys=False))
    assert run.main(["convert-agent", str(old)]) == 0
    assert "is read as: actor_optimizer {type: SGD" in capsys.readouterr().out
    assert parse_agent_config(load_layered(new)) == parse_agent_config(load_layered(old))
    assert present_layout(load_layered(new), "")[1] is None and new.read_text().startswith(f"# {old} has the layout")
    assert run.main(["convert-agent", str(old)]) == 2
    assert f"{new} exists" in capsys.readouterr().err
    with pytest.raises(UserError, match="has the present layout"):
        convert_agent_file(FILES[0], tmp_path / "again.yaml")
