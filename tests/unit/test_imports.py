"""Who may import whom, held by walking the source, and by looking at what a light import really loads."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {  # package -> packages of ours it may import, beside itself
    "util": set(),
    "config": {"util"},
    "cases": {"util"},
    "anim": {"util", "config"},
    "engines": {"util", "config"},
    "envs": {"util", "config", "anim", "engines"},
    "learning": {"util", "config", "envs.base"},
    "gym": {"util", "envs.base"},
    "clips": {"util", "config", "anim", "engines"},
    "deploy": {"util", "config", "anim", "engines", "envs", "learning"},
    "longcycle": {"util", "config", "cases", "engines.engine_config"},
}
LATE_ONLY = {"av", "PIL", "pyglet", "imageio", "tensorboardX", "wandb", "pybullet", "matplotlib", "scipy"}


def module_files():
    program = ("__init__.py", "__main__.py", "run.py", "request.py", "request_checks.py", "request_reader.py",
               "next_steps.py", "commands.py", "catalog.py", "kernels.py", "prior.py")
    return sorted(p for p in (ROOT / "mimickit").rglob("*.py") if p.name not in program)


def imports(tree, top_level_only=False):
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from mimickit.x import y"
            yield node.module


@pytest.mark.parametrize("path", module_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "mimickit").with_suffix("").parts[0]
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        assert not name.startswith("tests"), f"{path}: imports {name}"
        assert name != "pytest" or own == "longcycle", f"{path}: imports {name}"
        if name.startswith("mimickit."):
            target = name.removeprefix("mimickit.")
            package = target.split(".")[0]
            assert package == own or package in ALLOWED[own] or target in ALLOWED[own], f"{path}: {own} imports {name}"
    late = {name.split(".")[0] for name in imports(tree, top_level_only=True)} & LATE_ONLY
    assert not late, f"{path}: import {late} inside the function that needs it"


def test_no_modules_import_each_other():
    """Not even in a circle of several, within functions or for types alone; a script that imports itself aside."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in (ROOT / "mimickit").rglob("*.py")}
    graph = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        full = {f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                for alias in node.names}
        graph[name] = ({*imports(tree), *full} & files.keys()) - {name, "mimickit"}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def loaded_by(statement):
    """Which of the heavy packages a statement loads, in a fresh interpreter."""
    show = "print(*(m for m in ('torch', 'warp', 'newton', 'mujoco', 'onnx', 'pyglet', 'av') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import sys; {statement}; {show}"], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_the_suite_stays_light():
    modules = [p.stem for p in (ROOT / "mimickit" / "longcycle").glob("*.py")]
    assert "plugin" in modules
    assert loaded_by("; ".join(f"import mimickit.longcycle.{m}" for m in modules)) == []
    light = ("args", "failures", "files", "manifest", "processes", "video")
    assert loaded_by("; ".join(f"import mimickit.util.{m}" for m in light)) == []


@pytest.mark.parametrize("argv", [["list"], ["--help"], ["export", "--help"], ["train", "no_such_case"]])
def test_what_simulates_nothing_starts_light(argv):
    assert loaded_by(f"from mimickit.run import main; main({argv})") == []


def test_a_robot_needs_neither_torch_nor_newton():
    assert loaded_by("import mimickit.deploy.loop, mimickit.deploy.sim2sim, mimickit.deploy.policy_file") == ["mujoco"]


def test_learning_does_not_load_physics():
    assert loaded_by("import mimickit.learning.config") == []
    assert loaded_by("import mimickit.learning.trainer") == ["torch"]
