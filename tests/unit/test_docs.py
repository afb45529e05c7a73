"""What the documents tell people to type and to open exists."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mimickit.longcycle.results import bisect, cli
from mimickit.util import plot
from mimickit.util.options import OPTIONS, SHORT

PARSERS = {"plot": plot.parser, "report": cli.parser, "bisect": bisect.parser}  # commands with options of their own
ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "data").rglob("*.md"))]


def commands(page):
    """Commands of a page's code blocks, continued lines joined."""
    for block in re.findall(r"```(?:sh|bash)?\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split(" #")[0].strip()
            if line.startswith(("make ", "mimickit ", "python ", "pytest ")):
                yield shlex.split(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page):
    introduced = set(re.findall(r"^## .*`(\S+)`", page.read_text(), re.M))  # files that the page tells people to write
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, words
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words
        if words[0] == "mimickit" or "mimickit/run.py" in words:
            own = PARSERS.get(words[1])
            known = set(own()._option_string_actions) if own else {f"--{name}" for name in (*OPTIONS, *SHORT, "help")}
            for word in itertools.takewhile(lambda word: word != "--", words):
                assert not word.startswith("--") or word in known, (page.name, word)
        for word in words:
            if re.match(r"(args|data)/[\w/]+\.(txt|yaml|xml|pkl)$", word) and word not in introduced:
                assert (ROOT / word).is_file(), (page.name, word)


def test_every_page_has_its_place_in_the_site():
    """Pages that site.py generates are named in the navigation as if they lay in docs/."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w/]+\.md", str(site["nav"]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").glob("*.md")}
    assert len(named) == len(set(named)) and pages <= set(named), pages - set(named)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 70, "two screens; everything else is in docs/"
    assert sum(file.stat().st_size for file in (ROOT / "docs/images").glob("*.gif")) < 2_000_000
