"""The rules clips must keep, and every clip that is shipped keeping them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimickit.anim.character import Character
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, MotionClip, load_motion, save_motion
from mimickit.anim.motion_lib import MotionLib
from mimickit.clips.check import MOTIONS, character_of, errors, list_clips, load_exemptions, measure, problems
from mimickit.clips.feet import Feet, feet_of, lock, soles, stances
from mimickit.clips.shape import ASSETS, CHARACTERS, Shape, unpack
from mimickit.util.failures import UserError
from tools.check_motion import main

ROOT = Path(__file__).resolve().parents[3]
REQUIRED = {
    "g1": ("walk", "run", "jump", "walker_turn_left0", "walker_turn_left1", "walker_turn_right0", "walker_turn_right1",
           "kick", "punch", "spinkick", "cartwheel"),
    "smpl": ("walk", "run", "jump", "walker_turn_left0", "walker_turn_right0"),
    "hightorque_pi_plus": ("walk", "run", "jump", "walker_turn_left0", "walker_turn_right0"),
    "go2": ("pace", "trot", "walk", "walk0", "walk1", "walk2", "walk3", "run", "canter", "turn_left", "turn_right"),
    "humanoid": ("walk", "run", "spinkick"),
}


@pytest.fixture(scope="module")
def go2():
    return Shape(ASSETS / CHARACTERS["go2"])


@pytest.fixture(scope="module")
def humanoid():
    return Shape(ASSETS / CHARACTERS["humanoid"])


@pytest.fixture
def pace():
    return load_motion(MOTIONS / "go2/go2_pace.pkl")


def changed(clip, column, change, rows=slice(None)):
    frames = clip.frames.copy()
    frames[rows, column] += change
    return replace(clip, frames=frames)


def test_every_shipped_clip_passes(capsys):
    assert main(["--strict"]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(list_clips([MOTIONS])) and len(lines) > 60


@pytest.mark.parametrize("char", REQUIRED)
def test_the_clips_that_configurations_name_are_there(char):
    prefix = "pi_plus" if char == "hightorque_pi_plus" else char
    missing = [name for name in REQUIRED[char] if not (MOTIONS / char / f"{prefix}_{name}.pkl").is_file()]
    assert not missing


@pytest.mark.parametrize("name, char, least", [("humanoid", "humanoid", 20), ("go2", "go2", 7)])
def test_datasets_load(name, char, least, monkeypatch):
    monkeypatch.chdir(ROOT)
    library = MotionLib(f"data/datasets/dataset_{name}_locomotion.yaml",
                        Character(load_character_model(ASSETS / CHARACTERS[char])))
    assert library.num_motions >= least and len(set(library.files)) == library.num_motions


def test_a_good_clip_has_no_problems(go2, pace):
    assert problems(measure(pace, go2)) == []


@pytest.mark.parametrize("change, text", [
    (lambda c: changed(c, 2, -0.03), "sinks 0.030 m"),
    (lambda c: changed(c, 2, 0.08), "never comes closer to the ground than 0.080 m"),
    (lambda c: changed(c, 7, 1.0, slice(10, 11)), "a joint jumps"),
    (lambda c: changed(c, 0, 0.3, slice(10, 11)), "the root jumps"),
    (lambda c: changed(c, 5, 0.8, slice(10, 11)), "the root jumps"),
    (lambda c: changed(c, 8, 0.06, slice(-1, None)), "the loop's ends are 0.060 rad apart"),
    (lambda c: changed(c, 2, 0.015, slice(-1, None)), "the loop's ends differ by 0.015 m in height"),
    (lambda c: replace(c, fps=5.0), "fps 5 outside 10..240"),
    (lambda c: replace(c, frames=c.frames[:1]), "at least 2 are required"),
    (lambda c: changed(c, 0, np.linspace(0, 0.2, len(c.frames))), "standing feet slide"),
])
def test_each_rule_finds_its_fault(go2, pace, change, text):
    assert text in "; ".join(problems(measure(change(pace), go2)))


@pytest.mark.parametrize(("change", "text"), [
    (lambda c: replace(c, frames=c.frames[:1]), "1 frame; at least 2 are required"),
    (lambda c: changed(c, 2, 1.0), "its lowest point is 1.00 m from the ground"),
    (lambda c: changed(c, 0, np.arange(len(c.frames)) * 2.0), "the root moves with 12"),
])
def test_what_makes_a_clip_unusable(go2, pace, change, text):
    report = measure(change(pace), go2)
    assert text in "; ".join(errors(report)) and problems(report)
    assert errors(measure(pace, go2)) == errors(measure(changed(pace, 2, -0.03), go2)) == []


def test_limits_name_the_joint(go2, pace):
    low = go2.character.model.dof_low[2]
    bad = changed(pace, 8, low - 0.1 - pace.frames[5, 8], 5)
    assert "FL_calf_joint exceeds its range by 0.100 rad" in "; ".join(problems(measure(bad, go2)))


def test_y_up_is_found(humanoid):
    clip = load_motion(MOTIONS / "humanoid/humanoid_walk.pkl")
    y_up = replace(clip, frames=clip.frames.copy())
    y_up.frames[:, [1, 2]] = clip.frames[:, [2, 1]] * (1, -1)  # a quarter turn about x
    y_up.frames[:, 3:6] = (-np.pi / 2, 0, 0)
    assert "is Z up" in "; ".join(errors(measure(y_up, humanoid)))


def test_exemptions_raise_the_limit_and_need_a_reason(go2, pace, tmp_path):
    report = replace(measure(pace, go2), slide=0.2)
    path = tmp_path / "exemptions.yaml"
    path.write_text("clips:\n  go2_pace: {max_slide: 0.25, reason: turns on the ball of the foot}\n")
    assert problems(report) and not problems(report, load_exemptions(path)["go2_pace"])
    path.write_text("clips:\n  go2_pace: {max_slide: 0.25}\n")
    with pytest.raises(UserError, match="reason"):
        load_exemptions(path)


def test_command_line(tmp_path, capsys, pace):
    good, bad, alien = tmp_path / "go2/good.pkl", tmp_path / "go2/bad.pkl", tmp_path / "g1/alien.pkl"
    save_motion(good, pace)
    save_motion(bad, changed(pace, 2, -0.03))
    save_motion(alien, pace)
    assert main([str(good), "--sheet", str(tmp_path)]) == 0
    assert "| good | 34 | 60 | wrap |" in capsys.readouterr().out
    with Image.open(tmp_path / "good.png") as sheet:
        assert len(sheet.getcolors(100_000)) > 5  # limbs were drawn
    assert main([str(good), str(bad)]) == 0, "unclean, not unusable"
    out = capsys.readouterr()
    assert "| bad |" in out.out and "| warning |" in out.out and f"warning: {bad}: sinks" in out.err
    assert main([str(good), str(bad), "--strict"]) == 1
    capsys.readouterr()
    save_motion(bad, changed(pace, 2, -0.3))
    assert main([str(good), str(bad)]) == 1
    out = capsys.readouterr()
    assert "| error |" in out.out and f"error: {bad}: its lowest point is -0.3" in out.err
    assert main([str(alien)]) == 1
    assert "error: " in (said := capsys.readouterr().err) and "has 12 dofs" in said
    assert main([str(alien), "--char", str(ASSETS / CHARACTERS["go2"])]) == 0
    assert main([str(tmp_path / "nothing")]) == 2 and "not found" in capsys.readouterr().err


def test_characters_follow_from_folders(tmp_path):
    assert character_of(tmp_path / "g1/deep/clip.pkl") == ASSETS / "g1/g1.xml"
    with pytest.raises(UserError, match="--char"):
        character_of(Path("/nowhere/clip.pkl"))


def test_stances_are_found_and_locked(humanoid):
    """A foot pushed over the ground at 0.2 m/s while it stands comes to rest; in the air it moves as before."""
    frames, fps = 61, 60.0
    time = torch.arange(frames, dtype=torch.float64) / fps
    pos = torch.zeros(frames, 2, 3, dtype=torch.float64)
    pos[:, 0, 0] = 0.2 * time
    pos[:, :, 2] = 0.05  # soles on the ground
    pos[:, 1, 2] = 0.5  # in the air
    turn = torch.zeros(frames, 2, 4, dtype=torch.float64)
    turn[..., 3] = 1.0
    feet = Feet(pos, turn)
    assert stances(feet, humanoid, fps) == [[(0, 60)], []]
    still = lock(feet, humanoid, fps)
    place = soles(still, humanoid)[:, 0]
    np.testing.assert_allclose(place, np.tile([0.1 + 0.045, 0.0, 0.0], (frames, 1)), atol=1e-9)
    np.testing.assert_allclose(still.pos[:, 1], pos[:, 1])


def test_locking_is_smooth_and_keeps_soles_above_ground(humanoid):
    clip = load_motion(MOTIONS / "humanoid/humanoid_walk.pkl")
    motion = unpack(MotionClip(LoopMode.CLAMP, clip.fps, clip.frames), humanoid)
    before = feet_of(motion, humanoid)
    sunk = Feet(before.pos - torch.tensor([0.0, 0.0, 0.015], dtype=torch.float64), before.rot)
    after = lock(sunk, humanoid, clip.fps)
    assert humanoid.sole_heights(after.pos, after.rot).min() > -1e-9
    assert (after.pos - sunk.pos).norm(dim=-1).max() < 0.06
