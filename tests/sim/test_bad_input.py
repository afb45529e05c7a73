"""What a user can get wrong at the command line: one paragraph that says what and where, exit code 2, no traceback."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import yaml

from mimickit import run
from mimickit.commands import COMMANDS, help_of, help_text
from mimickit.config import load_layered
from mimickit.util.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
CASE = ["--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
        "--devices", "cpu", "--num_envs", "1", "--visualize", "false", "--max_iters", "1"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs the program with some flags before the case's own; returns the message that it refuses them with."""
    def message(*argv):
        monkeypatch.chdir(ROOT)
        assert run.main([*argv, *CASE, "--out_dir", str(tmp_path / "out")]) == 2
        return only_error(capfd.readouterr().err)

    return message


def only_error(text):
    assert "Traceback" not in text
    line, = (line for line in text.splitlines() if line.startswith("error: "))
    return line


def write_env(tmp_path, **changes):
    data = load_layered(ROOT / "data/envs/deepmimic_humanoid_env.yaml") | changes
    path = tmp_path / "env.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_unknown_yaml_key(tmp_path, refused):
    text = refused("--env_config", write_env(tmp_path, episode_lenght=3))
    assert "env.yaml: unknown key 'episode_lenght' (did you mean 'episode_length'?)" in text


def test_all_missing_files_in_one_message(tmp_path, refused):
    env = write_env(tmp_path, char_file="data/assets/humanoid/nobody.xml", motion_file="data/motions/nothing.pkl")
    text = refused("--env_config", env)
    assert "data/assets/humanoid/nobody.xml" in text and "data/motions/nothing.pkl" in text


def test_missing_configuration_files(refused):
    text = refused("--env_config", "data/envs/none_env.yaml", "--agent_config", "data/agents/none.yaml")
    assert "data/envs/none_env.yaml" in text and "data/agents/none.yaml" in text


def test_wrong_dof_count_in_a_clip(tmp_path, refused):
    clip = tmp_path / "short.pkl"
    clip.write_bytes(pickle.dumps({"loop_mode": 0, "fps": 30, "frames": [[0.0] * 33] * 3}))
    text = refused("--env_config", write_env(tmp_path, motion_file=str(clip)))
    assert "short.pkl" in text and "33" in text and "34" in text


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_malicious_pickle(tmp_path, refused):
    clip = tmp_path / "evil.pkl"
    clip.write_bytes(pickle.dumps({"loop_mode": 0, "fps": 30, "frames": Evil()}))
    text = refused("--env_config", write_env(tmp_path, motion_file=str(clip)))
    assert "evil.pkl" in text and "system" in text
    assert not (ROOT / "hacked").exists()


def test_unsupported_engine(tmp_path, refused):
    (tmp_path / "engine.yaml").write_text("engine_name: bullet\nenv_spacing: 5\n")
    text = refused("--engine_config", str(tmp_path / "engine.yaml"))
    assert "'bullet' is not supported" in text and "newton" in text and "--engine_config data/engines/" in text


@pytest.mark.parametrize("devices", [["cuda:7"], ["gpu"], ["cpu", "cuda:0"]])
def test_devices_that_are_not_there(refused, devices):
    text = refused("--devices", *devices)
    assert "this machine has cpu" in text or "one kind" in text


def test_wrong_override(refused):
    assert "--set fps=3: expected KEY=VALUE" in refused("--set", "fps=3")
    assert "unknown key 'step_per_iter'" in refused("--set", "agent.step_per_iter=3")


def test_no_off_screen_rendering(tmp_path, monkeypatch, refused):
    """A machine without EGL: its loader is missing when pyglet asks for it."""
    fake = tmp_path / "fake" / "pyglet"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('Library \"EGL\" not found.')\n")
    monkeypatch.syspath_prepend(fake.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyglet"]:
        monkeypatch.delitem(sys.modules, name)
    text = refused("--mode", "test", "--test_episodes", "1", "--video", "true")
    assert "libegl1 libgl1 libgl1-mesa-dri" in text and 'Library "EGL" not found' in text


def test_help_names_every_flag(capsys):
    """That of the commands together; the first page is short and says where the others are."""
    told = [help_of([name]) for name in COMMANDS]
    assert [flag for flag in OPTIONS if not any(f"  --{flag} " in text for text in (*told, help_text()))] == []
    assert run.main(["--help"]) == 0 and capsys.readouterr().out.strip() == help_text()
    assert len(help_text().splitlines()) < 40 and "mimickit train --help" in help_text()
    assert "--test_episodes" not in help_of(["train"]) and "--max_samples" not in help_of(["test"])
