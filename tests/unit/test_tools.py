"""Mistakes on the command lines of tools and benchmarks; what the documents say about tools."""

import os
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contact_capacity, throughput
from mimickit.anim.motion import load_motion, save_motion
from mimickit.util.failures import explains_mistakes
from tests.faults import table
from tools import author_vault, check_motion, convert_gmr, measure_baselines, plot_log, render_clips

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "data/motions/go2/go2_pace.pkl"
MOTION = {"fps": 30, "root_pos": np.zeros((2, 3)), "root_rot": np.ones((2, 4)), "dof_pos": np.ones((2, 1))}


def test_files_that_the_system_refuses(tmp_path, capsys):
    @explains_mistakes
    def main(error):
        raise error

    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as found:
        (tmp_path / "file/below").write_text("")
    assert main(found.value) == 2
    assert capsys.readouterr().err == f"{tmp_path}/file/below: Not a directory\n"
    with pytest.raises(OSError, match="a library's own"):
        main(OSError("a library's own"))


@pytest.mark.parametrize("words", [
    lambda source, target: (check_motion, [str(CLIP), "--sheet", target]),
    lambda source, target: (convert_gmr, ["--input_file", source("in.pkl", pickle.dumps(MOTION)),
                                          "--output_file", f"{target}/out.pkl"]),
    lambda source, target: (plot_log, [source("log.txt", b"Samples A\n1 2\n"), "--y", "A", "--out", f"{target}/a.png"]),
], ids=["check_motion", "convert_gmr", "plot_log"])
def test_outputs_that_cannot_be_written(tmp_path, capsys, words):
    def source(name, content):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    program, arguments = words(source, source("file", b"") + "/below")
    assert program.main(arguments) == 2
    assert f"{tmp_path}/file/below: Not a directory\n" in capsys.readouterr().err


def test_a_log_that_is_no_text(tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04\xff\xfe")
    assert plot_log.main([str(tmp_path / "model.pt")]) == 2
    assert "model.pt is not a text file" in capsys.readouterr().err


@pytest.mark.parametrize(("program", "words", "message"), [
    (render_clips, ["x.pkl", "--out", "s.png", "--pictures", "0"], "--pictures 0: at least 1"),
    (render_clips, ["x.pkl", "--out", "s.foo"], "--out s.foo: the picture must end in .png"),
    (author_vault, ["g1", "--iterations", "0"], "--iterations 0: at least 1"),
    (contact_capacity, ["--chars", "nope.xml"], "model file not found: nope.xml"),
    (contact_capacity, ["--chars", "README.md"], "only MJCF (.xml) and URDF files"),
    (contact_capacity, ["--num-envs", "0"], "--num-envs 0: at least 1"),
    (contact_capacity, ["--steps", "0"], "--steps 0: at least 1"),
    (contact_capacity, ["--device", "foo"], "--device foo: this machine has cpu"),
    (contact_capacity, ["--engine-config", "nope.yaml"], "not found: nope.yaml"),
    (contact_capacity, ["--out", "nope/x"], "nope/x: No such file"),
    (throughput, ["--cases", "deepmimic_humanoid"], "unknown case 'deepmimic_humanoid'"),
    (throughput, ["--cases", "dof_test_humanoid"], "dof_test_humanoid: not trainable"),
    (throughput, ["--num-envs", "8,abc"], "--num-envs 8,abc: whole numbers"),
    (throughput, ["--num-envs", "0"], "--num-envs 0: whole numbers of at least 1"),
    (throughput, ["--devices", "cpu;cuda:99"], "--devices cuda:99: this machine has cpu"),
    (throughput, ["--iters", "0"], "--iters 0: at least 1"),
    (throughput, ["--set", "agent.foo=1"], "unknown key 'foo'"),
    (throughput, ["--engine-config", "nope.yaml"], "not found: nope.yaml"),
    (throughput, ["--out", "nope/x"], "nope/x: No such file"),
    (measure_baselines, ["--cases", "view_motion_go2"], "--cases view_motion_go2: not trainable"),
    (table, ["--faults", "missing_clip", "--devices", "cuda:99"], "--devices cuda:99: this machine has cpu"),
    (table, ["--faults", "missing_clip", "--num-envs", "0"], "--num-envs 0: at least 2"),
])
def test_mistakes_are_found_before_anything_runs(monkeypatch, capsys, program, words, message):
    monkeypatch.chdir(ROOT)
    for module, work in ((contact_capacity, "measure"), (throughput, "run_job"), (table, "run_scenario")):
        monkeypatch.setattr(module, work, None)
    assert program.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_variant_that_a_case_does_not_have(monkeypatch, capsys):
    monkeypatch.setattr("mimickit.cases.VARIANTS", ())
    assert throughput.main(["--variant", "tuned"]) == 2
    assert "--variant tuned: there is none of deepmimic_humanoid_ppo" in capsys.readouterr().err


def test_a_row_that_failed_shows_in_the_exit_code(monkeypatch, capsys, tmp_path):
    jobs = []
    monkeypatch.setattr(throughput, "run_job", lambda job: jobs.append(job) or {**job, "error": "exit code 1"})
    out = tmp_path / "rows.jsonl"
    words = ["--cases", "deepmimic_humanoid_ppo_args.txt,add_humanoid", "--num-envs", "2,4", "--devices", "cpu;cpu cpu"]
    assert throughput.main([*words, "--out", str(out)]) == 1
    assert [(job["case"], job["num_envs"], job["devices"]) for job in jobs] == [
        (case, envs, devices) for case in ("deepmimic_humanoid_ppo", "add_humanoid") for envs in (2, 4)
        for devices in (["cpu"], ["cpu", "cpu"])]
    assert capsys.readouterr().out.count("exit code 1") == 8 and out.read_text() == ""


@pytest.mark.parametrize("program", [contact_capacity, throughput])
def test_help_says_what_each_option_takes(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    options = re.split(r"\n  (?=-)", capsys.readouterr().out.split("\noptions:")[1])[2:]
    for option in options:
        assert re.search(r"\([^)]+\)\s*$", option), f"no default: {option}"


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_repair_in_the_documents_repairs(tmp_path, capsys):
    section = (ROOT / "docs/clips.md").read_text().split(". Repair it\n")[1].split("\n## ")[0]
    code = "\n".join(block.split("```")[0] for block in section.split("```python\n")[1:])
    clip = load_motion(ROOT / "data/motions/humanoid/humanoid_walk.pkl")
    clip.frames[:, 2] -= 0.04
    clip.frames[-1, 8] += 0.2
    clip.frames[:, 0] += np.linspace(0, 0.25, clip.num_frames)
    save_motion(tmp_path / "my_clip.pkl", clip)
    exec(code.replace("my_clip", f"{tmp_path}/my_clip").replace("data/assets", f"{ROOT}/data/assets"), {})
    character = ["--char", str(ROOT / "data/assets/humanoid/humanoid.xml")]
    character.append("--strict")
    assert check_motion.main([str(tmp_path / "my_clip.pkl"), *character]) == 1
    error = capsys.readouterr().err
    assert all(text in error for text in ("sinks 0.040", "feet slide", "ends are 0.200"))
    assert check_motion.main([str(tmp_path / "my_clip_clean.pkl"), *character]) == 0
    assert check_motion.main([str(tmp_path / "my_clip_higher.pkl"), *character]) == 1
    assert "sinks" not in capsys.readouterr().err


def test_every_file_of_tools_is_a_program():
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text()
        assert "\ndef main(" in text and "sys.path" not in text, path
        assert "import tools" not in text and "from tools" not in text, f"{path}: a program imports no program"


def test_every_maker_of_clips_is_listed():
    makers = [path.name for path in (ROOT / "tools").glob("*.py")
              if re.search(r"save_(motion|checked)\(", path.read_text()) and '"--out-dir"' in path.read_text()]
    commands = (ROOT / "data/motions/README.md").read_text().split("To make every clip again:")[1].split("\n## ")[0]
    assert sorted(re.findall(r"tools/(\w+\.py)", commands)) == sorted(makers)


# --- cluster ----------------------------------------------------------------------------------------------------------


def test_submitting_before_the_set_up(tmp_path):
    done = subprocess.run(["bash", "cluster/submit.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHON": str(tmp_path / "python")})
    assert done.returncode == 2 and "run 'make setup' first" in done.stderr and "No such file" not in done.stderr
