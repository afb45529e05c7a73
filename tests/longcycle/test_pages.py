"""Pages without a browser: what is read from a root, what is written, served and committed."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request

import av
import numpy as np
import pytest
from PIL import Image

from mimickit.longcycle.ledger import read_events
from mimickit.longcycle.results import cli, committed, history, machine
from mimickit.longcycle.results.data import Root, log_tail
from mimickit.longcycle.results.live import SHARE, LivePage
from mimickit.longcycle.results.pages import STATIC, ReportPage
from mimickit.longcycle.results.serve import make_server
from mimickit.longcycle.settings import load_targets
from mimickit.util.files import write_json
from tests.longcycle.conftest import CASES, HEAVY, ROOT, TRAINED
from tests.longcycle.made_root import make_root, page_data

BOUND = load_targets()[TRAINED].gates[0].bound  # of the return


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
    return path


@pytest.fixture
def root(tmp_path):
    """One case that failed, two that passed; with films."""
    return make_root(tmp_path / "night", CASES, film=film(tmp_path / "film.mp4"), failing=[TRAINED])


def test_a_page_says_what_the_records_say(root, tmp_path, capsys):
    assert cli.main([str(root)]) == 0
    assert capsys.readouterr().out == f"page: {root}/index.html\n"
    index = (root / "index.html").read_text()
    assert "<strong>2</strong><span>/3</span> passed" in index and "gate in test" in index
    assert all((root / "page" / name).is_file() for name in STATIC)
    name, parts, charts = page_data(root, TRAINED)
    assert name == TRAINED and f"test return</strong> has to be &gt;= {BOUND:g}" in parts["gates"]
    assert f"✓ holds</span>: {1.2 * BOUND:g} ± {0.0036 * BOUND:.2g} (1024 episodes)" in parts["gates"]
    assert "the best of the grey ones reaches" in parts["gates"] and "where the bound comes from" in parts["gates"]
    assert f"--cases {TRAINED} --root-out {TRAINED}_again --longcycle-profile full --rand-seed 1" in parts["again"]
    assert "git checkout c0ffee" in parts["again"] and "0:20" in parts["stages"]
    assert charts[0]["title"] == "return of evaluations" and len(charts[0]["data"]) == 2
    assert len(charts[0]["data"][0]) == 40 and charts[0]["series"][0]["label"] == "tuned_e4096"


def test_films_are_linked_in_the_root_and_copied_out_of_it(root, tmp_path, capsys):
    assert cli.main([str(root)]) == 0 and cli.main([str(root), "--out", str(tmp_path / "out")]) == 0
    original = next(root.glob(f"runs/{TRAINED}_args/*/viz.mp4"))
    assert (root / f"page/films/{TRAINED}.mp4").stat().st_ino == original.stat().st_ino
    copy = tmp_path / f"out/page/films/{TRAINED}.mp4"
    assert copy.stat().st_ino != original.stat().st_ino and copy.read_bytes() == original.read_bytes()
    film(original, frames=10)  # filmed again
    assert cli.main([str(root), "--out", str(tmp_path / "out")]) == 0 and copy.read_bytes() == original.read_bytes()


def test_nothing_of_the_machine_is_published(tmp_path, capsys):
    root = make_root(tmp_path / "night", CASES, failing=[TRAINED], message="see /home/me/x/output/y.log",
                     log="on GPU-0a1b", about={"gpus": ["H200 GPU-0a1b2c3d-4e5f"], "driver": "/home/me/x/tools/z"})
    cli.main([str(root), "--out", str(tmp_path / "out")])
    everything = "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".html", ".js"))
    assert "/home" not in everything and "0a1b" not in everything and "see output/y.log" in everything


def test_mistakes_are_said(tmp_path, capsys):
    root = str(make_root(tmp_path / "night", CASES))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    for words, text in (([], "name a root"), (["nowhere"], "no recorded results"),
                        ([root, root, "--out", "x"], "given twice"),
                        ([root, str(make_root(tmp_path / "b", CASES))], "--out DIR is missing"),
                        ([root, "--out", str(tmp_path / "mine")], "holds other files"),
                        ([root, "--serve", "--port", "99999"], "cannot serve there"),
                        (["--commit", str(tmp_path / "none")], "name a root to begin with"),
                        ([root, "--commit", "x", "--serve"], "--commit takes one root")):
        assert cli.main(words) == 2, words
        assert text in capsys.readouterr().err


def test_a_root_that_is_gone_or_read_only_is_said(root, tmp_path, monkeypatch, capsys):
    page = ReportPage([Root(root)], root)
    server = make_server(root, page.write, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        assert urllib.request.urlopen(address).status == 200
        monkeypatch.setattr("mimickit.longcycle.results.serve.FRESH", 0.0)
        shutil.rmtree(root)
        with pytest.raises(urllib.error.HTTPError, match="503") as gone:
            urllib.request.urlopen(address)
        assert "no ledger.jsonl" in gone.value.read().decode() and not root.exists()
    finally:
        server.shutdown()
        server.server_close()

    def refuses(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    make_root(root, CASES)
    monkeypatch.setattr("mimickit.longcycle.results.pages.write_text", refuses)
    assert cli.main([str(root)]) == 2
    assert capsys.readouterr().err.endswith("(Read-only file system): give --out DIR\n")


def test_the_transfer_stands_beside_the_test(root):
    attempt = next(root.glob(f"runs/{TRAINED}_args/*/"))
    assert cli.main([str(root)]) == 0 and "transfer" not in page_data(root, TRAINED)[1]["statistics"]
    write_json(attempt / "transfer.json", {"statistics": {
        "length": {"mean": 297.5, "ci95": 3.1, "episodes": 64}, "survival_disturbed": {"mean": 0.81, "episodes": 64}}})
    assert cli.main([str(root)]) == 0
    text = page_data(root, TRAINED)[1]["statistics"]
    assert "plain MuJoCo, of 64 episodes" in text and re.search(r'>length<.*?>297.5</td><td class="n">3.1<', text)
    assert re.search(r'>survival disturbed</th><td class="n"></td><td class="n"></td><td class="n">0.81<', text)
    assert "survival_disturbed" not in history.night_of(Root(root), whole=True).cases[TRAINED].measures, "of the test"


def test_no_heavy_library_is_loaded(root):
    code = ("import sys; from mimickit.longcycle.results import cli, history, trends, notify, serve, bisect\n"
            f"cli.main(sys.argv[1:]); print([name for name in {(*HEAVY, 'matplotlib')!r} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_a_page_costs_a_session_less_than_half_a_percent(root):
    """A write that is slow is followed by a pause that is long enough; one of this root is fast."""
    page = LivePage(root, lambda: (60.0, {}))
    assert page.write() and page.writes == 1
    before = page.cpu_s
    for _ in range(5):
        assert page.write()
    assert (page.cpu_s - before) / 5 < 0.1 and SHARE < 0.005


def test_a_page_that_cannot_be_written_stops_nobody(root, capfd):
    page = LivePage(root, lambda: (60.0, {}))
    (root / "page").write_text("in the way")
    assert not page.write() and not page.write(), "the session goes on, and the page is tried again"
    assert capfd.readouterr().err.count("the page cannot be written") == 1
    (root / "page").unlink()
    assert page.write() and (root / "page/live.js").is_file()


def test_ends_of_logs(tmp_path):
    log = tmp_path / "long.log"
    lines = b"".join(b"line %d\n" % i for i in range(5000))
    log.write_bytes(lines + b"10%\r20%\r30%\n\x1b[31mred\x1b[0m \xff\x00end\n")
    assert log_tail(log).endswith("line 4999\n30%\nred \N{REPLACEMENT CHARACTER}end") and len(log_tail(log)) < 6500
    assert log_tail(tmp_path / "none.log") == ""


NVIDIA_SMI = {  # answers as drivers give them: exit code, output, what the page shows
    "two": (0, "0, NVIDIA H200, 97, 38912, 143771\n1, NVIDIA H200, 0, 0, 143771\n",
            ["GPU 0, NVIDIA H200 97 % busy 38.0 of 140 GiB", "GPU 1, NVIDIA H200 0 % busy 0.0 of 140 GiB"]),
    "divided by MIG": (0, "0, NVIDIA A100-SXM4-80GB, [N/A], 12345, 81920\n",
                       ["GPU 0, NVIDIA A100-SXM4-80GB not told 12.1 of 80 GiB"]),
    "MIG, not allowed": (0, "0, NVIDIA A100-SXM4-80GB, [N/A], [Insufficient Permissions], 81920\n",
                         ["GPU 0, NVIDIA A100-SXM4-80GB not told ? of 80 GiB"]),
    "shares the host's memory": (0, "0, NVIDIA GB10, 12, [N/A], [N/A]\n", ["GPU 0, NVIDIA GB10 12 % busy not told"]),
    "old": (0, "0, Tesla K80, [Not Supported], 11, 11441\n", ["GPU 0, Tesla K80 not told 0.0 of 11 GiB"]),
    "one is lost": (0, "0, NVIDIA H200, 97, 38912, 143771\n1, [GPU is lost], ERR!, [Unknown Error], 143771\n",
                    ["GPU 0, NVIDIA H200 97 % busy 38.0 of 140 GiB", "GPU 1, [GPU is lost] not told ? of 140 GiB"]),
    "none": (6, "No devices were found\n", ["nvidia-smi gives no answer"]),
    "a sentence, and success": (0, "No devices were found\n\n", ["nvidia-smi gives no answer"]),
    "no driver": (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
                  "latest NVIDIA driver is installed and running.\n", ["nvidia-smi gives no answer"]),
    "half updated": (18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n",
                     ["nvidia-smi gives no answer"]),
    "torn": (0, "0, NVIDIA H200, 97\n1, NVI", ["nvidia-smi gives no answer"]),
    "no text": (0, "\\0377\\0376", ["nvidia-smi gives no answer"]),
}


@pytest.mark.parametrize("answer", NVIDIA_SMI)
def test_whatever_nvidia_smi_answers_the_page_shows(root, tmp_path, monkeypatch, capfd, answer):
    code, text, shown = NVIDIA_SMI[answer]
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    (tmp_path / "answer").write_text(text)
    program.write_text(f"#!/bin/sh\nprintf '%b' \"$(cat {tmp_path}/answer)\"\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert LivePage(root, lambda: (60.0, {})).write(), capfd.readouterr().err
    html = re.search(r'"machine":"((?:[^"\\]|\\.)*)"', (root / "page/live.js").read_text())[1]
    words = " ".join(re.sub(r"<[^>]*>", " ", json.loads(f'"{html}"')).split())
    assert all(line in words for line in shown), words
    assert words.count("not told") + words.count("?") == sum(line.count("not told") + line.count("?") for line in shown)
    assert "Processor" in words


def test_a_machine_that_tells_nothing_is_shown_without_it(root, tmp_path, monkeypatch, capfd):
    """No nvidia-smi, one that hangs, no /proc/meminfo."""
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "none")
    monkeypatch.setenv("PATH", "")
    assert machine.Machine().look()["gpus"] == [] and not machine.Machine().look()["silent"]
    assert LivePage(root, lambda: (60.0, {})).write(), capfd.readouterr().err

    def hangs(command):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(machine, "output", hangs)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    look = machine.Machine().look()
    assert look["silent"] and look["memory"] is None and look["load"] >= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme):
    """Every text colour on every background that it stands on: 4.5 to 1, as WCAG AA asks for."""
    css = (ROOT / "mimickit/longcycle/results/static/page.css").read_text().split("prefers-color-scheme: dark")
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css[0]))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css[1].split("}")[0]))

    def luminance(name):
        parts = [int(colors[name][i:i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    texts = ("ink", "quiet", "good", "bad", "busy", "warn", "link")
    pairs = [(text, back) for text in texts for back in ("paper", "card")]
    for text, back in [*pairs, ("good", "good-bg"), ("bad", "bad-bg"), ("busy", "busy-bg"), ("warn", "warn-bg")]:
        light, dark = sorted((luminance(text), luminance(back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


def test_the_committed_page_is_what_its_data_say(tmp_path):
    folder = ROOT / "docs/results"
    (tmp_path / "data").symlink_to(folder / "data")
    committed.write_page(tmp_path)
    assert (tmp_path / "README.md").read_text() == (folder / "README.md").read_text(), \
        "make it anew: mimickit report --commit docs/results"
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (folder / "README.md").read_text()):
        assert (folder / target).is_file(), target


def test_the_strip_shows_the_character_on_its_way(tmp_path):
    assert committed.film_strip(film(tmp_path / "viz.mp4"), tmp_path / "strip.jpg", 3)
    strip = np.asarray(Image.open(tmp_path / "strip.jpg").convert("RGB")).astype(int)
    assert (tmp_path / "strip.jpg").stat().st_size <= committed.STRIP_BYTES
    blue = strip[..., 2] - strip[..., 0] > 60
    cells = np.array_split(blue, 3, axis=1)
    assert all(cell.mean() > 0.02 for cell in cells), "cropped to what moves"
    places = [np.flatnonzero(cell.any(axis=0)).mean() / cell.shape[1] for cell in cells]
    assert places[0] < 0.25 < places[1] < 0.75 < places[2]


def test_what_is_no_film_gives_no_strip(tmp_path):
    (tmp_path / "viz.mp4").write_text("no film")
    assert not committed.film_strip(tmp_path / "viz.mp4", tmp_path / "strip.jpg", 7)
    assert not committed.film_strip(tmp_path / "none.mp4", tmp_path / "strip.jpg", 7)
    assert not (tmp_path / "strip.jpg").exists()


def test_committed_records_are_a_root(root, tmp_path, capsys):
    """Unpacked they have the same cases and numbers; no log and no film is among them."""
    with (root / "ledger.jsonl").open("a") as file:
        file.write('{"event": "stage_')  # a power cut
    for _ in range(2):  # the second time nothing is added
        assert cli.main([str(root), "--commit", str(tmp_path / "results")]) == 0
    assert "1 roots, 3 cases, 3 film strips" in capsys.readouterr().out
    page = (tmp_path / "results/README.md").read_text()
    line = rf"\| {TRAINED} \| return \| >= {BOUND:g} \| [\d.]+ \| A {1.2 * BOUND:g} ± [\d.]+ \*failed\* \|"
    assert re.search(line, page)
    assert "data/curves/deepmimic.png" in page
    with tarfile.open(tmp_path / "results/data/records.tar.xz") as archive:
        archive.extractall(tmp_path / "other", filter="data")
    copy = tmp_path / "other/night"
    assert not [*copy.rglob("*.mp4"), *copy.rglob("*.log")]
    assert [event["event"] for event in read_events(copy / "ledger.jsonl")][-1] == "session_end"
    first, second = Root(root), Root(copy)
    assert [first.entry(case).status for case in first.cases] == [second.entry(case).status for case in second.cases]
    assert first.entry(TRAINED).statistics() == second.entry(TRAINED).statistics()
