"""Pages of results: ``mimickit report``."""

import json
import re
import tarfile

import av
import numpy as np
import pytest
from PIL import Image

from mimickit import run
from mimickit.longcycle import page as results
from mimickit.longcycle.ledger import read_events
from mimickit.util.files import write_tsv

CASE = "deepmimic_humanoid_ppo"


def test_help(capsys):
    assert run.main(["report", "--help"]) == 0 and "usage: mimickit report ROOT" in capsys.readouterr().out


def film(path, frames=30):
    """A blue box walks over grey ground."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            picture = np.full((240, 320, 3), 130, np.uint8)
            picture[100:140, 40 + 4 * i:60 + 4 * i] = (40, 60, 220)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def tsv(path, rows):
    write_tsv(path, list(dict.fromkeys(name for row in rows for name in row)), rows)


@pytest.fixture
def root(tmp_path):
    """One case that passed with two attempts, one that failed early, one that never ran."""
    folder = tmp_path / "output/train/nightly"
    names = (CASE, "amp_g1", "view_motion_g1")
    folder.mkdir(parents=True)
    tsv(folder / "case_manifest.tsv", [{"case": f"{n}_args.txt", "method": n.split("_")[0]} for n in names])
    tsv(folder / "best_by_case.tsv", [
        {"case": f"{CASE}_args.txt", "method": "deepmimic", "variant": "default", "num_envs": 8, "probe_elapsed_s": 2.5,
         "long_elapsed_s": 100, "samples": 30000128, "samples_per_s": 346138.2, "test_return": 9.1,
         "test_episode_length": 20.5, "test_episodes": 10, "gate_verdict": "pass", "final_ok": 1, "note": "ok",
         "session": "one"},
        {"case": "amp_g1_args.txt", "method": "amp", "variant": "default", "num_envs": 8, "probe_elapsed_s": 4,
         "gate_verdict": "missing", "final_ok": 0, "note": "nan_in_probe_train", "message": "see /home/x/output/y.log",
         "session": "two"},
    ])
    (folder / "environments").mkdir()
    for name, more, day in (("two", ["--lf"], 24), ("one", [], 23), ("all_reused", ["--seed"], 25)):
        (folder / f"environments/{name}.json").write_text(json.dumps({
            "time": f"2026-11-{day}T07:14:39", "profile": "full", "devices": ["cuda:0"], "gpus": ["H200"],
            "git_commit": f"{name}3c0ffee", "cuda_visible_devices": "GPU-0a1b2c3d-4e5f-6071,GPU-1",
            "versions": {"torch": "2.13.0"},
            "command": ["/home/me/x/.venv/bin/pytest", "-m", "longcycle", "--root-out", f"nightly_{name}", *more],
            "runner": ["/home/me/x/.venv/bin/python", "mimickit/run.py"]}))
    for envs in (16, 8):
        attempt = folder / f"runs/{CASE}_args/default_e{envs}"
        for stage, start in (("probe_train", 0), ("long_train", 1000)):
            (attempt / stage).mkdir(parents=True)
            (attempt / stage / "log.txt").write_text(
                f"Samples Test_Return Test_Episode_Length\n{start + 10} 1 {envs}\n{start + 20} 3 {envs + 1}\n")
    (folder / f"runs/{CASE}_args/attempts.json").write_text(json.dumps({"attempts": [
        {"variant": "default", "num_envs": 16, "devices": ["cuda:1"]},
        {"variant": "default", "num_envs": 8, "devices": ["cuda:1", "cuda:0"], "log": "/home/me/x/output/l"}]}))
    (attempt / "test.json").write_text(json.dumps({
        "test_return": 9.1, "measures": {"coverage_err": 0.4}, "statistics": {
            "return": {"mean": 9.52, "ci95": 0.081, "episodes": 1024},
            "survival": {"mean": 0.25, "ci95": 0.02, "episodes": 1024}}}))
    film(attempt / "viz.mp4")
    return folder


def test_a_page_of_results(root, tmp_path, capsys):
    out = tmp_path / "results"
    assert results.main([str(root), "--out", str(out)]) == 0
    assert "2 of 3 cases, 1 film strips, 1 pictures of curves" in capsys.readouterr().out
    page = (out / "README.md").read_text()
    assert page.startswith("# results: 1 of 3 cases passed\n")
    assert page.index("commit one3c0ffee") < page.index("--root-out nightly_one\n") < page.index(
        "2026-11-24, profile `full`, devices cuda:0 (H200), torch 2.13.0, commit two3c0ffee")
    assert "--root-out nightly_two\n" in page and "--seed" not in page
    assert ("| deepmimic_humanoid_ppo | yes | default_e8 on 2 devices | 30,000,128 | 346,138 | 9.52 ± 0.081 | 20.5 "
            "| 1024 | survival 0.25 ± 0.02, coverage_err 0.4 | pass | 102 |") in page
    assert "| amp_g1 | no: nan_in_probe_train | default_e8 | - | - | - | - |  |  | missing | 4 |" in page
    assert "| view_motion_g1 | not run |" in page and "1 of 3 cases have no recorded end" in page
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (out / target).is_file(), target
    everything = "".join(path.read_text() for path in out.rglob("*") if path.suffix in (".md", ".json", ".tsv"))
    assert json.loads((out / "environments.json").read_text())[0]["cuda_visible_devices"] == "GPU,GPU"
    assert "/home" not in everything and "see output/y.log" in everything
    assert json.loads((out / "attempts" / f"{CASE}.json").read_text())["attempts"][1]["log"] == "output/l"


def test_the_strip_shows_the_character_on_its_way(root, tmp_path):
    results.main([str(root), "--out", str(tmp_path), "--pictures", "3"])
    strip = np.asarray(Image.open(tmp_path / f"pictures/{CASE}.jpg").convert("RGB")).astype(int)
    assert (tmp_path / f"pictures/{CASE}.jpg").stat().st_size <= results.STRIP_BYTES
    blue = strip[..., 2] - strip[..., 0] > 60
    cells = np.array_split(blue, 3, axis=1)
    assert all(cell.mean() > 0.02 for cell in cells), "cropped to what moves"
    places = [np.flatnonzero(cell.any(axis=0)).mean() / cell.shape[1] for cell in cells]
    assert places[0] < 0.25 < places[1] < 0.75 < places[2]


def test_both_attempts_are_drawn(root):
    runs = results.read_runs(root / f"runs/{CASE}_args")
    assert [run.label for run in runs] == ["default_e16", "default_e8"]
    assert runs[1].column("Samples").tolist() == [10, 20, 1010, 1020]
    row = results.curve_row(runs, CASE)
    assert [(panel.column, len(panel.runs)) for panel in row] == [("Test_Return", 2), ("Test_Episode_Length", 2)]


def test_what_is_no_film_gives_no_strip(tmp_path):
    (tmp_path / "viz.mp4").write_text("no film")
    assert not results.film_strip(tmp_path / "viz.mp4", tmp_path / "strip.jpg", 7)
    assert not results.film_strip(tmp_path / "none.mp4", tmp_path / "strip.jpg", 7)
    assert not (tmp_path / "strip.jpg").exists()


def test_not_a_root(tmp_path, capsys):
    assert results.main([str(tmp_path)]) == 2
    assert "no case_manifest.tsv there" in capsys.readouterr().err


def test_records_are_a_root(root, tmp_path):
    """Unpacked they give the same page, with the pictures that are there."""
    event = {"event": "session_start", "time": 1.0, "cases": [], "folder": "/home/me/x/output/train/nightly"}
    (root / "ledger.jsonl").write_text(json.dumps(event) + '\n{"event": "stage_')  # a power cut
    (root / f"runs/{CASE}_args/default_e8/long_train.log").write_text("much")
    results.main([str(root), "--out", str(tmp_path / "first")])
    with tarfile.open(tmp_path / "first/records.tar.xz") as archive:
        archive.extractall(tmp_path / "other", filter="data")
    copy = tmp_path / "other" / root.name
    assert [event["folder"] for event in read_events(copy / "ledger.jsonl")] == ["output/train/nightly"]
    assert not [*copy.rglob("*.mp4"), *copy.rglob("*.log")]
    page = (tmp_path / "first/README.md").read_text()
    results.main([str(copy), "--out", str(tmp_path / "first")])
    assert (tmp_path / "first/README.md").read_text() == page and f"pictures/{CASE}.jpg" in page
    results.main([str(copy), "--out", str(tmp_path / "second")])
    assert "pictures/" not in (tmp_path / "second/README.md").read_text()
