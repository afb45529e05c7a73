"""The tested sets of versions say what they claim."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_gpu_set_is_what_the_committed_results_were_made_with():
    recorded = [json.loads(line) for line in (ROOT / "docs/results/data/history.jsonl").read_text().splitlines()]
    assert len(recorded) >= 7
    for night in recorded:
        assert night["versions"] == pins("constraints-gpu.txt"), night["root"]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-gpu.txt"])
def test_both_sets_fit_the_packages_own_bounds(name):
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {found.name.lower(): found for found in map(Requirement, project["dependencies"])}
    checked = {package: version for package, version in pins(name).items() if package.lower() in bounds}
    assert {"torch", "newton", "warp-lang", "numpy"} <= checked.keys()
    assert [f"{package} {version}" for package, version in checked.items()
            if version not in bounds[package.lower()].specifier] == []


def test_what_the_library_imports_is_a_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.match(r"[\w-]+", entry)[0] for entry in project["dependencies"]}
    source = "\n".join(path.read_text() for path in (ROOT / "mimickit").rglob("*.py"))
    packages = {"warp": "warp-lang", "yaml": "pyyaml", "PIL": "pillow"}
    for module in ("warp", "newton", "torch", "numpy", "yaml", "av", "pydantic", "filelock", "pyglet", "PIL", "jinja2"):
        used = re.search(rf"^\s*(import|from) {module}\b", source, re.M)
        assert not used or packages.get(module, module) in named, module
