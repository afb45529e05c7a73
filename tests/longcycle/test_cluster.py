"""The recipes for job systems: GitHub workflows and SLURM scripts, run around stand-ins for what is not here."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from mimickit.longcycle.options import OPTIONS
from mimickit.util import options
from tests.longcycle.conftest import CASES, ROOT, TRAINED
from tests.longcycle.test_jobs import junit
from tests.longcycle.test_resume import wait_for

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
RECIPES = sorted((ROOT / "cluster").iterdir())
PYTEST_OPTIONS = {"lf", "junitxml", "collect-only"}


def steps(path):
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def scripts(path):
    return [step["run"] for step in steps(path) if "run" in step]


def suite_options(text):
    """Long options on the lines of a script that are about pytest."""
    lines = [line.split(" #")[0] for line in text.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if "pytest -m longcycle" in line or "options" in line]
    return set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", "\n".join(lines)))


# workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_whole(path):
    data = yaml.safe_load(path.read_text())
    assert data["permissions"] == {"contents": "read"} and data["concurrency"]["group"]
    assert {"schedule", "workflow_dispatch"} <= set(data[True]) or {"push", "pull_request"} <= set(data[True])
    for job in data["jobs"].values():
        assert job["timeout-minutes"] > 0
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            known = "checkout|setup-python|upload-artifact|upload-pages-artifact|deploy-pages"
            assert re.fullmatch(rf"actions/({known})@v\d+", step["uses"])
            continue
        assert "${{" not in step["run"], "values of a run reach scripts as environment variables only"
        subprocess.run(["bash", "-n", "-c", step["run"]], check=True)
        for command in re.findall(r"^make (\w+)", step["run"], re.M):
            assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.M)
        for file in re.findall(r"^bash (\S+)", step["run"], re.M):
            assert (ROOT / file).is_file()
        for file in re.findall(r"(?<!/)\btests/\S+\.yaml", step["run"]):
            assert (ROOT / file).is_file()
        assert suite_options(step["run"]) <= set(OPTIONS) | PYTEST_OPTIONS


def test_the_nightly_workflow_keeps_what_is_needed_and_no_checkpoints():
    path = ROOT / ".github/workflows/nightly.yml"
    data = yaml.safe_load(path.read_text())
    job = data["jobs"]["longcycle"]
    assert "self-hosted" in job["runs-on"] and not data["concurrency"]["cancel-in-progress"]
    assert set(data[True]["workflow_dispatch"]["inputs"]) == {"cases", "profile", "long_max_samples", "root"}
    checkout, *_, upload = job["steps"]
    assert checkout["with"] == {"clean": False}, "cleaning would remove the root that a re-run continues in"
    assert upload["if"] == "always()"
    kept = upload["with"]["path"]
    for name in ("*.tsv", "summary.md", "ledger.jsonl", ".junit.xml", "*.log", "test.json", "viz.mp4"):
        assert name in kept
    assert "checkpoints" not in kept and "*.pt" not in kept


@pytest.fixture
def nightly(project):
    """Runs a step of the nightly workflow in the inner project."""
    shutil.copy(ROOT / "tests/acceptance/nightly.yaml", project.path / "tests/acceptance")
    (project.path / ".venv/bin").mkdir(parents=True)
    link = project.path / ".venv/bin/python"
    link.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    link.chmod(0o755)
    by_name = {step.get("name", ""): step.get("run") for step in steps(ROOT / ".github/workflows/nightly.yml")}
    page = project.path / "step.md"

    def run(name, **inputs):
        script = next(script for key, script in by_name.items() if key.startswith(name))
        environ = {"ROOT": "nightly-7", "CASES": "", "PROFILE": "smoke", "SAMPLES": "", "GITHUB_RUN_ATTEMPT": "1",
                   "GITHUB_STEP_SUMMARY": str(page), **inputs}
        return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=project.path,
                              env={**os.environ, **environ}, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_nightly_job_fails_judges_and_continues(project, nightly):
    project.rules({"stage": "test", "case": CASES[1], "do": "crash"})
    assert nightly("Run the suite").returncode == 1
    page = project.path / "step.md"
    assert not page.exists()
    assert next(c["flags"]["max_samples"] for c in project.calls() if c["stage"] == "long_train") == ["1000"]  # its own
    assert nightly("Judge").returncode == 1
    assert "| **failed in test** |" in page.read_text() and "2/3 final_ok=1" in page.read_text()
    cases = junit(project.path / "output/train/nightly-7.junit.xml")
    assert {name: values["outcome"] for name, (values, _) in cases.items()} == {
        TRAINED: "ok", CASES[1]: "failed", CASES[2]: "ok"}
    project.rules()
    project.forget_calls()
    assert nightly("Run the suite", GITHUB_RUN_ATTEMPT="2").returncode == 0
    assert [(call["case"], call["stage"]) for call in project.calls()] == [(CASES[1], "test"), (CASES[1], "viz")]
    assert nightly("Judge", GITHUB_RUN_ATTEMPT="2").returncode == 0
    assert set(junit(project.path / "output/train/nightly-7.junit.xml")) == set(CASES)
    assert nightly("Run the suite", CASES=CASES[1], ROOT="one", SAMPLES="2000").returncode == 0
    assert nightly("Judge", CASES=CASES[1], ROOT="one").returncode == 0
    assert nightly("Run the suite", CASES="view_motion_humanoi").returncode == pytest.ExitCode.USAGE_ERROR


def git(*words, cwd):
    return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=cwd, capture_output=True,
                          text=True, check=True).stdout


def test_the_history_outlives_the_runner(project, nightly, tmp_path):
    """Its branch grows by a commit a night, and gives a machine that lost its disk, or was idle, what it lacks."""
    origin, history = tmp_path / "origin.git", project.path / "output/history"
    git("init", "-q", "--bare", str(origin), cwd=tmp_path)
    git("init", "-q", cwd=project.path)
    git("remote", "add", "origin", str(origin), cwd=project.path)
    git("commit", "-q", "--allow-empty", "-m", "code", cwd=project.path)

    def steps_of_a_night(line):
        for name in ("Bring the history", "Keep the history"):
            if name.startswith("Keep") and line:
                history.mkdir(parents=True, exist_ok=True)
                with (history / "history.jsonl").open("a") as file:
                    file.write(f"{line}\n")
                (history / "told.json").write_text(json.dumps({"told": line}))
            done = nightly(name, GITHUB_RUN_ID=str(line))
            assert done.returncode == 0, done.stdout + done.stderr

    def kept(file="history.jsonl"):
        return git("show", f"history:{file}", cwd=origin)

    steps_of_a_night("first")
    steps_of_a_night("second")
    assert kept() == "first\nsecond\n" and git("rev-list", "--count", "history", cwd=origin) == "2\n"
    steps_of_a_night("")
    assert git("rev-list", "--count", "history", cwd=origin) == "2\n", "no case ended"
    shutil.rmtree(history)
    steps_of_a_night("third")
    assert kept() == "first\nsecond\nthird\n" and json.loads(kept("told.json")) == {"told": "third"}
    assert git("log", "-1", "--format=%s", "history", cwd=origin) == "Night third\n"
    assert git("ls-files", cwd=project.path) == "" and git("branch", "--list", "history", cwd=project.path) == "", \
        "the checkout's own index and branches are as they were"


def test_every_attempt_publishes_pages_of_its_own():
    jobs = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"]
    upload, = (step for step in jobs["longcycle"]["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    deploy, = jobs["publish"]["steps"]
    assert upload["with"]["name"] == jobs["longcycle"]["outputs"]["pages"] and "run_attempt" in upload["with"]["name"]
    assert deploy["with"]["artifact_name"] == "${{ needs.longcycle.outputs.pages }}"


# SLURM


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_shell_scripts_with_known_options(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n") and "docs/clusters.md" in text[:600]
    if path.suffix == ".sbatch":
        assert "#SBATCH --time=" in text and "\n#SBATCH" not in text.split("\nset -u")[1]
    assert suite_options(text) <= set(OPTIONS) | PYTEST_OPTIONS
    if "mimickit/run.py" in text:
        flags = re.findall(r"--([a-z]+_[a-z_]+|mode|visualize|devices|resume)\b", text)
        assert flags and set(flags) <= set(options.OPTIONS)


class Cluster:
    """The inner project with the recipes, and stand-ins for SLURM's commands that note how they were called."""

    def __init__(self, project, path):
        self.project, self.path = project, path
        shutil.copytree(ROOT / "cluster", project.path / "cluster")
        path.mkdir()
        self.environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHON": sys.executable}
        self.stub("sbatch", 'n=$(($(wc -l < "$0.calls") + 100)); echo "$n;cluster"')
        self.stub("scontrol", 'case "$*" in "show hostnames"*) printf "node1\\nnode2\\n";; esac')
        self.stub("srun", "")

    def stub(self, name, body):
        (self.path / name).write_text(
            f"#!/bin/bash\nprintf '%s\\n' \"${{*@Q}}\" >> \"$0.calls\"\n{body}\n")
        (self.path / name).chmod(0o755)

    def calls(self, name):
        path = self.path / f"{name}.calls"
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def bash(self, script, *words, **environ):
        return subprocess.run(["bash", f"cluster/{script}", *words], cwd=self.project.path, capture_output=True,
                              text=True, env={**self.environ, **environ})


@pytest.fixture
def cluster(project, tmp_path_factory):
    return Cluster(project, tmp_path_factory.mktemp("slurm") / "bin")


ARRAY = ["--parsable", "--array=1-2", "--export=ALL,LONGCYCLE_ROOT=night,LONGCYCLE_PARTS=2"]


def test_a_dry_run_prints_what_would_be_submitted(cluster):
    words = ["--parts", "2", "--root", "night", "--sbatch", "--time=01:00:00", "--sbatch", "--comment=a b"]
    done = cluster.bash("submit.sh", "--dry-run", *words, "--", "-k", "humanoid and not dof")
    assert done.returncode == 0, done.stderr
    array, judge = (shlex.split(line) for line in done.stdout.splitlines())
    assert array == ["sbatch", *ARRAY, "--time=01:00:00", "--comment=a b", "cluster/longcycle.sbatch",
                     "-k", "humanoid and not dof"]
    assert judge == ["sbatch", "--parsable", "--dependency=afterany:ARRAY_JOB", ARRAY[2], "cluster/judge.sbatch",
                     "-k", "humanoid and not dof"]
    assert not cluster.calls("sbatch")


def test_submitting(cluster):
    done = cluster.bash("submit.sh", "--parts", "2", "--root", "night", "--", "--cases", f"{TRAINED},{CASES[1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "array job 101: 2 cases in 2 parts; job 102 judges them in output/train/night\n"
    array, judge = cluster.calls("sbatch")
    assert array == [*ARRAY, "cluster/longcycle.sbatch", "--cases", f"{TRAINED},{CASES[1]}"]
    assert judge[1] == "--dependency=afterany:101"
    assert "--array=1-3" in cluster.bash("submit.sh", "--dry-run", "--per-case").stdout


@pytest.mark.parametrize(("words", "message"), [
    (["--part", "2"], "unknown option --part"), (["--parts"], "--parts needs a value"),
    (["--parts", "two"], "--parts two: give a whole number"), (["--parts", "4"], "--parts 4: only 3 cases"),
    (["--parts", "2", "--root", "a/b"], "--root a/b: letters"), (["--", "--cases", "nobody"], "unknown case 'nobody'")])
def test_wrong_submissions(cluster, words, message):
    done = cluster.bash("submit.sh", *words)
    assert done.returncode == 2 and message in done.stderr and not cluster.calls("sbatch")


def test_a_part_is_requeued_with_a_checkpoint_and_merged_at_the_end(cluster, project):
    """The whole way: a part reaches its time limit, goes back into the queue, goes on; all parts are judged."""
    def part(index, restarts="0"):
        return {"LONGCYCLE_ROOT": "night", "LONGCYCLE_PARTS": "2", "SLURM_ARRAY_TASK_ID": str(index),
                "SLURM_SUBMIT_DIR": str(project.path), "SLURM_JOB_ID": f"7{index}", "SLURM_RESTART_COUNT": restarts}

    options = ["--long-max-samples", "20000", "--longcycle-profile", "smoke"]
    project.rules({"stage": "long_train", "do": "slow"})
    root = project.path / "output/train/night_1of2"
    job = subprocess.Popen(["bash", "cluster/longcycle.sbatch", *options], cwd=project.path,
                           env={**cluster.environ, **part(1)}, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: [p for p in root.glob("runs/*/*/long_train/checkpoints/*/samples") if p.is_file()])
    job.send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=40)
    assert job.returncode == 2 and "back into the queue" in text
    assert cluster.calls("scontrol") == [["requeue", "71"]]
    reached = max(int(path.read_text()) for path in root.glob("runs/*/*/long_train/checkpoints/*/samples"))

    project.forget_calls()
    project.rules()
    done = cluster.bash("longcycle.sbatch", *options, **part(1, "1"))
    assert done.returncode == 0, done.stdout
    assert project.stages()[0] == "long_train" and project.calls()[0]["resumed"] == reached > 0
    early = cluster.bash("judge.sbatch", *options, **part(0))
    assert early.returncode == 1 and "part 2 of 2 never started" in early.stdout
    assert f"NOT RUN  {CASES[1]}" in early.stdout
    assert cluster.bash("longcycle.sbatch", *options, **part(2)).returncode == 0
    judged = cluster.bash("judge.sbatch", *options, **part(0))
    assert judged.returncode == 0 and "3/3 final_ok=1" in judged.stdout, judged.stdout + judged.stderr
    assert set(junit(project.path / "output/train/night.junit.xml")) == set(CASES)
    assert len(cluster.calls("scontrol")) == 1


def test_failed_cases_are_not_requeued_and_requeues_have_an_end(cluster, project):
    about = {"LONGCYCLE_ROOT": "night", "LONGCYCLE_PARTS": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}
    project.rules({"stage": "test", "do": "crash"})
    assert cluster.bash("longcycle.sbatch", "--cases", CASES[1], **about).returncode == 1
    assert cluster.bash("longcycle.sbatch", "--cases", "nobody", **about).returncode == pytest.ExitCode.USAGE_ERROR
    project.rules({"stage": "bootstrap_train", "do": "slow"})
    job = subprocess.Popen(["bash", "cluster/longcycle.sbatch", "--cases", CASES[2]], cwd=project.path, text=True,
                           env={**cluster.environ, **about, "SLURM_RESTART_COUNT": "20"}, stdout=subprocess.PIPE)
    wait_for(lambda: [call for call in project.calls() if call["case"] == CASES[2]])
    job.send_signal(signal.SIGTERM)
    assert "requeued too often already" in job.communicate(timeout=40)[0] and not cluster.calls("scontrol")
    assert cluster.bash("longcycle.sbatch").returncode != 0, "not without its variables"


def test_one_training_on_several_nodes(cluster, project):
    about = {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_JOB_ID": "30001"}
    flags = ["--arg_file", "args/x_args.txt", "--max_samples", "5"]
    assert cluster.bash("train_multinode.sbatch", "output/big", *flags, **about).returncode == 0
    (project.path / "output/big/checkpoints/0000000003").mkdir(parents=True)
    assert cluster.bash("train_multinode.sbatch", "output/big", *flags, **about).returncode == 0
    first, second = cluster.calls("srun")
    assert first == [
        "--kill-on-bad-exit=0", ".venv/bin/torchrun", "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend",
        "c10d", "--rdzv-endpoint", "node1:30001", "--rdzv-id", "30001", "--max-restarts", "0", "mimickit/run.py",
        "--mode", "train", "--visualize", "false", "--out_dir", "output/big", "--devices", "cuda:0", "cuda:1", *flags]
    assert second == [*first[:-4], "--resume", "output/big", *flags]
    usage = cluster.bash("train_multinode.sbatch", **about)
    assert usage.returncode == 2 and "usage: sbatch" in usage.stderr
    cluster.stub("srun", "trap 'exit 143' TERM; touch started; while true; do sleep 0.1; done")
    job = subprocess.Popen(["bash", "cluster/train_multinode.sbatch", "output/big"], cwd=project.path,
                           env={**cluster.environ, **about})
    wait_for((project.path / "started").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143 and ["requeue", "30001"] in cluster.calls("scontrol")

