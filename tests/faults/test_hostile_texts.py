"""Configuration, args files and models that want to do harm, or are nonsense: one message each, in no time.

The seeds are what a coverage-guided fuzzer started from and what it, or a person, found.
"""

import os
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml

from mimickit import config
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion_lib import Dataset, list_motions
from mimickit.config import build, load_layered, load_yaml, parse_yaml
from mimickit.envs.env_builder import make_env_config
from mimickit.request_reader import read_overrides
from mimickit.util import logging, reading
from mimickit.util.args import read_arg_file
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.mjcf_file import read_mjcf
from tools.check_motion import main as check_motion

ROOT = Path(__file__).resolve().parents[2]
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), [
    (LAUGHS, "values; at most 500,000 are read"),
    (MERGES, "values; at most 500,000 are read"),
    ("[" * 20_000, "51 levels of lists and mappings; at most 50 are read"),
    ("\n".join(" " * i + "a:" for i in range(200)), "51 levels of lists and mappings; at most 50 are read"),
    ("a: &a [*a]", "alias *a stands within what it names"),
    ("a: &a {b: {<<: *a}}", "alias *a stands within what it names"),
    ("a: " + "9" * 5000, "a number of 5,000 characters; at most 100 are read"),
    ("a: 0x" + "f" * 5000, "a number of 5,002 characters; at most 100 are read"),
    ("a: !!timestamp 2001-13-45", "could not determine a constructor"),
    ("a: !!int ''", "is not readable as YAML"),
    ("a: !!float x", "is not readable as YAML"),
    ("a: !!bool x", "'x' is no truth value"),
    ("a: !!set {x}", "could not determine a constructor"),
    ("a: !!binary eA==", "could not determine a constructor"),
    ("[a]: x", "the key that is a list or a mapping is not text"),
    ("2: x", "the key 2 is not text"),
    ("a: 1\n2305843009213693951: x\n[b]: x", "the key 2305843009213693951 is not text"),
    ('a: "\\0"', "text with a NUL or half of a character"),
    ('a: "\\ud800"', "text with a NUL or half of a character"),
    ("a: \x00", "is not readable as YAML"),
    (b"a: \xff", "is not readable as YAML"),
])
def test_harmful_yaml(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and len(str(caught.value)) < 2000


def test_no_dictionary_is_made_of_numbers(monkeypatch):
    """A dictionary of n numbers that all have the same hash takes n^2 steps: 4 MiB of them took half an hour."""
    made, construct = [], yaml.SafeLoader.construct_mapping
    monkeypatch.setattr(yaml.SafeLoader, "construct_mapping", lambda self, node, deep=False: made.append(node) or
                        construct(self, node, deep))
    with pytest.raises(UserError, match="is not text"):
        parse_yaml(f"{{{', '.join(f'{i * (2**61 - 1)}: x' for i in range(1, 9))}}}", "x")
    assert not made


@pytest.mark.parametrize("date", ["2001-13-45", "2001-01-01", "2001-01-01 25:61:61"])
def test_dates_are_text(date):
    assert parse_yaml(f"a: {date}", "x") == {"a": date}
    with pytest.raises(UserError, match=rf"key 'motions\.0\.weight' = '{date}'"):
        build(Dataset, parse_yaml(f"motions: [{{file: a.pkl, weight: {date}}}]", "x"), "x")


def test_aliases_and_merge_keys_are_still_read():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\nd: 1_000\ne: 1:30\nf: 0x1f\ng: .5\nh: no\ni: ~"
    assert parse_yaml(text, "x") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [{"x": 1, "y": 2}] * 2,
                                     "d": 1000, "e": 90, "f": 31, "g": 0.5, "h": False, "i": None}


def test_nine_files_of_nine(tmp_path, monkeypatch):
    """Each stands on all nine of the next level, nine times over: 9^8 loads."""
    count = []
    monkeypatch.setattr(config, "load_yaml", lambda path: count.append(path) or load_yaml(path))
    for level in range(9):
        below = [f"{level + 1}.yaml"] * 9 if level < 8 else []
        (tmp_path / f"{level}.yaml").write_text(f"base: [{', '.join(below)}]\n")
    with pytest.raises(UserError, match=r"0\.yaml: 65 files that it stands on; at most 64 are read"):
        load_layered(tmp_path / "0.yaml")
    assert len(count) <= 64


def test_a_long_chain_of_bases(tmp_path):
    for level in range(300):
        (tmp_path / f"{level}.yaml").write_text(f"base: {level + 1}.yaml\n")
    with pytest.raises(UserError, match="at most 64 are read"):
        load_layered(tmp_path / "0.yaml")


def test_names_of_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kind in (("x" * 5000, UserError), ("y/" * 3000, UserError), ("gone.pkl", AssetMissingError)):
        Path("base.yaml").write_text(f"base: {name}\n")
        with pytest.raises(kind):
            load_layered("base.yaml")
        Path("set.yaml").write_text(f"motions: [{{file: {name}}}]\n")
        assert len(list_motions("set.yaml")[0]) == 1
    assert read_overrides(["env.a=2001-13-45"])["env"] == {"a": "2001-13-45"}
    for value in ("[" * 2000, "9" * 5000, '"\\0"'):
        with pytest.raises(UserError, match="--set env"):
            read_overrides([f"env.a={value}"])


@pytest.mark.parametrize("read", [load_yaml, read_mjcf, read_arg_file])
def test_pipes_devices_and_large_files(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "zero.xml").symlink_to("/dev/zero")
    with (tmp_path / "large.xml").open("wb") as file:
        file.truncate(2**30)
    for name, message in (("pipe.xml", "a pipe or a device"), ("zero.xml", "a pipe or a device"),
                          ("large.xml", "1,073,741,824 bytes; at most")):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


def test_args_files_with_a_nul(tmp_path):
    (tmp_path / "args.txt").write_bytes(b"--out_dir a\0b\n")
    with pytest.raises(UserError, match=r"args\.txt: not a text file"):
        read_arg_file(tmp_path / "args.txt")


# --- MJCF -------------------------------------------------------------------------------------------------------------

ARM = """<mujoco model="robot"><compiler angle="radian"/>{top}<worldbody><body name="base"><freejoint/>
<geom size="0.1"/>
<body name="arm" pos="0 0 1"><joint name="arm" axis="0 1 0" range="-1 1"/>{arm}</body></body></worldbody></mujoco>"""


def robot(folder, arm='<geom size="0.1"/>', top=""):
    path = folder / "robot.xml"
    path.write_text(ARM.format(arm=arm, top=top))
    return path


@pytest.mark.parametrize(("text", "message"), [
    ("<mujoco>" + "<a>" * 3000 + "</a>" * 3000 + "</mujoco>", "101 elements within each other; at most 100 are read"),
    ("<mujoco>" + "<default>" * 3000 + "</default>" * 3000 + "</mujoco>", "elements within each other"),
    ("<mujoco>" + "<a/>" * 100_000 + "</mujoco>", "100,001 elements; at most 100,000 are read"),
    ("<mujoco><worldbody>" + "<body/>" * 1001 + "</worldbody></mujoco>", "1,001 bodies; at most 1,000 are read"),
    ('<?xml version="1.0" encoding="nonsense"?><mujoco/>', "exactly one body"),
    ("<mujoco>&#0;</mujoco>", "not valid XML"),
    (f'<mujoco><include file="{"x" * 5000}"/></mujoco>', "robot.xml: include of 'xxx"),
])
def test_harmful_models(tmp_path, text, message):
    path = tmp_path / "robot.xml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_character_model(path)
    assert "robot.xml" in str(caught.value) and message in str(caught.value) and len(str(caught.value)) < 2000


def test_includes_without_end(tmp_path):
    for level in range(150):
        (tmp_path / f"{level}.xml").write_text(f'<mujoco><include file="{level + 1}.xml"/></mujoco>')
    with pytest.raises(UserError, match="101 files with all that is included; at most 100 are read"):
        read_mjcf(tmp_path / "0.xml")
    for level in range(50):  # each adds four levels
        inside = f'<a><a><a><a><include file="{level + 1}.xml"/></a></a></a></a>'
        (tmp_path / f"{level}.xml").write_text(f"<mujoco>{inside}</mujoco>")
    with pytest.raises(UserError, match="elements within each other; at most 100 are read"):
        read_mjcf(tmp_path / "0.xml")


@pytest.mark.parametrize("name", ["pipe.xml", "part.xml/x", "zero.xml"])
def test_included_pipes(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.xml")
    os.mknod(tmp_path / "zero.xml", 0o600) if name != "zero.xml" else (tmp_path / "zero.xml").mkdir()
    (tmp_path / "part.xml").write_text("<mujoco/>")
    with pytest.raises(UserError):
        load_character_model(robot(tmp_path, top=f'<include file="{name}"/>'))


INERTIAL = '<inertial pos="0 0 0" mass="0.2" {}/>'


def test_an_inertia_that_no_body_can_have(tmp_path, capsys):
    """The head of MimicKit's Pi Plus: a point is missing."""
    logging.warn_once.cache_clear()
    path = robot(tmp_path, INERTIAL.format('diaginertia="0.0001 0.0001 0001"'))
    for _ in range(2):
        root = read_mjcf(path)
    assert root.find(".//inertial").get("diaginertia") == "0.0001 0.0001 0.0002"
    assert capsys.readouterr().err == (
        f"warning: {path}: the inertial of body 'arm' has diaginertia=\"0.0001 0.0001 0001\": a moment exceeds the sum "
        "of the two others; used is 0.0001 0.0001 0.0002\n")
    load_character_model(path)


@pytest.mark.parametrize(("given", "used"), [
    ("3 1 1", [2, 1, 1]), ("1 5 2", [1, 3, 2]), ("1 1 2", None), ("0 0 0", None), ("0.3 0.1 0.2000000001", None)])
def test_moments_are_reduced_to_the_sum_of_the_others(tmp_path, given, used):
    root = read_mjcf(robot(tmp_path, INERTIAL.format(f'diaginertia="{given}"')))
    found = root.find(".//inertial").get("diaginertia")
    assert found == given if used is None else [float(n) for n in found.split()] == used


def test_a_full_inertia(tmp_path):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for moments, expected in (((1, 2, 9), (1, 2, 3)), ((2, 2, 3), (2, 2, 3))):
        tensor = turn @ np.diag(moments) @ turn.T
        six = tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        text = " ".join(map(repr, map(float, six)))
        root = read_mjcf(robot(tmp_path, INERTIAL.format(f'fullinertia="{text}"')))
        xx, yy, zz, xy, xz, yz = map(float, root.find(".//inertial").get("fullinertia").split())
        np.testing.assert_allclose(np.linalg.eigvalsh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]), expected, atol=1e-6)


@pytest.mark.parametrize(("attribute", "message"), [
    ('diaginertia="1 1"', "needed are 3 finite numbers"), ('diaginertia="1 1 x"', "needed are 3 finite numbers"),
    ('diaginertia="1 1 inf"', "needed are 3 finite numbers"), ('diaginertia="1 1 -1"', "must not be negative"),
    ('fullinertia="1 1 1"', "needed are 6 finite numbers"), ('fullinertia="1 1 1 5 0 0"', "must not be negative")])
def test_inertias_that_are_none(tmp_path, attribute, message):
    with pytest.raises(UserError, match=rf"robot\.xml: the inertial of body 'arm' has .*{message}"):
        load_character_model(robot(tmp_path, INERTIAL.format(attribute)))


@pytest.mark.sim
def test_the_engine_takes_a_repaired_inertia(tmp_path):
    from mimickit.engines.engine import WorldSpec
    from mimickit.engines.engine_config import EngineConfig
    from mimickit.engines.newton_model import build_world

    path = robot(tmp_path, INERTIAL.format('diaginertia="0.0001 0.0001 0001"'))
    builder, _ = build_world(WorldSpec(path), EngineConfig(engine_name="newton", env_spacing=1.0))
    np.testing.assert_allclose(np.diag(np.array(builder.body_inertia[1]).reshape(3, 3)), (1e-4, 1e-4, 2e-4), rtol=1e-6)


def test_check_motion_takes_a_repaired_inertia_and_names_a_missing_mesh(tmp_path, capsys):
    clip = ROOT / "data/motions/go2/go2_walk.pkl"
    tree = ElementTree.parse(ROOT / "data/assets/go2/go2.xml")
    body = next(body for body in tree.getroot().iter("body") if body.find("inertial") is not None)
    body.find("inertial").set("diaginertia", "0.0001 0.0001 0001")
    tree.write(tmp_path / "go2.xml")
    assert check_motion([str(clip), "--char", str(tmp_path / "go2.xml")]) == 0
    assert f"the inertial of body '{body.get('name')}'" in capsys.readouterr().err
    asset = ElementTree.SubElement(tree.getroot(), "asset")
    ElementTree.SubElement(asset, "mesh", name="trunk", file="trunk.stl")
    tree.getroot().find("compiler").set("meshdir", "meshes")
    tree.write(tmp_path / "go2.xml")
    assert check_motion([str(clip), "--char", str(tmp_path / "go2.xml")]) == 2
    assert f"uses files that do not exist: {tmp_path / 'meshes/trunk.stl'}" in capsys.readouterr().err


def test_usd_is_refused_and_says_why(tmp_path):
    (tmp_path / "robot.usd").write_text("<robot/>")
    with pytest.raises(UserError, match=r"robot\.usd: only MJCF \(\.xml\) and URDF files are supported.*Isaac Lab"):
        load_character_model(tmp_path / "robot.usd")


# --- the fuzzer's short sisters ---------------------------------------------------------------------------------------


def mutated(draw, seeds):
    data, other = bytearray(draw.choice(seeds)), draw.choice(seeds)
    for _ in range(draw.randint(1, 5)):
        place, start = draw.randrange(len(data) + 1), draw.randrange(len(other))
        kind = draw.randrange(3)
        if kind == 0:
            data[place:place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[place:place + draw.randint(1, 20)]
        else:
            data[place:place] = other[start:start + draw.randint(1, 60)]
    return bytes(data)


def test_mutations_of_yaml():
    seeds = [(ROOT / file).read_bytes() for file in (
        "data/envs/vault_g1_env.yaml", "data/engines/newton_engine.yaml", "data/datasets/dataset_go2_locomotion.yaml")]
    seeds += [b"a: &a {b: 1}\nc: {<<: *a}", b"a: [1, 2.5, .inf, 0x1f, 1:30, ~, yes, 2001-01-01, '\\x00']",
              b"? !!int x\n: !!float y", b"a: |\n  b\n  c\n--- d\n... \n%TAG ! x"]
    draw = random.Random(3)
    for _ in range(60):
        try:
            data = parse_yaml(mutated(draw, seeds), "x")
            if isinstance(data, dict):
                make_env_config(config.merge(data, data), "x")
        except UserError as error:
            assert len(str(error)) < 20_000


def test_mutations_of_models(tmp_path):
    seeds = [(ROOT / "data/assets/go2/go2.xml").read_bytes()]
    seeds += [ARM.format(arm=arm, top="").encode() for arm in (
        '<geom size="0.1"/>', INERTIAL.format('diaginertia="1 1 9"'), INERTIAL.format('fullinertia="1 1 9 0 0 0"'),
        '<geom type="capsule" fromto="0 0 0 0 0 1" size="0.1" class="main"/><include file="part.xml"/>')]
    (tmp_path / "part.xml").write_text("<mujoco><geom size='1'/></mujoco>")
    draw = random.Random(5)
    path = tmp_path / "robot.xml"
    for _ in range(300):
        path.write_bytes(mutated(draw, seeds))
        try:
            load_character_model(path)
        except UserError as error:
            assert len(str(error)) < 20_000


def test_limits_are_generous():
    """Whatever ships is far below every limit."""
    for path in (ROOT / "data").rglob("*"):
        limit = {".yaml": reading.MAX_YAML_BYTES, ".xml": reading.MAX_MODEL_BYTES, ".pkl": reading.MAX_CLIP_BYTES}
        assert 10 * path.stat().st_size < limit.get(path.suffix, 2**63)
