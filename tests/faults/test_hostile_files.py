"""Files that want to do more than be read: each is refused with a message that names it, and nothing in it runs.

Clips: test_hostile_clips.py; bounds and nonsense in texts: test_hostile_texts.py, both beside this file. Document
types: tests/unit/anim/test_mjcf.py. ``--root-out``: tests/longcycle/test_runs.py.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion_lib import list_motions
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.checkpoint import find_latest, load_checkpoint, load_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.manifest import write_manifest
from tests.saving import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ALONE = Distributed.single()
CASE = ["--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--engine_config", "data/engines/newton_engine.yaml"]


class Evil:
    """Makes a file when a careless reader unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("flag", "file"), [
    ("env_config", "data/envs/deepmimic_humanoid_env.yaml"),
    ("agent_config", "data/agents/deepmimic_humanoid_ppo_agent.yaml"),
    ("engine_config", "data/engines/newton_engine.yaml"),
])
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system",
                                 "!!python/object/new:pathlib.Path.touch [{}]"])
def test_python_in_configuration_files(project, tmp_path, flag, file, tag):
    target = tmp_path / "was_here"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"{(ROOT / file).read_text()}\nhostile: {tag.format(target)}\n")
    with pytest.raises(UserError, match=r"evil\.yaml is not readable as YAML.*python/"):
        read_request(Args.from_argv([f"--{flag}", str(evil), *CASE]))
    assert not target.exists()


def test_python_in_an_override(project, tmp_path):
    target = tmp_path / "was_here"
    value = f"env.episode_length=!!python/object/apply:os.system ['touch {target}']"
    with pytest.raises(UserError, match="not readable as YAML"):
        read_request(Args.from_argv(["--set", value, *CASE]))
    assert not target.exists()


@pytest.mark.parametrize(("text", "message"), [
    ("motions: !!python/object/apply:os.system ['touch was_here']", "not readable as YAML"),
    ("motions: [{file: a.pkl, weight: .nan}]", "motions.0.weight"),
    ("motions: [{file: a.pkl, weight: .inf}]", "motions.0.weight"),
    ("motions: [{file: a.pkl, weight: -1}]", "motions.0.weight"),
    ("motions: [{file: [a.pkl]}]", "motions.0.file"),
    ("motions: [{file: a.pkl, run: 'touch was_here'}]", "unknown key 'motions.0.run'"),
    ("motions: []", "motions"),
    ("- a.pkl", "must hold a mapping"),
])
def test_hostile_datasets(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        list_motions("set.yaml")
    assert "set.yaml" in str(caught.value) and message in str(caught.value)
    assert os.listdir(tmp_path) == ["set.yaml"]


def test_code_in_a_model_file(tmp_path):
    target = tmp_path / "was_here"
    torch.save({"a": Evil(target)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt is not a readable model file"):
        load_model(tmp_path / "model.pt", {"a": torch.zeros(1)})
    assert not target.exists()


@pytest.mark.parametrize("name", ["shared.pt", "rank_0.pt"])
def test_code_in_a_checkpoint(tmp_path, name):
    """With a manifest that vouches for it: whoever can write one file can write the other."""
    target = tmp_path / "was_here"
    path = write_checkpoint(tmp_path, 1, {"agent": {}}, {"env": {}})
    torch.save({"agent": Evil(target)}, path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / name).read_bytes()
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(path, manifest, manifest["files"])
    assert find_latest(tmp_path) == path
    with pytest.raises(UserError, match=rf"{name} is not a readable checkpoint file"):
        load_checkpoint(path, ALONE)
    assert not target.exists()


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": 3}', '{"files": {}}', '{"files": ["shared.pt"]}'])
def test_a_manifest_that_is_none(tmp_path, manifest):
    path = write_checkpoint(tmp_path, 1, {"agent": {}}, {"env": {}})
    (path / "manifest.json").write_text(manifest)
    assert find_latest(tmp_path) is None
    with pytest.raises(UserError, match="not a checkpoint folder"):
        load_checkpoint(path, ALONE)


ROBOT = """<mujoco model="robot"><compiler angle="degree" {compiler}/>{include}
<asset>{asset}</asset><worldbody><body name="base"><freejoint/><geom type="{kind}" {geom} density="500"/>
<body name="arm" pos="0 0 1"><joint name="arm" axis="0 1 0" range="-60 60"/><geom type="sphere" size="0.1"/></body>
</body></worldbody></mujoco>"""
BLOCK = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def robot(folder, compiler="", include="", asset="", kind="sphere", geom='size="0.1"'):
    folder.mkdir(exist_ok=True)
    path = folder / "robot.xml"
    path.write_text(ROBOT.format(compiler=compiler, include=include, asset=asset, kind=kind, geom=geom))
    return path


def test_includes_from_elsewhere(tmp_path):
    outside = tmp_path / "outside.xml"
    outside.write_text("<mujoco/>")
    inside = tmp_path / "robot"
    inside.mkdir()
    (inside / "link.xml").symlink_to(outside)
    for name in (str(outside), "../outside.xml", "link.xml", "meshes/../../outside.xml"):
        with pytest.raises(UserError, match=r"robot\.xml: include of .* must lie in"):
            load_character_model(robot(inside, include=f'<include file="{name}"/>'))


@pytest.mark.sim
@pytest.mark.parametrize(("compiler", "file"), [
    ("", "{outside}"), ("", "../block.obj"), ('meshdir="meshes"', "../../block.obj"), ('meshdir=".."', "block.obj"),
    ('meshdir="{folder}"', "block.obj"), ("", "link.obj")])
def test_meshes_from_elsewhere(tmp_path, compiler, file):
    from mimickit.engines.engine import WorldSpec
    from mimickit.engines.engine_config import EngineConfig
    from mimickit.engines.newton_model import build_world

    outside, inside = tmp_path / "block.obj", tmp_path / "robot"
    outside.write_text(BLOCK)
    inside.mkdir()
    (inside / "link.obj").symlink_to(outside)
    names = {"outside": outside, "folder": tmp_path}
    path = robot(inside, compiler=compiler.format(**names), kind="mesh", geom='mesh="m"',
                 asset=f'<mesh name="m" file="{file.format(**names)}"/>')
    with pytest.raises(UserError, match=r"robot\.xml uses the file .*; meshes and textures must lie in"):
        build_world(WorldSpec(path), EngineConfig(engine_name="newton", env_spacing=1.0))


def test_the_written_configuration_holds_no_tags(project, tmp_path):
    """What a run writes about itself can be read with the safe loader again."""
    from mimickit.run import save_configuration

    request = read_request(Args.from_argv(["--out_dir", str(tmp_path / "out"), *CASE]))
    save_configuration(request, None, ALONE)
    assert yaml.safe_load((tmp_path / "out/run_config.yaml").read_text())["world_size"] == 1
