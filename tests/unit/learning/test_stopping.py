"""Polite stopping: the first signal is noted, a second one ends the process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from mimickit.learning import stopping
from mimickit.learning.stopping import StopSignals

ROOT = Path(__file__).resolve().parents[3]


def test_first_signal_is_noted_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher: the same request
        assert signals
        assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_ends_the_process():
    code = (
        "import os, signal\n"
        "from mimickit.learning import stopping\n"
        "stopping._SAME_REQUEST_S = -1.0\n"
        "with stopping.StopSignals('stopping soon') as signals:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('noted', signals.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("noted 2\n", "stopping soon\n"), "the first one is answered at once"
    assert done.returncode == -signal.SIGINT


def test_other_threads_catch_nothing():
    seen = []

    def work():
        with StopSignals() as signals:
            seen.append(bool(signals))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert stopping._SAME_REQUEST_S > 0
