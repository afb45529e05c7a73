"""The commands that a run's last lines give can be copied: they are understood, and mean what they say."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimickit import next_steps
from mimickit.request import header
from mimickit.request_reader import read_request
from mimickit.util import run_folder
from mimickit.util.args import Args
from mimickit.util.options import UNLIMITED

ROOT = Path(__file__).resolve().parents[2]
GIVEN = shlex.split(
    "--overwrite --max-samples=1e6 --set env.episode_length=0.5 --devices cpu --num_envs 4 --rand_seed 3 --arg_file "
    "args/deepmimic_humanoid_ppo_args.txt --engine_config data/engines/newton_engine.yaml")


@pytest.fixture
def request_in(tmp_path, monkeypatch):
    """A training's request in a folder whose name needs quotes."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [str(ROOT / "mimickit/run.py")])  # as the launcher names it
    return read_request(Args.from_argv(GIVEN)).moved(tmp_path / "my run")


def result(**values):
    return SimpleNamespace(**{"outcome": "completed", "samples": 1_000_000, "iterations": 9, "new_iterations": 9,
                              "samples_per_s": 2000.0, "total_wall_s": 500.0, "evaluation": None, **values})


def read(line, what):
    """The arguments that a line's command gives."""
    label, _, command = line.partition(": ")
    program, script, *argv = shlex.split(command)
    assert (label, program, script) == (what, "python", "mimickit/run.py")
    return Args.from_argv(argv)


def test_after_a_training(request_in):
    end, model, log, test = next_steps.after_training(request_in, result())
    assert end == "completed: 1,000,000 samples, 9 iterations, 2,000 samples/s, 500.0 s"
    assert model == f"model: {request_in.out_dir}/model.pt" and f"log: {request_in.out_dir}/log.txt" in log
    args = read(test, "test")
    assert next_steps.after_training(request_in, result(iterations=1))[0].startswith(
        "completed: 1,000,000 samples, 1 iteration, 2,000")
    evaluation = {"return": 181.234, "episode_length": 300.0, "episodes": 64, "samples": 900_000}
    assert next_steps.after_training(request_in, result(evaluation=evaluation))[1] == (
        "last evaluation: Test_Return 181.2, Test_Episode_Length 300, 64 episodes; of the policy after 900,000 samples")
    (request_in.out_dir).mkdir()
    assert args["model_file"] == f"{request_in.out_dir}/model.pt" and args["mode"] == "test"
    assert args["set"] == ("env.episode_length=0.5",) and "max_samples" not in args
    assert run_folder.choose(args)["out_dir"] == f"{request_in.out_dir}/test"


def test_after_an_interrupted_training(request_in):
    _, _, _, go_on = next_steps.after_training(request_in, result(outcome="interrupted"))
    args = run_folder.choose(read(go_on, "continue"))
    assert args["resume"] == args["out_dir"] == str(request_in.out_dir)
    assert (args["max_samples"], args["rand_seed"], "overwrite" in args) == (1_000_000, 3, False)


def test_a_finished_training_that_is_continued_says_so(request_in):
    """And how to train on, in both spellings."""
    end, _, _, go_on, test = next_steps.after_training(request_in, result(new_iterations=0))
    assert end.startswith("already finished: 1,000,000 samples, --max_samples is 1,000,000; nothing was trained now")
    args = run_folder.choose(read(go_on, "train on"))
    assert (args["max_samples"], args["resume"]) == (2_000_000, str(request_in.out_dir)) and read(test, "test")
    short = replace(request_in, args=request_in.args.named("train", "run"))
    assert next_steps.after_training(short, result(new_iterations=0))[3].endswith("my run' --max_samples 2000000")


def test_which_model_a_test_takes(request_in, tmp_path):
    """The first line of a test names the newest and where the best is."""
    best = tmp_path / "run/checkpoints/best/model.pt"
    tested = replace(request_in, mode="test", args=request_in.args.with_value("model_file", f"{tmp_path}/run/model.pt"))
    assert header(tested) == [f"model: {tmp_path}/run/model.pt"]
    best.parent.mkdir(parents=True)
    best.touch()
    assert header(tested) == [f"model: {tmp_path}/run/model.pt (the newest; that of the best evaluation: {best})"]
    assert header(replace(tested, args=tested.args.with_value("model_file", str(best)))) == [f"model: {best}"]


def test_after_a_test(request_in):
    result, film = next_steps.after_test(request_in, {})
    assert result == f"result: {request_in.result_file}" and read(film, "film")["video"]
    assert next_steps.after_test(request_in, {"video": {"file": "out/viz.mp4"}, "page": {"file": "a.html"}})[1:] == [
        "film: out/viz.mp4", "page: a.html"]


def test_what_a_test_measured():
    """Units, digits as the interval allows, none of a single episode; a test that was cut short says so first."""
    def tested(episodes, complete=True, **statistics):
        means = {name: summary["mean"] for name, summary in statistics.items()}
        return SimpleNamespace(test_return=means["return"], test_episode_length=38.2, test_episodes=episodes,
                               measures={"root_pos_err": 0.160514, "vel_err_slow": 1.25, "motion_dist": 0.123456},
                               statistics=statistics, complete=complete)

    def summary(mean, interval, episodes):
        return {"mean": mean, "ci95": interval, "episodes": episodes}

    many = tested(165, False, **{"return": summary(5.31149, 0.4321, 165),
                                 "root_pos_err": summary(0.160514, 0.0431, 160)})
    rows = ["Mean return: 5.31 +- 0.43", "Mean episode length: 38.2 control steps", "Episodes: 165",
            "root_pos_err: 0.161 +- 0.043 m (160 episodes)", "vel_err_slow: 1.25 m/s", "motion_dist: 0.1235 m"]
    assert next_steps.measured(many, 2000) == ["interrupted: 165 of 2,000 episodes, biased towards short ones", *rows]
    assert next_steps.measured(many, UNLIMITED) == rows, "nobody said how many"
    assert next_steps.measured(many, 165)[0] == "interrupted: all 165 episodes, but not those that no failure ends"
    one = next_steps.measured(tested(1, **{"return": summary(60.0, 0.79, 1)}), 1)
    assert one[:2] == ["Mean return: 60", "Mean episode length: 38.2 control steps"]
    more = next_steps.measured(tested(10, **{"return": summary(60.0, 0.79, 1024)}), 10)
    assert more[0] == "Mean return: 60", "the interval is that of other episodes"


def test_a_command_is_followed_by_commands(request_in):
    """Of the two spellings that name of the program which the user typed."""
    short = replace(request_in, args=request_in.args.named("train", "deepmimic_humanoid_ppo"))
    folder = shlex.quote(str(request_in.out_dir))
    lines = next_steps.after_training(short, result(outcome="budget"))[3:]
    said = [line.partition(": python mimickit/run.py ")[::2] for line in lines]
    assert said == [("continue", f"train {folder}"), ("test", f"test {folder}"),
                    ("film", f"view {folder} --video true")]
    tested = replace(request_in, args=request_in.args.named("test", "my run"))
    assert next_steps.after_test(tested, {})[1] == "film: python mimickit/run.py view 'my run' --video true"


def test_processes_that_the_program_starts_name_it_as_it_was_called(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/site/bin/mimickit"])
    assert next_steps.program() == "mimickit"
    monkeypatch.setattr("sys.argv", ["/site/mimickit/run.py"])
    assert next_steps.program() == "python /site/mimickit/run.py"
    monkeypatch.setenv(next_steps.PROGRAM, "mimickit")
    assert next_steps.program() == "mimickit"
