"""``mimickit train CASE`` and so on: what they make of a command line, a case and a run folder."""

import re
from pathlib import Path

import pytest

import mimickit
from mimickit import catalog, commands, run
from mimickit.cases import TUNED_WORLDS, all_cases, discover, tuned_worlds, with_variant
from mimickit.commands import read_args
from mimickit.longcycle import options as suite_options
from mimickit.request import header
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import UserError
from mimickit.util.options import OPTIONS

CASE = "deepmimic_humanoid_ppo"
AGENT = "data/agents/deepmimic_humanoid_ppo_agent.yaml"
TUNED = AGENT.replace(".yaml", "_tuned.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder that holds nothing, on a machine with a GPU and without a display."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(commands, "machine_devices", lambda: ["cpu", "cuda:0", "cuda:1"])


def arguments(line):
    return read_args(line.split())


@pytest.fixture
def trained(tmp_path):
    """The folder of a training, with what its end leaves."""
    folder = tmp_path / "output" / CASE / "2026-11-30-1"
    (folder / "checkpoints" / "best").mkdir(parents=True)
    request = read_request(arguments(f"train {CASE} --devices cpu --num_envs 4 --set env.episode_length=3").with_value(
        "out_dir", str(folder)))
    run.save_configuration(request, None, type("Dist", (), {"world_size": 1}))
    for model in (folder / "model.pt", folder / "checkpoints/best/model.pt"):
        model.touch()
    return folder


@pytest.mark.parametrize(("case", "flags", "worlds", "evaluating"), [
    (CASE, "", 4096, 64),
    (CASE, "--devices cuda:0 cuda:1", 2048, 32),
    (CASE, "--devices cpu", commands.CPU_WORLDS, 8),
    (CASE, "--devices cpu cpu", commands.CPU_WORLDS // 2, 4),
    (CASE, "--devices cpu --num_envs 16", 16, 4),
    (CASE, "--num_envs 8192", 8192, 128),
    (CASE, "--variant default --devices cuda:0 cuda:1", 4096, 64),
    ("amp_smpl", "", 2048, 32),
    ("amp_steering_humanoid", "--devices cuda:0 cuda:1", 1024, 16),
])
def test_a_training_takes_what_learns(case, flags, worlds, evaluating):
    args = arguments(f"train {case} {flags}")
    assert (args["num_envs"], args["eval_envs"]) == (worlds, evaluating)
    assert args["max_samples"] == 30_000_000 and args["mode"] == "train"


def test_what_is_given_wins_over_the_args_file_and_that_over_defaults(tmp_path):
    (tmp_path / "mine_args.txt").write_text(
        (SHIPPED / f"args/{CASE}_args.txt").read_text().replace("4096", "64") + "--max_samples 1000\n")
    args = arguments("train mine_args.txt --rand_seed 3")
    assert [args[flag] for flag in ("num_envs", "max_samples", "rand_seed")] == [64, 1000, 3]
    assert arguments("train mine_args.txt --max_samples 5")["max_samples"] == 5


@pytest.mark.parametrize(("flags", "agent", "told"), [
    ("", TUNED, ["hyper-parameters: tuned (" + TUNED + "; --variant default takes the args file's own)"]),
    ("--variant default", AGENT, [f"hyper-parameters: default ({AGENT})"]),
    (f"--agent_config {AGENT}", AGENT, []),
])
def test_hyper_parameters(flags, agent, told):
    """Of a command and of MimicKit's command line alike."""
    for line in (f"--arg_file args/{CASE}_args.txt", f"train {CASE}"):
        request = read_request(arguments(f"{line} --devices cpu --num_envs 4096 {flags}"))
        assert request.args["agent_config"] == agent and request.num_envs == 4096
        assert request.agent.steps_per_iter == (8 if agent == TUNED else 32)
        assert header(request) == told


def test_another_number_of_worlds_is_told():
    request = read_request(arguments(f"train {CASE} --devices cpu"))
    assert header(request)[1] == (f"worlds: {commands.CPU_WORLDS}; these hyper-parameters are tuned for 4096 "
                                  "(--num_envs 4096)")


@pytest.mark.parametrize(("flags", "message"), [
    ("--variant hiutil", f"--variant hiutil (command line): {AGENT} has tuned, default"),
    ("--variant tuned --agent_config a.yaml", "--variant tuned: --agent_config a.yaml is given too: give one of them"),
])
def test_wrong_variants(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        with_variant(Args.from_argv(["--arg_file", f"args/{CASE}_args.txt", *flags.split()]))


def test_own_agent_files_have_their_own_variants(tmp_path):
    """A shipped variant says nothing about an agent file of the working directory."""
    (tmp_path / "data/agents").mkdir(parents=True)
    (tmp_path / AGENT).write_text((SHIPPED / AGENT).read_text())
    args, variant = with_variant(Args.from_argv(["--arg_file", f"args/{CASE}_args.txt"]))
    assert (args["agent_config"], variant) == (AGENT, "default")


def test_every_exception_of_worlds_is_an_agent():
    agents = {Path(case.agent_config).stem for case in all_cases() if case.trainable}
    fewer = {agent for agent in agents if tuned_worlds(f"data/agents/{agent}.yaml") != TUNED_WORLDS}
    assert fewer == {"amp_task_humanoid_agent", "add_smpl_agent", "amp_smpl_agent", "deepmimic_smpl_ppo_agent"}


@pytest.mark.parametrize("target", ["{run}", CASE, "{run}/model.pt", "{run}/checkpoints/best"])
def test_a_test_knows_its_training(trained, target):
    args = arguments(f"test {target.format(run=trained)} --set env.global_obs=true")
    best = "checkpoints/best/" if "best" in target else ""
    assert Path(args["model_file"]).resolve() == trained / f"{best}model.pt"
    assert Path(args["out_dir"]).resolve() == trained and args["mode"] == "test"
    assert Path(args["agent_config"]).resolve() == trained / "agent_config.yaml"
    assert (args["num_envs"], args["test_episodes"]) == (1024, 1024)
    assert args["set"] == ("env.episode_length=3", "env.global_obs=true") and "max_samples" not in args
    assert arguments(f"test {trained} --devices cpu")["num_envs"] == 32
    fewer = arguments(f"test {trained} --num_envs 8")
    assert (fewer["num_envs"], fewer["test_episodes"]) == (8, 8)


@pytest.mark.parametrize(("gone", "why"), [
    ("checkpoints/best", "it is written when an evaluation of 8 episodes or more is the best so far"),
    ("checkpoints/best/model.pt", "it is written when an evaluation of 8 episodes or more is the best so far"),
    ("checkpoints/0000000001", "the newest two are kept"),
])
def test_a_checkpoint_that_a_run_does_not_have(trained, gone, why):
    (trained / "checkpoints/best/model.pt").unlink()
    (trained / "checkpoints/best").rmdir()
    with pytest.raises(UserError, match=f"{trained}/{gone}: this run has no {gone}: {why}; there is no checkpoint yet"):
        arguments(f"test {trained}/{gone}")
    for name in ("0000000036", "0000000037"):
        (trained / "checkpoints" / name).mkdir()
    with pytest.raises(UserError, match=r"; there is 0000000037, 0000000036$"):
        arguments(f"view {trained}/{gone}")


def test_a_run_goes_on(trained):
    args = arguments(f"train {trained}")
    assert args["resume"] == str(trained) and "arg_file" not in args
    request = read_request(args)
    assert (request.num_envs, request.agent.steps_per_iter, request.variant) == (4, 8, None)
    assert args["devices"] == ("cpu",) and args["max_samples"] == 30_000_000


def test_the_environment_of_a_run(trained, monkeypatch):
    """As it was trained in, with its ``--set``."""
    monkeypatch.setattr("mimickit.envs.env_builder.build_env", lambda env, engine, num_envs, device: (env, engine))
    env, engine = mimickit.make(str(trained), device="cpu", overrides=["engine.sim_freq=120"])
    assert (env.episode_length, engine.sim_freq) == (3, 120)
    assert env.source == str(trained / "env_config.yaml")


def test_a_film_or_a_window(trained, monkeypatch):
    film = arguments(f"view {trained}")
    assert film["video"] and not film["visualize"]
    assert film["set"] == ("env.rand_reset=false", "env.episode_length=3")
    assert film["out_dir"] == str(trained / "view") and film["test_episodes"] == 1
    clip = arguments("view view_motion_g1")
    assert clip["video"] and clip["num_envs"] == 1 and "model_file" not in clip
    page = arguments(f"view {trained} --save-html a.html")
    assert not page["video"] and not page["visualize"] and page["set"] == film["set"] and page["test_episodes"] == 1
    live = arguments(f"view {trained} --web --viewer gl")
    assert live["viewer"] == "web" and live["visualize"] and not live["video"] and "test_episodes" not in live
    monkeypatch.setenv("DISPLAY", ":0")
    window = arguments(f"view {trained}")
    assert window["visualize"] and "test_episodes" not in window
    assert arguments(f"view {trained} --video true")["visualize"] is False


@pytest.mark.parametrize("words", ["--web", "--save_html a.html"])
def test_a_browser_needs_its_package(trained, monkeypatch, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(f"{words} needs the package viser: pip install 'mimickit[web]'")):
        read_request(arguments(f"view {trained} {words}"))


@pytest.mark.parametrize(("line", "message"), [
    ("train amp_g2", "mimickit train amp_g2: no such case (did you mean 'amp_go2'?)"),
    ("test amp_g2", "mimickit test amp_g2: no such case, and no run folder (did you mean 'amp_go2'?)"),
    ("train add_g", "mimickit train add_g: no such case (2 begin so: add_g1, add_go2); mimickit list shows"),
    ("train amp_g1 --num_env 3", "; mimickit train --help lists all flags"),
    ("train . --overwrite", "mimickit train . continues that training, and --overwrite would remove it"),
    ("test amp_g1", "amp_g1: no run of this case in output/amp_g1; mimickit train amp_g1 makes one"),
    ("train view_motion_g1", "this case has nothing to learn; try mimickit view view_motion_g1"),
    ("test .", ". is not the folder of a training: it has no run_config.yaml"),
    ("train amp_g1 --arg_file b", "--arg_file names a case too"),
])
def test_mistakes(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        arguments(line)


def test_help_and_lists(capsys):
    for line in ("--help", "train --help", "report --help", "bisect --help", "list", "completion"):
        assert run.main(line.split()) == 0
    text = capsys.readouterr().out
    for command in commands.COMMANDS:
        assert f"mimickit {command}" in text
    assert "--webhook URL" in text and "mimickit report compare ROOT_A ROOT_B" in text and "--good REV" in text
    assert f"{CASE}  " in text and "data/assets/g1/g1.xml" in text and "humanoid_spinkick" in text
    assert run.main(["help", "plot"]) == run.main(["help"]) == run.main(["--version"]) == 0
    words = capsys.readouterr().out
    assert words.startswith("usage: mimickit plot") and "mimickit train CASE_OR_RUN" in words
    assert words.splitlines()[-1] == f"mimickit {run.versions()['mimickit']}"
    assert run.main(["list", "clip"]) == 2 and "(did you mean 'clips'?)" in capsys.readouterr().err


def test_the_list_marks_cases_outside_the_acceptance_set():
    outside = {case.name for case in all_cases()} - {case.name for case in discover(SHIPPED)}
    rows = {line.split()[0]: line for line in catalog.listing("cases").splitlines()}
    assert outside and outside | {"*"} == {name for name, line in rows.items() if "*" in line.split()}
    assert rows["*"] == catalog.OUTSIDE


def test_help_of_the_suite_is_about_its_own_options():
    text = commands.help_of(["longcycle", "--help"])
    assert all(f"--{name}" in text for name in suite_options.OPTIONS) and len(text.splitlines()) < 150
    assert "--pastebin" not in text and "pytest --help" in text


def test_help_names_every_flag():
    """That of the commands together; the first page is short and says where the others are."""
    told = [commands.help_of([name]) for name in commands.COMMANDS]
    assert [flag for flag in OPTIONS if not any(f"  --{flag} " in text for text in told)] == ["arg_file", "mode"]
    first = commands.help_text()
    assert len(first.splitlines()) < 40 and all(word in first for word in ("train --help", "--arg_file", "--mode"))
    train, test = (commands.help_of([name]) for name in ("train", "test"))
    assert "  --test_episodes" not in train and "  --max_samples" not in test


def test_options_of_another_command_are_told(trained):
    said = arguments(f"test {trained} --max_samples 100 --output_samples 5 --num_envs 4").remarks
    assert said == ("--max_samples is for mimickit train: it has no effect on mimickit test",
                    "--output_samples is for mimickit train: it has no effect on mimickit test")
    assert arguments(f"train {CASE} --test_episodes 3").remarks[0].startswith("--test_episodes is for mimickit test")
    assert not arguments(f"train {CASE} --visualize false --max_samples 3").remarks, "a training says so itself"


def test_show_tells_them_too(capsys):
    assert run.main(["show", CASE, "--test_episodes", "3", "--devices", "cpu"]) == 0
    assert "warning: --test_episodes is for mimickit test: it has no effect on mimickit show" in capsys.readouterr().err


def test_show_names_what_was_given_and_why_worlds_are_few():
    text = catalog.configuration(arguments(
        f"show {CASE} --devices cpu --max_episode_steps 30 --rand_seed 5 --set env.init_pose={[0.125] * 34}".replace(
            ", ", ",")))
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in text.splitlines() if len(line.split()) > 2}
    assert rows["key"] == ["value", "from"]
    assert rows["max_episode_steps"] == ["30", "command line"] and rows["rand_seed"] == ["5", "command line"]
    assert rows["num_envs"] == [str(commands.CPU_WORLDS), "mimickit train, on a CPU"]
    assert re.search(r"  \[0\.125, 0\.125, 0\.125, \.\.\. 34 values\] +--set\n", text)


def test_show_names_the_file_of_every_value():
    rows = {line.split()[0]: line.split()[1:] for line in catalog.configuration(arguments(
        f"show {CASE} --set env.rand_reset=false engine.sim_freq=120")).splitlines() if len(line.split()) == 3}
    assert rows["steps_per_iter"] == ["8", str(SHIPPED / "data/agents/tuned.yaml")]
    assert rows["td_lambda"] == ["0.95", str(SHIPPED / "data/agents/base/policy.yaml")]
    assert rows["pose_termination"] == ["true", str(SHIPPED / "data/envs/base/tracking.yaml")]
    assert rows["char_file"][1] == str(SHIPPED / "data/envs/base/humanoid.yaml")
    assert rows["rand_reset"] == ["false", "--set"] and rows["sim_freq"] == ["120", "--set"]
    assert rows["actor_optimizer.weight_decay"] == ["0.0", "default"]


def test_the_suite_runs_in_a_checkout_or_where_one_is(monkeypatch, tmp_path, capsys):
    started = []
    monkeypatch.setattr(commands.subprocess, "run",
                        lambda argv, cwd: started.append((argv[1:], cwd)) or type("Done", (), {"returncode": 5}))
    assert run.main(["longcycle", "--cases", "amp_g1", "--lf"]) == 5
    assert started == [(["-m", "pytest", "-m", "longcycle", "-n", "auto", "--cases", "amp_g1", "--lf"], SHIPPED)]
    monkeypatch.setattr(commands, "SHIPPED", tmp_path)
    assert run.main(["longcycle", "-n", "0"]) == 5
    assert started[1] == (["-m", "pytest", "-m", "longcycle", "-p", "mimickit.longcycle.plugin", "--rootdir=.",
                           f"{tmp_path}/tests/acceptance", "-n", "0"], None)
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert run.main(["longcycle", "--help"]) == run.main(["longcycle"]) == 2
    assert capsys.readouterr().err.count("pip install 'mimickit[test]'") == 2
