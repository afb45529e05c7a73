"""Mistakes in environment files are told by key, file and nearest name, before physics starts."""

import re
from pathlib import Path

import pytest
import yaml

from mimickit.envs.env_builder import (
    ENVS,
    build_env,
    check_files,
    load_env_config,
    make_env_config,
    merge_engine_config,
)
from mimickit.util.failures import AssetMissingError, UserError
from tests.unit.env_case import ROOT, make_env, settings, write_clip
from tests.unit.fake_engine import FakeEngine, engine_config


def message(error=UserError, name="deepmimic", drop=(), **changes) -> str:
    data = {k: v for k, v in settings(name, **changes).items() if k not in drop}
    with pytest.raises(error) as caught:
        make_env_config(data, "some_env.yaml")
    return str(caught.value)


def build_message(tmp_path, name="deepmimic", error=UserError, **changes) -> str:
    if name != "dof_test" and "motion_file" not in changes:
        changes["motion_file"] = write_clip(tmp_path / "clip.pkl")
    with pytest.raises(error) as caught:
        make_env(name, num_envs=1, **changes)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "data/envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_are_valid(path):
    config = load_env_config(path)
    assert config.source == str(path)
    assert config.env_name in ENVS
    assert not Path(config.char_file).is_absolute()


def test_shipped_deepmimic_values():
    config = load_env_config(ROOT / "data/envs/deepmimic_humanoid_env.yaml")
    assert config.tar_obs_steps == (1, 2, 3) and config.future_steps == (1, 2, 3) and config.track_root
    weights = [config.reward_pose_w, config.reward_vel_w, config.reward_root_pose_w, config.reward_root_vel_w,
               config.reward_key_pos_w]
    scales = [config.reward_pose_scale, config.reward_vel_scale, config.reward_root_pose_scale,
              config.reward_root_vel_scale, config.reward_key_pos_scale]
    assert weights == [0.5, 0.1, 0.15, 0.1, 0.15] and scales == [0.25, 0.01, 5, 1, 10]
    assert len(config.init_pose) == 34 and len(config.joint_err_w) == 14 and not config.log_metrics


def test_unknown_environment():
    text = message(env_name="deepmimik")
    assert "some_env.yaml" in text and "deepmimik" in text and "did you mean 'deepmimic'" in text
    assert all(name in text for name in ENVS)
    assert "missing key 'env_name'" in message(drop=("env_name",))


def test_all_problems_of_a_file_at_once():
    text = message(key_bodys=["head"], camera_mode="follow", drop=("reward_vel_scale", "episode_length"))
    assert "unknown key 'key_bodys' (did you mean 'key_bodies'?)" in text
    assert "camera_mode" in text and "track" in text
    assert "missing key 'reward_vel_scale'" in text and "missing key 'episode_length'" in text


def test_pose_termination_has_no_meaning_when_viewing():
    assert "unknown key 'pose_termination'" in message(name="view_motion", pose_termination=True)


def test_targets_need_steps():
    assert "tar_obs_steps" in message(tar_obs_steps=[])
    assert "key 'tar_obs_steps.1' = -1: input should be greater than or equal to 0" in message(tar_obs_steps=[0, -1])


def test_init_pose_is_finite():
    assert "key 'init_pose.2' = nan" in message(init_pose=[0.0, 0.0, float("nan")])


def test_numbers_written_as_text_and_overrides(tmp_path):
    path = tmp_path / "env.yaml"
    path.write_text(yaml.safe_dump(settings("deepmimic", reward_vel_scale="1e-2")))
    config = load_env_config(path, {"episode_length": 5, "log_tracking_error": True})
    assert (config.reward_vel_scale, config.episode_length, config.log_metrics) == (0.01, 5.0, True)


def test_missing_files_in_one_message(tmp_path):
    there = write_clip(tmp_path / "there.pkl")
    dataset = tmp_path / "set.yaml"
    dataset.write_text(f"motions:\n- {{file: {there}, weight: 1}}\n- {{file: a.pkl, weight: 1}}\n"
                       "- {file: b.pkl, weight: 1}\n")
    config = make_env_config(settings("deepmimic", motion_file=dataset) | {"char_file": "no/char.xml"}, "e.yaml")
    with pytest.raises(AssetMissingError) as caught:
        check_files(config)
    text = str(caught.value)
    for words in ("e.yaml", "3 files", "no/char.xml", "a.pkl", "b.pkl"):
        assert words in text
    pages = re.findall(r"\S+\.md", text)
    assert len(pages) == 2 and all((ROOT / page).is_file() for page in pages), pages
    assert "there.pkl" not in text
    config = make_env_config(settings("deepmimic", motion_file="gone.yaml"), "e.yaml")
    with pytest.raises(AssetMissingError, match=r"gone\.yaml"):
        check_files(config)


def test_malformed_dataset(tmp_path):
    dataset = tmp_path / "set.yaml"
    dataset.write_text("motions: clip.pkl\n")
    with pytest.raises(UserError, match=r"set\.yaml"):
        check_files(make_env_config(settings("deepmimic", motion_file=dataset), "e.yaml"))


def test_wrong_body_names(tmp_path):
    text = build_message(tmp_path, key_bodies=["head", "rigth_hand"])
    assert "key 'key_bodies'" in text and "did you mean 'right_hand'" in text and "deepmimic_humanoid_env.yaml" in text
    assert "key 'contact_bodies'" in build_message(tmp_path, contact_bodies=["sole"])
    assert "more than once" in build_message(tmp_path, key_bodies=["head", "head"])


def test_wrong_lengths(tmp_path):
    text = build_message(tmp_path, joint_err_w=[1.0] * 13)
    assert "key 'joint_err_w' has 13 numbers" in text and "needs 14" in text
    text = build_message(tmp_path, init_pose=[0.0] * 33)
    assert "key 'init_pose' has 33 numbers" in text and "34" in text


def test_engine_block_of_the_environment(tmp_path):
    data = settings("deepmimic", engine={"sim_freq": 120, "ground_contact_height": 0.15})
    file = ROOT / "data/engines/newton_engine.yaml"
    merged, note = merge_engine_config(file, make_env_config(data, "e.yaml"))
    assert (merged.sim_freq, merged.ground_contact_height, merged.control_freq) == (120, 0.15, 30) and note is None
    assert merge_engine_config(file, make_env_config(data, "e.yaml"), {"sim_freq": 60})[0].sim_freq == 60
    bad = make_env_config(data | {"engine": {"sim_frequency": 120}}, "e.yaml")
    with pytest.raises(UserError, match=r"newton_engine\.yaml with e\.yaml, key 'engine': .*sim_frequency.*sim_freq"):
        merge_engine_config(file, bad)


def test_engine_block_completes_and_redirects_the_engine_file(tmp_path):
    file = tmp_path / "engine.yaml"
    file.write_text("engine_name: isaac_gym\ncontrol_mode: pos\n")
    whole = make_env_config(settings("deepmimic", engine={"engine_name": "newton", "env_spacing": 5}), "e.yaml")
    merged, _ = merge_engine_config(file, whole)
    assert (merged.env_spacing, merged.sim_freq, merged.control_freq) == (5.0, 60, 10)
    part = make_env_config(settings("deepmimic", engine={"engine_name": "newton"}), "e.yaml")
    with pytest.raises(UserError, match="missing key 'env_spacing'"):
        merge_engine_config(file, part)


def test_number_of_environments(tmp_path):
    config = make_env_config(settings("deepmimic", motion_file=write_clip(tmp_path / "clip.pkl")), "e.yaml")
    with pytest.raises(UserError, match="num_envs"):
        build_env(config, engine_config(), 0, "cpu", make_engine=FakeEngine)


def test_character_alone():
    config = make_env_config(settings("dof_test", env_name="char", episode_length=0.1), "e.yaml")
    env = build_env(config, engine_config(), 2, "cpu", make_engine=FakeEngine)
    ends = []
    for _ in range(3):
        env.step(env.action_low.expand(2, -1))
        ends.append(env.done.tolist())
    assert env.obs.shape == (2, 125) and ends == [[0, 0], [0, 0], [3, 3]] and (env.reward == 1).all()


def test_overrides_reach_into_mappings():
    path = ROOT / "data/envs/add_go2_env.yaml"
    file, changed = load_env_config(path).engine, load_env_config(path, {"engine": {"sim_freq": 480}}).engine
    assert file and changed == {**file, "sim_freq": 480} != file
