"""Model files and checkpoint folders."""

import errno
import json
import random
import threading

import pytest
import torch

from mimickit.util import checkpoint
from mimickit.util.checkpoint import (
    find_latest,
    load_checkpoint,
    load_model,
    resolve_checkpoint,
    save_model,
    to_host,
)
from mimickit.util.distributed import Distributed
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.manifest import describe_file, is_complete, model_problem, write_manifest
from tests.saving import disk_calls, write_checkpoint

ALONE = Distributed.single()


def save(folder, iteration, **more):
    shared = {"agent": {"w": torch.full((3,), float(iteration))}, "iteration": iteration, "note": None}
    return write_checkpoint(folder, iteration, shared, {"x": torch.ones(2)}, manifest=more)


def test_round_trip(tmp_path):
    path = save(tmp_path, 7, num_envs=4)
    assert path.name == "0000000007"
    found = load_checkpoint(path, ALONE)
    assert torch.equal(found.shared["agent"]["w"], torch.full((3,), 7.0))
    assert torch.equal(found.local["x"], torch.ones(2))
    assert (found.manifest["iteration"], found.manifest["world_size"], found.manifest["num_envs"]) == (7, 1, 4)
    assert set(found.manifest["files"]) == {"shared.pt", "rank_0.pt"}


def test_newest_two_are_kept_and_others_are_left_alone(tmp_path):
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    for iteration in (1, 2, 10):
        save(tmp_path, iteration)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["0000000002", "0000000010", "best"]
    assert find_latest(tmp_path).name == "0000000010"


def test_same_iteration_is_replaced(tmp_path):
    save(tmp_path, 3)
    path = save(tmp_path, 3, samples=5)
    assert load_checkpoint(path, ALONE).manifest["samples"] == 5
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0000000003"]


def test_a_checkpoint_waits_for_the_one_before_it(tmp_path, monkeypatch):
    """The first one's files take until somebody waits for them."""
    awaited, original = threading.Event(), checkpoint._save
    writer = checkpoint.CheckpointWriter(tmp_path / "checkpoints", ALONE)

    def slow(path, data):
        assert awaited.wait(20.0)
        return original(path, data)

    class Thread(threading.Thread):
        def join(self, timeout=None):
            awaited.set()
            super().join(timeout)

    monkeypatch.setattr(checkpoint, "_save", slow)
    monkeypatch.setattr(checkpoint.threading, "Thread", Thread)
    first = writer.save(1, {}, {"x": torch.ones(2)}, {})
    try:
        assert not first.exists()
        second = writer.save(2, {}, {"x": torch.zeros(2)}, {})
        assert is_complete(first)
        writer.wait()
        assert is_complete(second)
    finally:
        awaited.set()


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A power cut leaves the old checkpoint or the new one, never a name without its content."""
    calls = disk_calls(monkeypatch)
    path = save(tmp_path, 3)
    aside, folder = path.with_name(".tmp-0000000003"), path.parent
    renamed = calls.index(("rename", aside, path))
    flushed = [place for call, place, *_ in calls[:renamed] if call == "fsync"]
    assert {aside / "shared.pt", aside / "rank_0.pt"} <= set(flushed)
    assert ("fsync", folder) in calls[renamed:]
    manifest = next(i for i, call in enumerate(calls) if call[0] == "replace" and call[2] == aside / "manifest.json")
    assert ("fsync", calls[manifest][1]) in calls[:manifest] and manifest < renamed
def flipped(path, place):
    """``path`` with one bit (number ``place``) the other way round."""
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    """200 of them, over all its files, the manifest and its digest included."""
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    files = sorted(newest.iterdir())
    assert [path.name for path in files] == ["manifest.json", "manifest.json.sha256", "rank_0.pt", "shared.pt"]
    generator = random.Random(1)
    for number in range(200):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flipped(path, generator.randrange(8 * len(whole)))
        assert find_latest(tmp_path).name == "0000000001", path
        path.write_bytes(whole)
    assert find_latest(tmp_path) == newest


def test_no_flipped_bit_of_a_model_goes_unnoticed(tmp_path):
    path = tmp_path / "model.pt"
    save_model(path, {"a": torch.arange(100.0)})
    assert model_problem(path) == "", "nothing is known of it"
    result = {"model_file": "elsewhere/model.pt", "model": describe_file(path)}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert model_problem(path) == ""
    whole, generator = path.read_bytes(), random.Random(1)
    for _ in range(200):
        flipped(path, generator.randrange(8 * len(whole)))
        assert "model.pt is damaged" in model_problem(path)
        path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    assert "model.pt is damaged" in model_problem(path)
    path.rename(tmp_path / "other.pt")
    assert model_problem(tmp_path / "other.pt") == "", "the result is about another file"


@pytest.mark.parametrize("change", [{"rank_1.pt": None}, {"shared.pt": None}, {"rank_0.pt": "gone"}])
def test_every_part_belongs_to_a_checkpoint(tmp_path, change):
    """A manifest that names too few or too many vouches for nothing."""
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    files = {**manifest["files"], **dict.fromkeys(change, manifest["files"]["rank_0.pt"])}
    for name, to in change.items():
        if to == "gone" or name == "shared.pt":
            files.pop(name)
    write_manifest(path, manifest, files)
    assert not is_complete(path) and find_latest(tmp_path) is None


def test_checkpoints_of_older_versions_are_read(tmp_path):
    """They have no digest of the manifest."""
    path = save(tmp_path, 1)
    (path / "manifest.json.sha256").unlink()
    assert find_latest(tmp_path) == path


def test_a_run_that_went_on_from_before_keeps_what_it_writes(tmp_path):
    """Later checkpoints, damaged ones among them, are of a training that this one does not continue."""
    save(tmp_path, 90)
    (save(tmp_path, 100) / "shared.pt").unlink()
    new = save(tmp_path, 12)
    assert find_latest(tmp_path) == new
    save(tmp_path, 13)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000000012", "0000000013"]


@pytest.mark.parametrize(("name", "data"), [
    ("shared.pt", b"x"), ("shared.pt", None), ("manifest.json", b'{"files": {"sha'), ("manifest.json", None)])
def test_damaged_checkpoints_are_passed_over(tmp_path, name, data):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    file.unlink() if data is None else file.write_bytes(data)
    assert find_latest(tmp_path).name == resolve_checkpoint(tmp_path, ALONE).name == "0000000001"


def test_unfinished_folders_are_ignored_and_removed(tmp_path):
    save(tmp_path, 1)
    aside = tmp_path / "checkpoints" / ".tmp-0000000009"
    aside.mkdir()
    assert find_latest(tmp_path).name == "0000000001"
    save(tmp_path, 2)
    assert not aside.exists()


def test_resolve_takes_a_run_folder_or_one_checkpoint(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert resolve_checkpoint(tmp_path, ALONE) == second
    assert resolve_checkpoint(first, ALONE) == first
    with pytest.raises(AssetMissingError, match="no complete checkpoint"):
        resolve_checkpoint(tmp_path / "elsewhere", ALONE)


def test_another_number_of_processes_is_refused(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    write_manifest(path, {**manifest, "world_size": 2}, {**manifest["files"], "rank_1.pt": {}})
    with pytest.raises(UserError, match=r"2 process.*this run has 1.*--model_file"):
        load_checkpoint(path, ALONE)


def test_model_file_is_a_flat_mapping_without_shared_storage(tmp_path):
    flat = torch.arange(1000.0)
    save_model(tmp_path / "model.pt", {"a": flat[10:12], "n": torch.tensor([3])})
    assert (tmp_path / "model.pt").stat().st_size < 3000
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(loaded["a"], torch.tensor([10.0, 11.0]))
    target = {"a": torch.zeros(2), "n": torch.zeros(1, dtype=torch.int64)}
    load_model(tmp_path / "model.pt", target)
    assert torch.equal(target["a"], torch.tensor([10.0, 11.0]))
    assert target["n"].item() == 3


def test_model_that_does_not_fit_changes_nothing(tmp_path):
    save_model(tmp_path / "model.pt", {"a": torch.ones(2), "b": torch.ones(3), "x": torch.ones(1)})
    target = {"a": torch.zeros(2), "b": torch.zeros(4), "c": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model.pt", target)
    message = str(caught.value)
    assert "missing c" in message
    assert "unexpected x" in message
    assert "b has shape (3,), expected (4,)" in message
    assert torch.equal(target["a"], torch.zeros(2))


def test_what_is_said_of_damaged_checkpoints(tmp_path, capsys):
    good, damaged = save(tmp_path, 1), save(tmp_path, 2)
    (damaged / "shared.pt").write_bytes(b"x")
    assert resolve_checkpoint(tmp_path, ALONE) == good
    assert capsys.readouterr().err == f"warning: {damaged} is damaged or incomplete and is passed over\n"
    with pytest.raises(AssetMissingError, match=r"0000000002 is damaged or incomplete: --resume .* continues from"):
        resolve_checkpoint(damaged, ALONE)
    (good / "shared.pt").write_bytes(b"x")
    with pytest.raises(AssetMissingError, match=r"2, .*1 are damaged or incomplete: .*--model_file .*/model\.pt"):
        resolve_checkpoint(tmp_path, ALONE)


def test_unreadable_model_files(tmp_path):
    with pytest.raises(AssetMissingError, match="not found"):
        load_model(tmp_path / "model.pt", {})
    (tmp_path / "model.pt").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a readable model file"):
        load_model(tmp_path / "model.pt", {})
    torch.save({"a": [1, 2]}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="flat mapping"):
        load_model(tmp_path / "model.pt", {})


def test_a_folder_is_no_model_file_and_its_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, not a model file$"):
        load_model(tmp_path, {})
    save_model(tmp_path / "model.pt", {"a": torch.ones(2)})
    with pytest.raises(UserError, match=r"is a folder, not a model file: give .*/model\.pt$"):
        load_model(tmp_path, {})


def test_a_flipped_bit_of_a_model_is_noticed_without_its_result(tmp_path):
    """torch does not look at the checksums that it writes."""
    path = tmp_path / "model.pt"
    save_model(path, {"a": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.pt is damaged: the checksum of .* is wrong"):
        load_model(path, {"a": torch.zeros(1000)})


class Foreign:
    """Something that torch does not unpickle."""


@pytest.mark.parametrize("damage", ["empty", "begun", "half", "end", "last", "foreign"])
def test_what_is_said_about_damaged_files(tmp_path, damage):
    """Every truncation, whatever torch makes of it, is named with its file and without torch's advice."""
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(1000.0), "b": Foreign() if damage == "foreign" else torch.zeros(9)}, path)
    data = path.read_bytes()
    end = {"empty": 0, "begun": 1, "half": len(data) // 2, "end": len(data) - 500, "last": len(data) - 1}
    path.write_bytes(data[:end.get(damage)])
    with pytest.raises(UserError) as caught:
        load_model(path, {})
    message = str(caught.value)
    assert message.startswith(f"{path} is not a readable model file: it is damaged, or not one at all (")
    assert "weights_only" not in message and "trust" not in message and len(message) < len(str(path)) + 280


def test_errors_of_the_disk_are_not_the_files(tmp_path, monkeypatch):
    save_model(tmp_path / "model.pt", {"a": torch.ones(2)})

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(OSError, match="Input/output error"):
        load_model(tmp_path / "model.pt", {})


def test_to_host_copies():
    tensor = torch.zeros(2)
    copied = to_host({"a": [tensor, 1.5], "b": "text"})
    tensor.fill_(1.0)
    assert torch.equal(copied["a"][0], torch.zeros(2))
    assert copied["a"][1] == 1.5
