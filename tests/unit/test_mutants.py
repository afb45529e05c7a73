"""The list of mutations stays one of the code as it is."""

import pytest

from tests.mutants.run import Mutant, load_mutants, problem


def test_most_mutants_can_still_be_made():
    """Code changes, so a few may be out of date; ``tests/mutants/run.py --check`` names them."""
    mutants = load_mutants()
    assert len(mutants) > 100
    assert {mutant.area for mutant in mutants} == {"learning", "envs", "anim", "engines", "util", "suite"}
    assert all(mutant.old != mutant.new and mutant.tests for mutant in mutants)
    stale = [f"{mutant.name}: {why}" for mutant in mutants if (why := problem(mutant))]
    assert len(stale) <= len(mutants) // 10, stale


def test_what_is_out_of_date_is_told(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\ny = 2\n")
    (tmp_path / "test_a.py").touch()

    def told(file="a.py", old="y = 2", tests=("test_a.py",)):
        return problem(Mutant("m", "util", file, old, "z", tests), tmp_path)

    assert told() == ""
    assert told(old="y = 3") == "its old text occurs 0 times in a.py"
    assert told(old="x = 1") == "its old text occurs 2 times in a.py"
    assert told(file="b.py") == "no such file: b.py" and told(tests=("test_b.py",)) == "no such file: test_b.py"


def test_a_name_stands_once(tmp_path):
    entry = '[[mutant]]\nname = "m"\narea = "util"\nfile = "a"\nold = "b"\nnew = "c"\ntests = ["d"]\n'
    (tmp_path / "list.toml").write_text(entry * 2)
    with pytest.raises(ValueError, match="named twice: m"):
        load_mutants(tmp_path / "list.toml")
