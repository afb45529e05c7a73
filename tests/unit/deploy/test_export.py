"""The exported network acts as the agent does; policy.json says what the files hold."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from mimickit.deploy.export import Source, export_policy
from mimickit.deploy.policy_file import read_policy
from mimickit.envs.observations import char_observation
from mimickit.util.failures import AssetMissingError, UserError
from tests.unit.deploy.export_case import CASES, make
from tests.unit.fake_engine import engine_config

OBSERVATIONS, AT_ONCE = 1000, 20


def session(path):
    """A network on one thread: others of a pool would spin on a busy machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


@pytest.mark.parametrize("name", CASES)
def test_the_network_acts_as_the_agent(name, tmp_path):
    """To 1e-5 (rad) on 1000 observations, many of them beyond the normalizer's clip, in one batch and one by one."""
    env, agent, policy = make(name, tmp_path, AT_ONCE)
    network = session(tmp_path / "policy" / policy.network)
    assert [x.name for x in network.get_inputs()] == [x.name for x in policy.inputs]
    assert [x.name for x in network.get_outputs()] == ["action"]
    generator = torch.Generator().manual_seed(1)
    clamped = 0
    for _ in range(OBSERVATIONS // AT_ONCE):
        env.obs.copy_(3.0 * torch.randn(env.obs.shape, generator=generator))
        agent.act_test()
        inputs = {"obs": env.obs.numpy()}
        if name == "ASE":
            inputs["latent"] = agent._latents.values.numpy()
        expected = torch.clamp(agent.action, env.action_low, env.action_high).numpy()
        clamped += int((agent.action.numpy() != expected).sum())
        found = network.run(["action"], inputs)[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        alone = network.run(["action"], {key: value[:1] for key, value in inputs.items()})[0]
        np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=1e-5)
    assert clamped > 0, "the case should reach the action box"
    assert np.ptp(found, axis=0).min() > 1e-3, "the case's actions should depend on the observation"


def test_a_latent_makes_a_difference(tmp_path):
    env, _, policy = make("ASE", tmp_path)
    network = session(tmp_path / "policy" / policy.network)
    obs, latent = env.obs[:1].numpy(), np.eye(policy.latent.size, dtype=np.float32)
    one, other = (network.run(["action"], {"obs": obs, "latent": latent[i:i + 1]})[0] for i in (0, 1))
    assert np.abs(one - other).max() > 1e-3


def test_the_schema_tells_what_the_network_takes(tmp_path):
    env, _, policy = make("steering", tmp_path)
    read, folder = read_policy(tmp_path / "policy" / "policy.onnx")
    assert read == policy and folder == tmp_path / "policy"
    assert sum(term.size for term in read.observation) == read.inputs[0].size == env.obs.shape[1]
    first = char_observation(env.scene.char_state(), env.scene.key_ids, False, True).shape[1]
    assert sum(term.size for term in read.observation if not term.name.startswith("goal")) == first
    assert [term.name for term in read.observation][-3:] == ["goal_direction", "goal_speed", "goal_face"]
    model = env.character.model
    assert [dof.name for dof in read.dofs] == list(model.dof_names)
    elbow = next(dof for dof in read.dofs if dof.name == "right_elbow")
    assert (elbow.kp, elbow.kd, elbow.torque_limit, elbow.low, elbow.high) == (300.0, 30.0, 70.0, 0.0, 2.7925)
    assert next(dof for dof in read.dofs if dof.name == "right_shoulder_x").default == pytest.approx(1.5708)
    assert elbow.action_low == pytest.approx(2.7925 / 2 - 1.4 * 2.7925 / 2)
    assert (read.control_rate, read.physics_rate, read.substeps) == (30, 240, 8)
    assert read.training.commit == "0" * 40 and read.training.agent == "AMP"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a policy, what it was made from, and its agent's settings."""
    folder = tmp_path_factory.mktemp("exported")
    env, agent, _ = make("PPO", folder)
    return folder, env.scene.config, agent.config


def test_shipped_files_are_named_as_in_a_checkout(exported):
    folder, _, _ = exported
    env = json.loads((folder / "policy/policy.json").read_text())["training"]["configuration"]["env"]
    assert env["char_file"] == "data/assets/humanoid/humanoid.xml"
    assert env["motion_file"] == str(folder / "clip.pkl")


@pytest.mark.parametrize(("env_changes", "engine_changes", "message"), [
    ({"enable_tar_obs": False}, {}, r"model.pt does not fit this agent and environment: .*_obs_norm._mean"),
    ({}, {"control_mode": "torque"}, r"made for control_mode 'pos' without spherical_limits; this one has 'torque'"),
])
def test_what_does_not_fit_is_refused(exported, tmp_path, env_changes, engine_changes, message):
    folder, env, agent = exported
    source = Source(env.model_copy(update=env_changes), engine_config(**engine_changes), agent, folder / "model.pt")
    with pytest.raises(UserError, match=message):
        export_policy(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data.update(format=2), "has format 2; this version reads format 1"),
    (lambda data: data["observation"][0].update(frame="moon"), r"observation\.0\.frame"),
    (lambda data: data.pop("dofs"), "dofs"),
])
def test_a_damaged_file_is_told(exported, tmp_path, change, message):
    file = shutil.copytree(exported[0] / "policy", tmp_path / "policy") / "policy.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        read_policy(file)


def test_missing_files_are_told(exported, tmp_path):
    with pytest.raises(AssetMissingError, match=r"mimickit export RUN writes one"):
        read_policy(tmp_path)
    folder = shutil.copytree(exported[0] / "policy", tmp_path / "policy")
    (folder / "policy.xml").unlink()
    with pytest.raises(AssetMissingError, match=r"policy.xml"):
        read_policy(folder)
