import re

import pytest

from mimickit.util.args import Args, parse_tokens
from mimickit.util.failures import UserError
from mimickit.util.options import OPTIONS, help_rows


def test_first_occurrence_wins_and_command_line_overrides_file(tmp_path):
    file = tmp_path / "case_args.txt"
    file.write_text("# comment line\n--num_envs 4096\n--devices cuda:0 cuda:1   # trailing words here\n"
                    "--num_envs 7\n--overwrite\n")
    argv = f"stray --num_envs 4 --visualize true --num_envs 5 --output_seconds 1.5 --arg_file {file}".split()
    args = Args.from_argv(argv)
    assert (args["num_envs"], args["visualize"], args["output_seconds"], args["overwrite"]) == (4, True, 1.5, True)
    assert args["devices"] == ("cuda:0", "cuda:1")  # A1: the comment is no value
    assert list(args.values) == ["num_envs", "visualize", "output_seconds", "arg_file", "devices", "overwrite"]
    assert (args.source["num_envs"], args.source["devices"]) == ("command line", str(file))
    with pytest.raises(UserError, match=r"^'stray' \(command line\) belongs to no flag: flags begin with --"):
        args.check()


@pytest.mark.parametrize("text", ["--arg_file b.txt\n--mode test\n", "--mode test\n--arg_file b.txt\n"])
def test_an_args_file_cannot_name_another(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_text(text)
    args = Args.from_argv(["--arg_file", str(file)])
    args.check()
    assert args.remarks == (f"--arg_file b.txt ({file}) is ignored: an args file cannot name another",)
    assert (args["mode"], args["arg_file"]) == ("test", str(file))


@pytest.mark.parametrize(("text", "message"), [
    ("walk\n--mode test\n", "'walk' ({file}) belongs to no flag: flags begin with --"),
    ("--mode test\nwalk\n", "--mode test walk ({file}): takes one value"),
    ("--mod=test\n", "unknown flag --mod ({file}) (did you mean '--mode'?)"),
])
def test_what_is_not_understood_in_args_files(tmp_path, text, message):
    file = tmp_path / "a.txt"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Args.from_argv(["--arg_file", str(file)]).check()
    assert message.format(file=file) in str(error.value)


def test_other_spellings_of_flags(tmp_path):
    """An equals sign joins a flag and its value; a dash stands for an underscore."""
    (tmp_path / "a.txt").write_text("--test-episodes=5\n--out-dir out\n")
    argv = ["--num-envs", "2", "--set=env.a=1", "env.b=2", "--logger=", f"--arg-file={tmp_path / 'a.txt'}"]
    args = Args.from_argv(argv)
    assert (args["num_envs"], args["test_episodes"], args["out_dir"]) == (2, 5, "out")
    assert args["set"] == ("env.a=1", "env.b=2") and args.values["logger"] == ("",)


@pytest.mark.parametrize(("argv", "message"), [
    (["args/x_args.txt"], "'args/x_args.txt' (command line) belongs to no flag (did you mean --arg_file "
                          "args/x_args.txt?)"),
    (["train", "now", "--num_envs", "4"], "'train now' (command line) belongs to no flag: flags begin"),
    (["--num_env", "3"], "unknown flag --num_env (command line) (did you mean '--num_envs'?); mimickit train --"),
])
def test_what_is_not_understood(argv, message):
    with pytest.raises(UserError) as error:
        Args.from_argv(argv).check()
    assert message in str(error.value)
    Args.from_argv(["--num_envs", "3", "--devices", "cpu", "cpu"]).check()


def test_values_of_a_repeated_flag_are_dropped():
    found = parse_tokens(["--a", "1", "--b", "2", "--a", "3", "4", "--c", "5"])
    assert found == ({"a": ("1",), "b": ("2",), "c": ("5",)}, [])


@pytest.mark.parametrize("word, expected", [("TRUE", True), ("yes", True), ("T", True), ("0", False), ("off", False)])
def test_boolean_words(word, expected):
    assert Args.from_argv(["--video", word])["video"] is expected


def test_a_bare_boolean_is_true_and_defaults_hold_without_a_flag():
    args = Args.from_argv(["--video", "--resume"])
    assert args["video"] is True and args["resume"] is None and "resume" in args
    assert (args["visualize"], args["overwrite"], args["num_envs"], args["mode"]) == (True, False, 1, "train")
    assert args["devices"] is None and args["set"] == ()


def test_numbers_in_any_notation():
    args = Args.from_argv(["--max_iters", "2e9", "--num_envs", "100_000", "--max_samples", "9223372036854775807"])
    assert (args["max_iters"], args["num_envs"], args["max_samples"]) == (2_000_000_000, 100_000, 2**63 - 1)
    assert all(isinstance(args[flag], int) for flag in args.values)


@pytest.mark.parametrize("argv, message", [
    (["--video_width", "many"], "--video_width many (command line): a number is needed"),
    (["--video_width", "64.5"], "whole number"),
    (["--video_width", "0"], "at least 64"),
    (["--video_width"], "--video_width (command line): needs a value"),
    (["--video_width", "nan"], "finite"),
    (["--video_width", "99999999999999999999"],
     "--video_width 99999999999999999999 (command line): must be at most 8192"),
    (["--video_width", "8193"], "at most 8192"),
    (["--video_width", "64", "65"], "--video_width 64 65 (command line): takes one value"),
    (["--output_seconds", "-1"], "--output_seconds -1 (command line): must be at least 0"),
])
def test_wrong_values_are_named(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Args.from_argv(argv).check()


def test_the_table_is_sound():
    """Defaults keep to their own rules, and every option is told of."""
    for name, option in OPTIONS.items():
        if option.default is not None and not option.many:
            assert option.parse([str(option.default)]) == option.default, name
        assert option.help and not option.help.endswith("."), name
        assert (option.low is None and option.high is None) or option.kind in (int, float), name
    text = "\n".join(help_rows(OPTIONS))
    assert all(f"  --{name} {option.usage}" in text for name, option in OPTIONS.items())
    assert "  --num_envs N [a few]" in help_rows(["num_envs"], {"num_envs": "a few"})[0]
