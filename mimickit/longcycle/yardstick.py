"""The tier ``--case-set yardstick``: the humanoid on nine clips with three methods, beside published numbers.

    pytest -m longcycle --case-set yardstick --root-out yardstick1 --rand-seed 1
    python -m mimickit.longcycle.yardstick output/train/yardstick1 output/train/yardstick2 output/train/yardstick3

A case is one of args/ with another clip. Gates do not decide. At its end a session writes ``yardstick.md`` into its
root; the program makes one page of several roots, a seed each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimickit.cases import Case, select
from mimickit.longcycle.judge import sample
from mimickit.longcycle.results.data import Root
from mimickit.longcycle.settings import YARDSTICK
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import write_text

PAGE = f"{YARDSTICK}.md"
METHODS = {"DeepMimic": "deepmimic_humanoid_ppo", "AMP": "amp_humanoid", "ADD": "add_humanoid"}
FEET = ("right_foot", "left_foot")
HANDS = ("right_hand", "left_hand")


@dataclass(frozen=True)
class Clip:
    """A clip and what was published of it, in metres, by method.

    Attributes:
        contacts: bodies that may touch the ground; none: all.
        pos_err: MimicKit (Peng 2025), table 1. time_warped_err: AMP (Peng et al. 2021), table 3; there "DeepMimic" is a
            tracking policy.
    """

    name: str
    contacts: tuple[str, ...]
    pos_err: Mapping[str, float]
    time_warped_err: Mapping[str, float]


CLIPS = (
    Clip("run", FEET, {"DeepMimic": 0.013, "AMP": 0.163, "ADD": 0.165}, {"DeepMimic": 0.028, "AMP": 0.075}),
    Clip("walk", FEET, {"DeepMimic": 0.009, "AMP": 0.132}, {"DeepMimic": 0.018, "AMP": 0.030}),
    Clip("spinkick", FEET, {}, {"DeepMimic": 0.042, "AMP": 0.058}),
    Clip("dance_a", FEET, {}, {"DeepMimic": 0.038, "AMP": 0.055}),
    Clip("backflip", FEET, {"DeepMimic": 0.111, "ADD": 0.062}, {"DeepMimic": 0.076, "AMP": 0.150}),
    Clip("cartwheel", FEET + HANDS, {}, {"DeepMimic": 0.039, "AMP": 0.067}),
    Clip("roll", (), {"DeepMimic": 0.115, "AMP": 0.141, "ADD": 0.152}, {"DeepMimic": 0.072, "AMP": 0.088}),
    Clip("crawl", (), {"DeepMimic": 0.027}, {"DeepMimic": 0.044, "AMP": 0.049}),
    Clip("getup_facedown", (), {"DeepMimic": 0.023}, {}),
)
TABLES = {
    "pos_err": "A. Position error, root included, episodes that no failure ends (m); MimicKit's table 1: 5 seeds, "
               "hundreds of millions of samples a clip",
    "time_warped_err": "B. Pose error after time warping (m); AMP's table 3: 3 seeds, 100 to 300 million samples",
}


def name_of(base: str, clip: Clip) -> str:
    return f"{base}_{clip.name}"


def yardstick_cases(root: Path, names: Sequence[str] | None = None) -> list[Case]:
    """All cases of the tier, or those named, sorted. Raises UserError for unknown names."""
    bases = {case.name: case for case in select(root, list(METHODS.values()))}
    cases = [replace(bases[base], name=name_of(base, clip), env=(
        ("motion_file", f"data/motions/humanoid/humanoid_{clip.name}.pkl"),
        ("contact_bodies", f"[{', '.join(clip.contacts)}]"))) for base in METHODS.values() for clip in CLIPS]
    known = {case.name for case in cases}
    if unknown := sorted(set(names or ()) - known):
        raise UserError(f"--case-set {YARDSTICK}: unknown case '{unknown[0]}'; known are: {', '.join(sorted(known))}")
    return sorted((case for case in cases if names is None or case.name in names), key=lambda case: case.name)


def tables(tests: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """A page of both tables; ``tests``: per seed the test's result by case. Mean and standard deviation over seeds."""
    lines = [f"# Yardsticks\n\nOurs, {len(tests)} seed{'s' if len(tests) != 1 else ''}, beside what was published."]
    for measure, title in TABLES.items():
        head = [cell for method in METHODS for cell in (method, "published")]
        lines += ["", f"## {title}", "", f"| clip | {' | '.join(head)} |", "|" + " --- |" * (1 + len(head))]
        for clip in CLIPS:
            cells = []
            for method, base in METHODS.items():
                found = [value.mean for root in tests
                         if (value := sample(root.get(name_of(base, clip), {}), measure)) is not None]
                spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
                cells.append(f"{statistics.fmean(found):.3f}{spread}" if found else "")
                published = getattr(clip, measure).get(method)
                cells.append("" if published is None else f"{published:.3f}")
            lines.append(f"| {clip.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_page(roots: Sequence[Path], out: Path) -> None:
    """Both tables of the tests in ``roots``, a seed each. Raises AssetMissingError for a folder that is no root."""
    write_text(out, tables([{case: root.entry(case).test for case in root.cases} for root in map(Root, roots)]))


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="folders of sessions, a seed each")
    parser.add_argument("--out", type=Path, default=Path(PAGE), help=f"the page ({PAGE})")
    options = parser.parse_args(argv)
    write_page(options.roots, options.out)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
