import pytest

from mimickit.util.args import Args, parse_tokens
from mimickit.util.failures import AssetMissingError, UserError


def test_first_occurrence_wins_and_command_line_overrides_file(tmp_path):
    file = tmp_path / "case_args.txt"
    file.write_text("# comment line\n--num_envs 4096\n--devices cuda:0 cuda:1   # trailing words here\n"
                    "--num_envs 7\n--x\n")
    argv = f"stray --num_envs 4 --visualize true --num_envs 5 --offset -1.5 --arg_file {file}".split()
    args = Args.from_argv(argv)
    assert args.integer("num_envs") == 4
    assert args.boolean("visualize", False) is True
    assert args.number("offset") == -1.5
    assert args.get("x") == []
    assert args.get("devices") == ["cuda:0", "cuda:1"]  # A1: the comment is no value
    assert list(args.values) == ["num_envs", "visualize", "offset", "arg_file", "devices", "x"]
    assert (args.source["num_envs"], args.source["devices"]) == ("command line", str(file))
    with pytest.raises(UserError, match=r"^'stray' \(command line\) belongs to no flag: flags begin with --"):
        args.check(args.values, ["devices"])


@pytest.mark.parametrize("text", ["--arg_file b.txt\n--mode test\n", "--mode test\n--arg_file b.txt\n"])
def test_an_args_file_cannot_name_another(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_text(text)
    args = Args.from_argv(["--arg_file", str(file)])
    args.check(["arg_file", "mode"], [])
    assert args.remarks == (f"--arg_file b.txt ({file}) is ignored: an args file cannot name another",)
    assert (args.text("mode"), args.text("arg_file")) == ("test", str(file))


@pytest.mark.parametrize(("text", "message"), [
    ("walk\n--mode test\n", "'walk' ({file}) belongs to no flag: flags begin with --"),
    ("--mode test\nwalk\n", "--mode test walk ({file}): takes one value"),
    ("--mod=test\n", "unknown flag --mod ({file}) (did you mean '--mode'?)"),
])
def test_what_is_not_understood_in_args_files(tmp_path, text, message):
    file = tmp_path / "a.txt"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Args.from_argv(["--arg_file", str(file)]).check(["arg_file", "mode"], [])
    assert message.format(file=file) in str(error.value)


def test_other_spellings_of_flags(tmp_path):
    """An equals sign joins a flag and its value; a dash stands for an underscore."""
    (tmp_path / "a.txt").write_text("--test-episodes=5\n--out-dir out\n")
    argv = ["--num-envs", "2", "--set=env.a=1", "env.b=2", "--logger=", f"--arg-file={tmp_path / 'a.txt'}"]
    args = Args.from_argv(argv)
    assert (args.integer("num_envs"), args.integer("test_episodes"), args.text("out_dir")) == (2, 5, "out")
    assert args.get("set") == ["env.a=1", "env.b=2"] and args.text("logger") == ""


def test_args_file_that_is_not_text(tmp_path):
    (tmp_path / "clip.pkl").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(UserError, match=r"clip\.pkl: not a text file"):
        Args.from_argv(["--arg_file", str(tmp_path / "clip.pkl")])


@pytest.mark.parametrize(("argv", "message"), [
    (["args/x_args.txt"], "'args/x_args.txt' (command line) belongs to no flag (did you mean --arg_file "
                          "args/x_args.txt?)"),
    (["train", "now", "--num_envs", "4"], "'train now' (command line) belongs to no flag: flags begin"),
    (["-num_envs", "4"], "'-num_envs 4' (command line) belongs to no flag (did you mean '--num_envs'?)"),
    (["--num_envs", "3", "4"], "--num_envs 3 4 (command line): takes one value"),
    (["--num_env", "3"], "unknown flag --num_env (command line) (did you mean '--num_envs'?); --help lists all"),
])
def test_what_is_not_understood(argv, message):
    with pytest.raises(UserError) as error:
        Args.from_argv(argv).check(["num_envs", "mode", "devices"], ["devices"])
    assert message in str(error.value)
    Args.from_argv(["--num_envs", "3", "--devices", "cpu", "cpu"]).check(["num_envs", "devices"], ["devices"])


def test_values_of_a_repeated_flag_are_dropped():
    found = parse_tokens(["--a", "1", "--b", "2", "--a", "3", "4", "--c", "5"])
    assert found == ({"a": ("1",), "b": ("2",), "c": ("5",)}, [])


@pytest.mark.parametrize("word, expected", [("TRUE", True), ("yes", True), ("T", True), ("0", False), ("off", False)])
def test_boolean_words(word, expected):
    assert Args.from_argv(["--video", word]).boolean("video", not expected) is expected


def test_bare_boolean_is_true_and_default_holds_without_flag():
    assert Args.from_argv(["--video", "--mode", "test"]).boolean("video", False) is True
    assert Args.from_argv([]).boolean("video", True) is True


def test_numbers_in_any_notation():
    args = Args.from_argv(["--a", "2e9", "--b", "100_000", "--c", "9223372036854775807"])
    assert (args.integer("a"), args.integer("b"), args.integer("c")) == (2_000_000_000, 100_000, 2**63 - 1)


@pytest.mark.parametrize("argv, message", [
    (["--num_envs", "many"], "--num_envs many (command line): a number is needed"),
    (["--num_envs", "1.5"], "whole number"),
    (["--num_envs", "0"], "at least 1"),
    (["--num_envs"], "needs a value"),
    (["--num_envs", "nan"], "finite"),
    (["--num_envs", "99999999999999999999"], "--num_envs 99999999999999999999 (command line): must be at most 8192"),
    (["--num_envs", "8193"], "at most 8192"),
    (["--arg_file"], "--arg_file (command line) needs a value"),
])
def test_wrong_numbers_are_named(argv, message):
    with pytest.raises(UserError, match=None) as error:
        Args.from_argv(argv).integer("num_envs", minimum=1, maximum=8192)
    assert message in str(error.value)


def test_misspelt_truth_value_is_an_error():
    with pytest.raises(UserError, match="ture"):
        Args.from_argv(["--video", "ture"]).boolean("video", False)
    assert Args.from_argv(["--video", "true", "film.mp4"]).boolean("video", False) is True


def test_choices():
    with pytest.raises(UserError, match="allowed are train, test"):
        Args.from_argv(["--mode", "trian"]).text("mode", choices=["train", "test"])


def test_missing_args_file():
    with pytest.raises(AssetMissingError, match="args/nothing"):
        Args.from_argv(["--arg_file", "args/nothing_args.txt"])
