"""Options and columns that people know from the runner of MimicKit's reference snapshot (docs/old_runner.md)."""

import re
from pathlib import Path

import pytest

from mimickit.cases import discover, select
from mimickit.longcycle import allocation, ledger, lifecycle, stages
from mimickit.longcycle.ladder import Rung
from mimickit.longcycle.options import OPTIONS, make_settings
from mimickit.longcycle.settings import ladder_name
from mimickit.util.failures import UserError
from mimickit.util.files import read_tsv, write_tsv
from tests.faults.single_stage import run_code as run
from tests.longcycle.conftest import CASES, ROOT, TRAINED
from tools import measure_allocation

TABLE = """
case method case_type variant agent_config num_envs probe_rc probe_ok probe_timeout long_rc long_ok long_timeout
long_mode long_max_samples long_budget_hours long_budget_target_sec long_budget_elapsed_sec long_budget_reached
long_budget_signal long_stop_reason alloc_profile_used alloc_variant alloc_num_envs alloc_agent_config alloc_source
test_rc test_ok viz_rc viz_ok probe_elapsed_sec long_elapsed_sec test_elapsed_sec viz_elapsed_sec stage_elapsed_sec
final_ok note out_dir probe_out_dir long_out_dir probe_train_log long_train_log test_log viz_log
"""
COMMAND = """
--default-ladder 512,256,128,64,32 --pi-plus-ladder 40,39,38,36,32,24,16,8,4,2,1 --amp-pi-plus-ladder
38,36,32,24,16,8,4,2,1 --long-mode time_budget --long-max-samples 30000000 --long-budget-hours 24
--long-budget-signal SIGINT --long-budget-grace-sec 300 --long-success-policy budget_checkpoint --probe-iters 8
--probe-timeout 900 --long-timeout 0 --test-timeout 600 --viz-timeout 600 --test-episodes 10 --viz-episodes 1
--nontrainable-num-envs 1 --nontrainable-max-samples 128 --allocation-fallback ladder --include-nontrainable
--engine-config data/engines/newton_engine.yaml --devices-train cpu,cpu --devices-nontrainable cpu --root-out older
--resume-skip-status none
"""
COLUMNS, FLAGS = TABLE.split(), COMMAND.split()
HEADER = ("case", "status", "variant", "num_envs", "agent_config")


def settings(**values):
    """Those of the checkout with options by name (dashes as underscores)."""
    names = {name.replace("-", "_"): name for name in OPTIONS}
    given = {names[name]: value for name, value in {"devices_train": "cpu", **values}.items()}
    return make_settings({name: option.default for name, option in OPTIONS.items()} | given, ROOT, 1)


def sizes(case, **values):
    (found,) = select(ROOT, [case])
    return [(rung.variant, rung.num_envs) for rung in lifecycle.case_rungs(settings(**values), found)]


def profile(folder, *rows):
    write_tsv(folder / "profile.tsv", HEADER, [dict(zip(HEADER, row)) for row in rows])
    return str(folder / "profile.tsv")


def test_every_option_at_its_older_default_is_taken(project):
    options = [*FLAGS, "--cases", TRAINED, "--require-deps", "json,yaml"]
    result = project.run(*options, "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*test_longcycle[[]{TRAINED}[]]"])
    documented = (ROOT / "docs/old_runner.md").read_text()
    assert [word for word in options if word.startswith("--") and f"`{word}" not in documented] == []


def test_every_column_is_there_and_filled(project):
    assert project.run("--cases", f"{TRAINED},{CASES[1]}").ret == 0
    rows = project.rows()
    row, fixed = rows[TRAINED], rows[CASES[1]]
    assert list(row)[:len(COLUMNS)] == COLUMNS == list(ledger.OLD_COLUMNS)
    budget = [name for name in COLUMNS if name.startswith("long_budget")]
    empty = {*budget, "alloc_variant", "alloc_num_envs", "alloc_agent_config"}
    assert {name for name in COLUMNS if not row[name]} == empty
    assert (row["agent_config"], row["long_mode"], row["long_max_samples"], row["long_stop_reason"]) == (
        "data/agents/deepmimic_humanoid_ppo_agent.yaml", "max_samples", "1000", "long_exit")
    assert [row[name] for name in ("probe_timeout", "long_timeout", "alloc_profile_used", "alloc_source")] == [
        "0", "0", "0", "auto"]
    seconds = [float(row[f"{stage}_elapsed_sec"]) for stage in ("probe", "long", "test", "viz")]
    assert float(row["stage_elapsed_sec"]) == pytest.approx(sum(seconds), abs=0.02)
    assert (fixed["alloc_source"], fixed["probe_ok"], fixed["long_max_samples"]) == ("nontrainable", "", "128")
    assert (row["learned"], fixed["learned"], row["final_ok"]) == ("-", "-", "1"), "smoke judges no learning"


def test_whether_a_policy_learned(project):
    (project.path / "targets.yaml").write_text("".join(
        f"{case}:\n  gates: [{{measure: test_return, op: '>=', bound: 8.0, source: here}}]\n" for case in CASES))
    project.rules({"stage": "test", "case": TRAINED, "do": "weak"})
    full = ["--longcycle-profile", "full", "--devices-train", "cpu", "--cases", f"{TRAINED},{CASES[1]}"]
    assert project.run(*full).ret == 1
    rows = project.rows(project.path / "output/train/longcycle")
    assert (rows[TRAINED]["learned"], rows[CASES[1]]["learned"]) == ("0", "-")
    project.rules()
    project.run(*full, "--root-out", "again")
    assert project.rows(project.path / "output/train/again")[TRAINED]["learned"] == "1"


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_training_whose_hours_are_used_up_gets_the_signal(project, number):
    project.rules({"stage": "long_train", "do": "slow"})
    result = project.run("--cases", TRAINED, "--devices-train", "cpu", "--long-mode", "time_budget",
                         "--long-budget-hours", "0.0001", "--long-budget-signal", number)
    assert result.ret == 0
    row = project.rows()[TRAINED]
    assert (row["long_stop_reason"], row["long_budget_reached"], row["long_ok"], row["long_rc"]) == (
        f"long_budget_reached_{number}", "1", "1", "130" if number == "SIGINT" else "143")
    assert project.stages() == ["probe_train", "long_train", "test", "viz"]


BEATING = ("import signal, time, pathlib; {}; pathlib.Path('out/heartbeat').mkdir(); "
           "pathlib.Path('out/heartbeat/rank_0').touch(); "
           "pathlib.Path('out/progress.json').write_text('{{\"samples\": 1}}'); time.sleep(100)")


@pytest.mark.parametrize(("deaf_to", "reason", "rc"), [
    (("SIGINT",), "long_budget_grace_term", 143), (("SIGINT", "SIGTERM"), "long_budget_force_kill", 137)])
def test_a_training_that_outlives_its_grace(tmp_path, monkeypatch, deaf_to, reason, rc):
    monkeypatch.setattr(stages, "TERM_WAIT", 0.3)
    ignore = "; ".join(f"signal.signal(signal.{name}, signal.SIG_IGN)" for name in deaf_to)
    found = run(tmp_path, BEATING.format(ignore), budget=stages.TimeBudget(0.0, "SIGINT", 0.3))
    assert (found.stop_reason, found.failure_class, found.rc) == (reason, "timeout", rc)
    assert "did not end within 0.3 s of SIGINT" in found.message


def test_no_budget_ends_a_process_before_its_sign_of_life(tmp_path):
    code = ("import time; time.sleep(0.5); "
            "open('out/result.json', 'w').write('{\"mode\": \"test\", \"ok\": true}')")
    found = run(tmp_path, code, budget=stages.TimeBudget(0.0, "SIGINT", 0.3))
    assert found.ok and found.stop_reason == ""


def test_ladders_of_three_groups_of_cases():
    given = {"default_ladder": "512,256", "pi_plus_ladder": "40,39", "amp_pi_plus_ladder": "38", "variants": "default"}
    for case, ladder in {"add_pi_plus": [40, 39], "deepmimic_pi_plus_ppo": [40, 39], "amp_pi_plus": [38],
                         "deepmimic_humanoid_ppo": [512, 256], "amp_g1": [512, 256]}.items():
        assert sizes(case, **given) == [("default", num_envs) for num_envs in ladder]
    assert sizes("amp_g1", pi_plus_ladder="40", env_ladder="7", variants="default") == [("default", 7)]


def test_an_allocation_profile_decides_the_first_attempt(tmp_path):
    agent = "data/agents/amp_g1_agent"
    file = profile(tmp_path, ("amp_g1_args.txt", "ok", "default", 64, f"{agent}.yaml"),
                   ("add_g1_args.txt", "oom", "default", 64, ""), ("amp_go2", "ok", "tuned", 0, ""),
                   ("view_motion_g1_args.txt", "ok", "default", 1, ""))
    options = {"allocation_profile_tsv": file, "env_ladder": "256,64,32"}
    usual = [("tuned", 256), ("tuned", 64), ("tuned", 32)]
    assert sizes("amp_g1", **options) == [("default", 64), *usual, ("default", 32)]
    assert sizes("amp_g1", **options, allocation_fallback="strict") == [("default", 64)]
    rest = [("default", n) for n in (256, 64, 32)]
    assert sizes("add_g1", **options) == sizes("amp_go2", **options) == [*usual, *rest]
    found = settings(**options)
    (case,) = select(ROOT, ["amp_g1"])
    assert lifecycle.first_envs(found, case, Rung("default", 64)) == 256, "degraded, steps scaled"


@pytest.mark.parametrize(("row", "message"), [
    (("amp_g2_args.txt", "ok", "default", 64, ""), r"amp_g2_args\.txt is no case of args/ \(did you mean 'amp_g"),
    (("amp_g1", "ok", "default", "4k", ""), "num_envs '4k' is not a whole number"),
    (("amp_g1", "ok", "default", "--4", ""), "num_envs '--4' is not a whole number"),
    (("amp_g1", "ok", "default", "9" * 5000, ""), "num_envs '9{80}' is not a whole number"),
    (("amp_g1", "ok", "hiutil", 64, ""), "variant 'hiutil' is not one of tuned, default"),
    (("amp_g1", "ok", "tuned", 64, "a.yaml"), r"agent_config a\.yaml is not variant tuned's, data/agents/amp"),
])
def test_mistakes_in_allocation_profiles(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        allocation.read_allocation(profile(tmp_path, row), ROOT)
    (tmp_path / "short.tsv").write_text("case\tstatus\nx\tok\n")
    with pytest.raises(UserError, match=r"short\.tsv: line 2 has no column variant, num_envs, agent_config"):
        allocation.read_allocation(str(tmp_path / "short.tsv"), ROOT)
    header = "\t".join(allocation.NEEDED)
    for text, message in ((f"{header}\namp_g1\tok\n", "no column variant, num_envs, agent_config"),
                          (f"{header}\namp_g1\t\xff\n", "is no text"), ("", "it has no rows")):
        (tmp_path / "cut.tsv").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=rf"cut\.tsv: .*{message}"):
            allocation.read_allocation(str(tmp_path / "cut.tsv"), ROOT)


@pytest.mark.parametrize(("fallback", "used", "source", "ok"), [
    (None, "1", "profile", "1"), ("ladder", "0", "ladder_fallback", "1"), ("strict", "1", "profile", "0")])
def test_what_follows_when_the_profiles_attempt_fails(project, fallback, used, source, ok):
    file = profile(project.path, (TRAINED, "ok", "default", 64, ""))
    if fallback:
        project.rules({"stage": "probe_train", "above_envs": 32, "do": "oom"})
    options = ["--allocation-fallback", fallback] if fallback else []
    result = project.run("--cases", TRAINED, f"--allocation-profile-tsv={file}", "--env-ladder", "128,32", *options)
    row = project.rows()[TRAINED]
    assert (result.ret == 0, row["final_ok"]) == (ok == "1", ok)
    assert [row[f"alloc_{name}"] for name in ("profile_used", "variant", "num_envs", "source")] == [
        used, "default", "64", source]
    tried = [call["num_envs"] for call in project.calls() if call["stage"] == "probe_train"]
    assert tried == ([64, 32] if fallback == "ladder" else [64])


def test_measuring_keeps_the_faster_attempt_that_fits(tmp_path, monkeypatch):
    speeds = {256: None, 128: 900.0, 64: 1000.0}

    def measure(settings, case, rung, devices, iters, folder):
        speed = speeds[rung.num_envs]
        status = "oom_gpu" if speed is None or (case.name == "amp_g1") else "ok"
        return measure_allocation.Measured(rung.variant, rung.num_envs, "a.yaml", status, speed or 0.0, 2.5)

    monkeypatch.setattr(measure_allocation, "measure", measure)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "profile.tsv"
    words = [str(out), "--cases", "amp_g1,add_go2", "--env-ladder", "256,128,64", "--variants", "tuned",
             "--devices-train", "cpu"]
    assert measure_allocation.main(words) == 1, "one case does not fit"
    assert {allocation.case_name(row): (row["status"], row["num_envs"]) for row in read_tsv(out)} == {
        "amp_g1": ("oom_gpu", "0"), "add_go2": ("ok", "64")}
    speeds[64] = 1.0
    assert measure_allocation.main([*words, "--below", "0"]) == 1
    assert read_tsv(out)[0]["num_envs"] == "64", "what was measured stays"
    assert measure_allocation.main([str(out), "--cases", "amp_g2"]) == 2
    with pytest.raises(UserError, match=r"agent_config a\.yaml is not"):
        allocation.read_allocation(str(out), ROOT)
    assert set(HEADER) <= set(measure_allocation.COLUMNS)


def test_the_columns_of_the_table_are_named_once():
    assert len(set(ledger.COLUMNS)) == len(ledger.COLUMNS)
    assert {case.name for case in discover(ROOT) if ladder_name(case.name) != "default-ladder"} == {
        "add_pi_plus", "deepmimic_pi_plus_ppo", "amp_pi_plus"}
    page = Path(ROOT / "docs/old_runner.md").read_text()
    assert [name for name in COLUMNS if not re.search(rf"`{name}`", page)] == []
