"""A small project around the fake trainer, in which the real suite runs in a pytest of its own."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CASES = ("deepmimic_humanoid_ppo", "dof_test_humanoid", "view_motion_humanoid")
TRAINED = "deepmimic_humanoid_ppo"
HEAVY = ("torch", "warp", "newton", "mujoco", "pyglet")
INNER_SECONDS = 240.0  # longer than any inner pytest takes, shorter than pytest.ini allows a test
SMALL = {"probe_timeout": 60, "long_timeout": 60, "test_timeout": 60, "viz_timeout": 60, "env_ladder": [8],
         "long_max_samples": 1000, "hang_seconds": 20, "transfer_episodes": 0}

INI = """[pytest]
testpaths = tests
timeout = 600
timeout_method = thread
markers =
    longcycle: a case
addopts = -m "not longcycle" --strict-markers --runner "{python} -S fake_trainer.py"
    --longcycle-profiles profiles.yaml --longcycle-targets targets.yaml
"""
CONFTEST = f"""import sys
pytest_plugins = ["mimickit.longcycle.plugin"]
def pytest_unconfigure(config):
    open("heavy.txt", "w").write(" ".join(name for name in {HEAVY!r} if name in sys.modules))
"""


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works():
    """A background job of a shell script ignores SIGINT, and so would all it starts: the sessions that get one here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Project:
    """The inner project: its folder, its pytest runs, the files they leave."""

    def __init__(self, pytester: pytest.Pytester, sample_videos: Path) -> None:
        self.pytester, self.path = pytester, pytester.path
        self.sessions: list[subprocess.Popen] = []
        pytester.popen = functools.partial(self._popen, pytester.popen)
        for folder in ("tests/acceptance", "tests/unit", "data/envs", "data/agents", "data/engines"):
            (self.path / folder).mkdir(parents=True)
        shutil.copytree(ROOT / "args", self.path / "args", ignore=lambda _, names: [
            name for name in names if name.removesuffix("_args.txt") not in CASES])
        (self.path / "pytest.ini").write_text(INI)
        (self.path / "conftest.py").write_text(CONFTEST)
        shutil.copy(ROOT / "tests/acceptance/test_longcycle.py", self.path / "tests/acceptance")
        shutil.copy(Path(__file__).with_name("fake_trainer.py"), self.path)
        (self.path / "tests/unit/test_other.py").write_text("import torch_is_not_here\n")
        for name in ("deepmimic_humanoid", "dof_test_humanoid", "view_motion_humanoid"):
            (self.path / f"data/envs/{name}_env.yaml").write_text("char_file: data/char.xml\nmotion_file: data/a.pkl\n")
        (self.path / "data/char.xml").write_text("<mujoco/>")
        (self.path / "data/engines/newton_engine.yaml").write_text("engine_name: newton\nenv_spacing: 5\n")
        (self.path / "data/agents/deepmimic_humanoid_ppo_agent.yaml").write_text("steps_per_iter: 32\n")
        for video in sample_videos.iterdir():
            shutil.copy(video, self.path)
        self.profiles(**SMALL)
        shutil.copy(ROOT / "tests/acceptance/targets.yaml", self.path)

    def profiles(self, **changes: object) -> None:
        data = yaml.safe_load((ROOT / "tests/acceptance/profiles.yaml").read_text())
        for profile in data["profiles"].values():
            profile.update({**SMALL, **changes})
        (self.path / "profiles.yaml").write_text(yaml.safe_dump(data))

    def rules(self, *rules: dict) -> None:
        (self.path / "fake.json").write_text(json.dumps(rules))

    def add_cases(self, *names: str) -> None:
        """More cases; what their configurations name is missing, which the fake trainer does not mind."""
        for name in names:
            shutil.copy(ROOT / f"args/{name}_args.txt", self.path / "args")

    def run(self, *options: str) -> pytest.RunResult:
        """Run the inner suite to its end, in this process where it needs none of its own: that saves most of its time.

        Workers and a changed conftest.py need one, and so do tests of the progress line, which goes around ``sys``.
        """
        if "-n" in options or (self.path / "conftest.py").read_text() != CONFTEST:
            return self.pytest("-m", "longcycle", *options)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["pytest", "-m", "longcycle", *options])
                return self.pytester.runpytest_inprocess(*sys.argv[1:])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pytest(self, *options: str) -> pytest.RunResult:
        """Run an inner pytest to its end, which has to come within ``INNER_SECONDS``."""
        return self.pytester.runpytest_subprocess(*options, timeout=INNER_SECONDS)

    def start(self, *options: str) -> subprocess.Popen:
        """Start the inner suite without waiting for it."""
        with (self.path / "session.txt").open("w") as output:
            session = subprocess.Popen([sys.executable, "-m", "pytest", "-m", "longcycle", *options], cwd=self.path,
                                       stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self.sessions.append(session)
        return session

    def end(self) -> None:
        """Kill the sessions that go on, workers included; guards then end what is below them."""
        for session in self.sessions:
            if session.poll() is None:
                os.killpg(session.pid, signal.SIGKILL)
                session.wait()

    def _popen(self, popen: Callable[..., subprocess.Popen], *arguments: Any, **keys: Any) -> subprocess.Popen:
        """Start a process as pytester does, but in a group of its own, which is killed with it."""
        session = popen(*arguments, **keys, start_new_session=True)
        session.kill = lambda: os.killpg(session.pid, signal.SIGKILL)
        self.sessions.append(session)
        return session

    @property
    def out(self) -> Path:
        return self.path / "output/train/longcycle_smoke"

    def calls(self) -> list[dict]:
        path = self.path / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stages(self, case: str = TRAINED) -> list[str]:
        return [call["stage"] for call in self.calls() if call["case"] == case]

    def forget_calls(self) -> None:
        (self.path / "calls.jsonl").unlink()

    def rows(self, out: Path | None = None) -> dict[str, dict[str, str]]:
        """best_by_case.tsv the way people's older scripts read it."""
        with ((out or self.out) / "best_by_case.tsv").open(newline="") as file:
            return {row["case"].removesuffix("_args.txt"): row for row in csv.DictReader(file, delimiter="\t")}

    def progress(self) -> dict:
        return json.loads((self.out / "progress.json").read_text())

    def attempts(self, case: str = TRAINED) -> list[dict]:
        return json.loads((self.out / f"runs/{case}_args/attempts.json").read_text())["attempts"]

    def events_tolerant(self) -> list[dict]:
        """Events of a ledger in which a power cut left half a line."""
        lines = (self.out / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture
def project(pytester, sample_videos, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    project = Project(pytester, sample_videos)
    yield project
    project.end()


@pytest.fixture(scope="session")
def sample_videos(tmp_path_factory):
    """``sample.mp4``: a blue figure walks over grey ground, 10 frames; ``blank.mp4``: nothing."""
    import av
    import numpy as np

    folder = tmp_path_factory.mktemp("videos")
    for name in ("sample", "blank"):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for i in range(10):
                picture = np.full((120, 160, 3), 90, np.uint8)
                if name == "sample":
                    picture[60:] = 150
                    picture[30:90, 20 + 10 * i:50 + 10 * i] = (40, 60, 220)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder
