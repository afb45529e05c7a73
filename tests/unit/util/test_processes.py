"""Programs whose output nobody reads any more."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHATTY = """
import os, sys
from mimickit.util.processes import outlive_reader
outlive_reader()
print("begun", flush=True)
sys.stdin.read()
for stream in (sys.stdout, sys.stderr):
    print("more", file=stream, flush=True)
os.write(1, b"of a library")
open(sys.argv[1], "w").write("done")
"""


def test_a_program_outlives_its_reader(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CHATTY, str(tmp_path / "end")], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(30) == 0
    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.parametrize("program", [["-m", "mimickit"], ["mimickit/run.py"]])
def test_a_closed_pipe_is_no_failure(program):
    with subprocess.Popen([sys.executable, *program, "list"], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
