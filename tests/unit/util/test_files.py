"""Files that are never half written."""

import pytest

from mimickit.util.files import atomic_path, read_json, write_json, write_text
from tests.saving import disk_calls


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    calls = disk_calls(monkeypatch)
    path = tmp_path / "new" / "a.txt"
    write_text(path, "content")
    (_, temporary, target) = calls[1]
    assert calls == [("fsync", temporary), ("replace", temporary, path), ("fsync", path.parent)]
    assert target == path and temporary.parent == path.parent
    assert path.read_text() == "content" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_does_not_know_become_words(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": float("nan"), "b": [float("-inf"), 1.5], 3: (tmp_path, None)})
    assert read_json(path) == {"a": "nan", "b": ["-inf", 1.5], "3": [str(tmp_path), None]}
    path.write_text("[1]")
    assert read_json(path) == read_json(tmp_path / "none.json") == {}
