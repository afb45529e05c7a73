"""``mimickit list`` and ``mimickit show``: what there is, and the configuration of a case."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimickit.cases import NOT_YET, all_cases, has_robust, variants
from mimickit.config import layers, load_layered, load_yaml
from mimickit.util.args import COMMAND_LINE
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import UserError
from mimickit.util.options import ROBUST

if TYPE_CHECKING:
    from mimickit.util.args import Args

LISTS = ("cases", "characters", "clips")
LONGEST = 60  # characters of a list that is shown whole
SHOWN_FLAGS = ("num_envs", "devices", "max_samples", "eval_envs", "output_samples", "output_seconds")

OUTSIDE = "*  not part of the acceptance suite yet, but mimickit longcycle --cases takes it"


def listing(what: str | None = None) -> str:
    """Text of ``mimickit list``: one of :data:`LISTS`, or all."""
    parts = {"cases": _cases, "characters": _characters, "clips": _clips}
    return "\n\n".join("\n".join(parts[name]()) for name in LISTS if what in (None, name))


def _cases() -> list[str]:
    rows = [("case", "method", "character", "clip", "trains", "variants")]
    for case in all_cases():
        try:
            env = load_layered(locate(case.env_config))
        except UserError:
            env = {}
        known = ", ".join([*variants(case.agent_config), *([ROBUST] if has_robust(case.env_config) else [])]
                          ) if case.trainable else ""
        files = [Path(str(env.get(key, "-"))).stem for key in ("char_file", "motion_file")]
        trains = ("yes *" if case.method in NOT_YET else "yes") if case.trainable else "no"
        rows.append((case.name, case.method, *files, trains, known))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*lines, OUTSIDE] if any("yes *" in row for row in rows) else lines


def _files(folder: str, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files below a folder of data/, of the working directory and the shipped ones, by folder below it."""
    found: dict[str, set[Path]] = {}
    for root in (SHIPPED, Path()):
        for file in (root / folder).rglob("*"):
            if file.suffix in suffixes:
                found.setdefault(str(file.parent.relative_to(root / folder)), set()).add(file.relative_to(root))
    return {place: sorted(files) for place, files in sorted(found.items())}


def _characters() -> list[str]:
    found = [file for place, files in _files("data/assets", [".xml"]).items() if place != "objects" for file in files]
    return ["characters", *(f"  {file}" for file in found)]


def _clips() -> list[str]:
    lines = ["clips"]
    for place, files in _files("data/motions", [".pkl", ".npz"]).items():
        names = ", ".join(file.stem for file in files)
        lines += [f"  data/motions/{place}", textwrap.fill(names, 118, initial_indent="    ", subsequent_indent="    ")]
    return lines


def configuration(args: Args) -> str:
    """Text of ``mimickit show``: options, engine, environment and agent in effect, and the source of each value.

    Raises:
        UserError: as :func:`mimickit.request_reader.read_request`.
    """
    from mimickit.learning.config import present_layout
    from mimickit.request_reader import read_overrides, read_request

    request = read_request(args)
    changes = read_overrides(args["set"])
    given = {part: [("--set", values)] for part, values in changes.items()}
    env = [(str(path), data) for path, data in layers(request.files["env_config"])]
    if args["disturb"] is not None:
        env.append((f"--disturb {args['disturb']}", {"disturbances": request.env.disturbances.model_dump()}))
    stacks = {
        "engine": [(str(request.files["engine_config"]), load_yaml(request.files["engine_config"])),
                   *((path, data.get("engine") or {}) for path, data in env), *given["engine"]],
        "env": [*env, *given["env"]],
        "agent": [],
    }
    if "agent_config" in request.files:
        file = request.files["agent_config"]
        found = [(str(path), present_layout(data, str(path))[0] if "agent_name" in data else data)
                 for path, data in layers(file)]
        stacks["agent"] = [*found, *given["agent"]]
    rows = [("key", "value", "from"), ("", "", ""), ("flags", "", "")]
    known = request.args.source
    shown = dict.fromkeys([*SHOWN_FLAGS, *(flag for flag in known if known[flag] == COMMAND_LINE and flag != "set")])
    rows += [(f"  {flag}", " ".join(request.args.values[flag]), known[flag]) for flag in shown if flag in request.args]
    if request.variant is not None:
        rows.append(("  variant", request.variant, "--variant" if args["variant"] not in (None, ROBUST)
                     else "tuned where there is one"))
    for part, values in request.configuration().items():
        rows += [("", "", ""), (part, "", "")]
        rows += [(f"  {'.'.join(path)}", _text(value), _origin(path, stacks[part])) for path, value in _leaves(values)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[1] = min(widths[1], 40)
    return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip() for name, value, source in rows)


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _origin(path: Sequence[str], stack: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The last of several sources that gives a value."""
    for source, values in reversed(stack):
        found: Any = values
        for key in path:
            found = found.get(key, ...) if isinstance(found, Mapping) else ...
        if found is not ...:
            return source
    return "default"


def _text(value: Any) -> str:
    if isinstance(value, list) and len(str(value)) > LONGEST:
        return f"[{', '.join(map(str, value[:3]))}, ... {len(value)} values]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
