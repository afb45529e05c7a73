"""``mimickit export`` and ``mimickit sim2sim``: from a run folder to a policy, a result and a film."""

import json
import shutil
import subprocess
import sys

import pytest

from mimickit import run
from mimickit.commands import read_args, run_command
from mimickit.request_reader import read_request
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import UserError
from mimickit.util.video import check_video
from tests.unit.deploy.export_case import make
from tests.unit.env_case import ROOT


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run whose policy learned nothing."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    folder.mkdir()
    make("PPO", folder, 1, ROOT / "data/motions/humanoid/humanoid_spinkick.pkl")
    shutil.rmtree(folder / "policy")
    request = read_request(read_args(["train", "deepmimic_humanoid_ppo", "--variant", "default", "--devices", "cpu",
                                      "--out_dir", str(folder)]))
    run.save_configuration(request, None, type("Dist", (), {"world_size": 1}))
    return folder


def program(*words):
    """Exit code and output of the program, run from elsewhere."""
    done = subprocess.run([sys.executable, "-m", "mimickit", *map(str, words)], cwd=words[1], capture_output=True,
                          text=True, timeout=300, env={**run.os.environ, "PYTHONPATH": str(SHIPPED)})
    return done.returncode, done.stdout + done.stderr


def test_from_a_run_to_a_measured_policy(trained):
    export = ["export", str(trained)]
    assert run_command(export) == 0
    policy = json.loads((trained / "policy/policy.json").read_text())
    assert policy["training"]["versions"]["torch"] and "commit" in policy["training"]
    with pytest.raises(UserError, match="policy holds an exported policy; --overwrite replaces it"):
        run_command(export)
    assert run_command([*export, "--overwrite"]) == 0

    code, text = program("sim2sim", trained / "policy", "--test_episodes", "3", "--devices", "cpu", "cpu", "--video",
                         "true", "--video_width", "320", "--video_height", "240", "--max_episode_steps", "40")
    assert code == 0, text
    result = json.loads((trained / "policy/sim2sim/result.json").read_text())
    assert result["mode"] == "sim2sim" and result["test_episodes"] == 3
    assert 1 <= result["test_episode_length"] < 40 and result["measures"]["survival"] == 0.0, "it knows nothing"
    assert result["statistics"]["length"]["episodes"] == 3
    assert {"body_pos_err", "root_pos_err", "torque", "action_rate", "jerk", "contact_jump"} <= set(result["measures"])
    film = result["video"]
    assert check_video(film["file"], film["frames"])["character_share"] > 0.001


def test_a_run_is_exported_on_the_way(trained):
    code, text = program("sim2sim", trained, "--test_episodes", "1", "--max_episode_steps", "2", "--devices", "cpu",
                         "--disturbed_episodes", "2")
    assert code == 0, text
    result = json.loads((trained / "sim2sim/result.json").read_text())
    assert result["measures"]["survival_disturbed"] == 1.0 and result["disturbances"] == {}
    assert result["statistics"]["survival_disturbed"]["episodes"] == 2
    assert (trained / "sim2sim/policy/policy.onnx").is_file() and (trained / "sim2sim/result.json").is_file()


@pytest.mark.parametrize(("words", "message"), [
    (("export", "nothing"), "mimickit export nothing: no such case, and no run folder"),
    (("sim2sim", "nothing.onnx"), "there is no policy.json; mimickit export RUN writes one"),
    (("sim2sim",), "mimickit sim2sim: name it first: mimickit sim2sim RUN_OR_POLICY"),
])
def test_mistakes(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_command(list(words))
