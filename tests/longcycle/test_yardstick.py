"""The tier of nine clips and three methods beside published numbers."""

import pytest

from mimickit.anim.character import Character
from mimickit.cases import discover
from mimickit.longcycle.cases import read_inputs
from mimickit.longcycle.settings import DEFAULT_ENGINE
from mimickit.longcycle.yardstick import CLIPS, METHODS, tables, yardstick_cases
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import UserError

CASES = {case.name: case for case in yardstick_cases(SHIPPED)}


def test_cases_are_those_of_args_with_another_clip():
    assert len(CASES) == 27 == len(CLIPS) * len(METHODS)
    assert not set(CASES) & {case.name for case in discover(SHIPPED)}
    case = CASES["add_humanoid_cartwheel"]
    assert (case.args_file, case.file, case.stem, case.method, case.trainable) == (
        "args/add_humanoid_args.txt", "add_humanoid_cartwheel_args.txt", "add_humanoid_cartwheel_args", "add", True)
    with pytest.raises(UserError, match="unknown case 'amp_humanoid'; known are: add_humanoid_backflip"):
        yardstick_cases(SHIPPED, ["amp_humanoid"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_case_can_run(name):
    case = CASES[name]
    request = read_request(Args.from_argv(["--set", *case.values, "--engine_config", DEFAULT_ENGINE, "--devices", "cpu",
                                           "--arg_file", str(SHIPPED / case.args_file)]))
    assert request.env.motion_file.is_file() and name.endswith(request.env.motion_file.stem.removeprefix("humanoid_"))
    assert set(request.env.contact_bodies) <= set(Character.load(request.env.char_file, "cpu").body_names)
    inputs = read_inputs(SHIPPED, case, DEFAULT_ENGINE)
    assert inputs.motion_file in inputs.sha256 and "missing" not in inputs.sha256.values()
    assert inputs.motion_file.endswith(request.env.motion_file.name)


def test_tables():
    def result(err):
        return {"measures": {"pos_err": err, "time_warped_err": 2 * err}}

    page = tables([{"deepmimic_humanoid_ppo_run": result(0.02), "amp_humanoid_run": result(0.1)},
                   {"deepmimic_humanoid_ppo_run": result(0.04)}, {}])
    rows = [line for line in page.splitlines() if line.startswith("| run ")]
    assert rows == ["| run | 0.030 ± 0.014 | 0.013 | 0.100 | 0.163 |  | 0.165 |",
                    "| run | 0.060 ± 0.028 | 0.028 | 0.200 | 0.075 |  |  |"]
    assert page.count("\n| ") == 2 * (2 + len(CLIPS)) and "3 seeds" in page


def test_a_session_of_the_tier(project):
    """Every stage gets the clip, nothing is judged, and the page stands in the root."""
    project.add_cases("add_humanoid", "amp_humanoid")
    name, root = "deepmimic_humanoid_ppo_roll", project.path / "output/train/yardstick"
    done = project.run("--case-set", "yardstick", "--cases", name, "--longcycle-profile", "full", "--devices-train",
                       "cpu", "--root-out", "yardstick")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines([f"ok       {name}: *learning not judged", "*output/train/yardstick/yardstick.md"])
    calls = {call["stage"]: call["flags"] for call in project.calls()}
    assert len(calls) == 4
    for flags in calls.values():
        assert flags["set"][:2] == ["env.motion_file=data/motions/humanoid/humanoid_roll.pkl", "env.contact_bodies=[]"]
        assert flags["arg_file"] == ["args/deepmimic_humanoid_ppo_args.txt"]
    assert project.rows(root)[name]["out_dir"] == f"output/train/yardstick/runs/{name}_args/default_e8"
    assert "| roll |" in (root / "yardstick.md").read_text()
