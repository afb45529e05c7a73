"""Training of motion priors: the command, its files, and what is refused."""

import json

import pytest
import torch
import yaml

from mimickit import run
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import load_motion
from mimickit.envs.env_builder import make_env_config
from mimickit.learning.config import parse_agent_config
from mimickit.learning.diffusion import load_prior_config
from mimickit.prior import check_prior, train_prior
from mimickit.util.checkpoint import read_model
from mimickit.util.failures import UserError
from tests.contract.toy_style_env import agent_config
from tests.unit.env_case import CHAR_FILE, settings, write_clip

SMALL = {"T": 5, "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 4, "batch_size": 8, "output_iter": 2,
         "num_samples_stat": 16, "num_iterations": 4, "model_ema_update_after": 1, "model_ema_steps": 1}


@pytest.fixture
def prior_file(tmp_path):
    """A prior's file of one made clip."""
    clip = write_clip(tmp_path / "clip.pkl")
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(settings("smp", motion_file=clip, num_disc_obs_steps=3)))
    data = {"base": "data/priors/base.yaml", "lr": 1e-3, **SMALL, "env_config": str(tmp_path / "env.yaml"),
            "motion_file": str(clip)}
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "prior.yaml"


def test_the_command_trains_once(prior_file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["prior", str(prior_file), "--out_dir", str(out), "--devices", "cpu"]
    assert run.main(words) == 0
    told = capsys.readouterr().out
    assert "prior of 1 clips: windows of 3 frames with 114 numbers" in told
    assert "iteration 4 of 4 | loss" in told and "left" in told
    assert [line.split()[0] for line in (out / "log.txt").read_text().splitlines()] == ["Iteration", "2", "4"]
    assert not (out / "training.pt").exists()
    about = json.loads((out / "prior.json").read_text())
    assert about["finished"] and about["iteration"] == 4
    clip = load_motion(out / "samples" / "motion_015.pkl", load_character_model(CHAR_FILE))
    assert clip.frames.shape == (3, 34) and clip.fps == 30
    written = load_prior_config(out / "diffusion_config.yaml")
    assert written.env_config == out / "env_config.yaml" and written.T == 5

    before = (out / "model.pt").stat().st_mtime_ns
    assert run.main(words) == 0 and "is the prior of these clips and settings already" in capsys.readouterr().out
    assert run.main([*words, "--set", "lr=2e-3"]) == 2
    assert "holds a prior of other clips or settings: --overwrite true" in capsys.readouterr().err
    assert (out / "model.pt").stat().st_mtime_ns == before
    write_clip(tmp_path / "clip.pkl", speed=0.7)
    assert run.main(words) == 2
    assert run.main([*words, "--overwrite", "true"]) == 0
    assert (out / "model.pt").stat().st_mtime_ns > before


def test_an_interrupted_training_continues_exactly(prior_file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = load_prior_config(prior_file)
    assert train_prior(config, whole, tell=lambda text: None)

    class Interrupted(Exception):
        pass

    def interrupt(text):
        if text.startswith("iteration 2"):
            raise Interrupted

    with pytest.raises(Interrupted):
        train_prior(config, parts, tell=interrupt)
    assert not json.loads((parts / "prior.json").read_text())["finished"]
    torch.manual_seed(99)
    told = []
    train_prior(config, parts, tell=told.append)
    assert "continues at iteration 2" in told
    expected, found = read_model(whole / "model.pt"), read_model(parts / "model.pt")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert (whole / "log.txt").read_text() == (parts / "log.txt").read_text()


@pytest.mark.parametrize(("words", "message"), [
    (["prior"], "usage: mimickit prior CASE_OR_FILE"),
    (["prior", "amp_humanoid"], "this case has no motion prior"),
    (["prior", "smp_humanoyd"], "no such case (did you mean 'smp_humanoid'?)"),
    (["prior", "nowhere.yaml"], "nowhere.yaml"),
    (["prior", "smp_humanoid", "--num_envs", "3"], "--num_envs is not for priors; allowed are --out_dir"),
    (["prior", "smp_humanoid", "--devices", "cpu", "cpu"], "a prior is trained on one"),
    (["prior", "smp_humanoid", "--set", "num_layer=3"], "unknown key 'num_layer' (did you mean 'num_layers'?)"),
])
def test_mistakes(words, message, capsys):
    assert run.main(words) == 2
    assert message in capsys.readouterr().err


def test_without_a_prior_there_is_no_training_but_its_configuration_can_be_shown(tmp_path, capsys):
    missing = ["--set", f"agent.smp_prior_model={tmp_path}/none.pt"]
    assert run.main(["show", "smp_humanoid", *missing]) == 0
    assert "smp_prior_model" in capsys.readouterr().out
    out = tmp_path / "out"
    assert run.main(["train", "smp_humanoid", "--devices", "cpu", "--out_dir", str(out), *missing]) == 2
    text = f"none.pt: no such prior yet; mimickit prior data/priors/humanoid_spinkick.yaml --out_dir {tmp_path} trains"
    assert text in capsys.readouterr().err
    assert not out.exists()


def agent(prior_file, **changes):
    return parse_agent_config(agent_config(
        "SMP", smp_prior_cfg=str(prior_file), smp_prior_model=str(prior_file.with_name("model.pt")), **changes))


def env(prior_file, **changes):
    data = yaml.safe_load(prior_file.with_name("env.yaml").read_text()) | changes
    return make_env_config(data, "my_env.yaml")


def test_agent_prior_and_environment_must_fit(prior_file):
    check_prior(agent(prior_file), env(prior_file), 30)
    for changes, hz, message in [
        ({"num_disc_obs_steps": 4}, 30, r"num_disc_obs_steps 4 \(the prior's: 3\)"),
        ({"disc_dof_vel_obs": True, "global_obs": False}, 30, r"global_obs False .*disc_dof_vel_obs True"),
        ({"key_bodies": ["right_hand", "head", "left_hand", "right_foot", "left_foot"]}, 30, "key_bodies"),
        ({}, 60, r"control_freq 60 \(the prior's: 30\)"),
    ]:
        with pytest.raises(UserError, match=message):
            check_prior(agent(prior_file), env(prior_file, **changes), hz)
    with pytest.raises(UserError, match="enable_gsi"):
        check_prior(agent(prior_file, enable_gsi=True), env(prior_file, pose_termination=True), 30)
