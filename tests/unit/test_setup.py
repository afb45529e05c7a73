"""tools/setup.sh shows that it goes on: around a stand-in for Python, which installs nothing."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;
  *"-m pip"*) echo "Collecting $*"; printf '\\033[1m  Downloading torch (532 MB)\\n';
    end=$(($(wc -l < ticks) + $(cat pip_ticks)))
    while [ "$(wc -l < ticks)" -lt "$end" ]; do /bin/sleep 0.02; done
    [ ! -e broken ];;
  -V) echo "Python 3.11";;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Command and environment of a set-up in which a second takes 5 ms; ``pip_ticks``: how many pip works."""
    tools = {"python": PYTHON, "sleep": "#!/bin/sh\necho >>ticks; exec /bin/sleep 0.005\n",
             "ldconfig": "#!/bin/sh\necho libEGL.so.1 libGL.so.1 libEGL_nvidia.so\n"}
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "pip_ticks").write_text("5")
    (tmp_path / "ticks").touch()
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python",
                   "VENV": "venv", "TMPDIR": str(tmp_path)}
    return {"args": ["sh", str(ROOT / "tools/setup.sh")], "cwd": tmp_path, "env": environment}


def test_a_log_file_gets_a_line_a_minute_and_no_control_characters(setup, tmp_path):
    (tmp_path / "pip_ticks").write_text("65")
    done = subprocess.run(**setup, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "setup: done"
    assert done.stdout.replace("\n", "").isprintable()
    assert any(line.startswith("setup: torch (some minutes the first time), 0:59  ") for line in lines), lines
    assert sum(": done in " in line for line in lines) == 4 and len(lines) < 12, "quiet"
    assert not list(tmp_path.glob("mimickit-setup.*"))


def test_a_terminal_gets_a_line_that_renews_itself(setup):
    leader, follower = pty.openpty()
    process = subprocess.Popen(**setup, stdout=follower, stderr=follower, start_new_session=True)
    os.close(follower)
    text = ""
    while "setup: done" not in text:
        text += os.read(leader, 4096).decode()
    assert process.wait(10) == 0
    os.close(leader)
    assert "\r\x1b[Ksetup: torch (some minutes the first time), 0:0" in text and "Downloading torch (532 MB)" in text
    assert max(len(part) for line in text.split("\n") for part in line.split("\r")) <= 79 + len("\x1b[K")


def test_a_failure_shows_the_end_of_the_log(setup, tmp_path):
    (tmp_path / "broken").touch()
    done = subprocess.run(**setup, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "setup: done\n" not in done.stdout
    assert "setup: torch (some minutes the first time): failed" in done.stderr
    assert "Downloading torch (532 MB)" in done.stderr
