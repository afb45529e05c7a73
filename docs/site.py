"""Generated pages of the site: the README as its home page, and the reference. mkdocs calls this (mkdocs.yml)."""

from __future__ import annotations

import html
import posixpath
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.structure.files import File

from mimickit.commands import COMMANDS
from mimickit.config import Config
from mimickit.deploy.policy_file import PolicyFile
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.env_builder import ENVS
from mimickit.learning.config import CONFIGS as AGENT_CONFIGS
from mimickit.util.options import GROUPS

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # files outside docs/ -> their place in the site
    "README.md": "index.md",
    **{name: name for name in ("CONTRIBUTING.md", "benchmarks/EXPERIMENTS.md", "data/motions/README.md",
                               "data/assets/README.md")},
}
LIBRARY = ("make", "gym", "envs.base", "anim.motion", "util.rotations", "engines.engine_config")
REQUIRED = "required"
BOUNDS = {"gt": ">", "ge": "at least", "lt": "<", "le": "at most"}


def on_files(files: Any, config: Any) -> Any:
    pages = {place: (ROOT / name).read_text() for name, place in ELSEWHERE.items()}
    pages |= {"reference/options.md": options(), "reference/keys.md": keys(),
              "reference/library.md": "\n".join(["# Library", *(f"\n::: mimickit.{name}" for name in LIBRARY)])}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as GitHub follows them become links of the site; those to files that the site lacks become plain text."""
    here = page.file.src_uri
    source = next((name for name, place in ELSEWHERE.items() if place == here), f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = ELSEWHERE.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
        if not target or "://" in target or (found is None and not (ROOT / place).exists()):
            return match[0]
        if found is None:
            return text
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(here) or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Names may break at an underscore or a slash. Docstrings lose the roles and double colons of Sphinx."""
    content = re.sub(r":(?:mod|class|meth|func|data|attr):<code>~?", "<code>", content).replace("::</p>", ":</p>")
    return re.sub(r"(?<=<code>)[^<]+(?=</code>)", lambda name: re.sub(r"(?<=[_/])(?=\w)", "<wbr>", name[0]), content)


def table(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """A table of names: (name, form, default, meaning) in two columns, which a telephone has room for."""
    lines = ["", '<div class="names" markdown>', "", "| | |", "| --- | --- |"]
    for name, form, default, meaning in rows:
        form, default, meaning = (html.escape(text).replace("|", "&#124;<wbr>") for text in (form, default, meaning))
        shown = f"<br>{default}" if default in ("", REQUIRED) else f"<br>default: {default}"
        lines.append(f"| **`{name}`**<br><code>{form}</code>{shown} | {meaning} |")
    return [*lines, "", "</div>", ""]


def options() -> str:
    """The commands and the table of options."""
    lines = ["# Commands and options", "", "You want to know what a command or an option does. The same is said by "
             "`mimickit --help` (the most used) and `mimickit COMMAND --help` (all). `python mimickit/run.py` takes "
             "the same options.", "",
             "## Commands"]
    for name, command in COMMANDS.items():
        own = "; ".join(f"`--{option}`: {words}" for option, words in command.defaults.items())
        lines += ["", f"### mimickit {name}", "", f"`mimickit {name} {command.usage}`".replace(" `", "`"), "",
                  f"{command.does[0].upper()}{command.does[1:]}. {command.more}", "",
                  f"Its own defaults: {own}." if own else ""]
    for title, group in GROUPS.items():
        lines += ["", f"## {title}", *table((f"--{name}", option.form, option.shown_default,
                                             f"{option.only} mode: {option.help}" if option.only else option.help)
                                            for name, option in group.items())]
    return "\n".join(lines)


def keys() -> str:
    """The keys of yaml files, class by class."""
    lines = ["# Configuration keys", "", "You want to know what a key of a yaml file means. `mimickit show CASE` "
             "prints the values in effect, and the file that each comes from."]
    environments = [config for config, _ in ENVS.values()]
    files = {"Engine files": [EngineConfig], "Environment files": environments,
             "Agent files": AGENT_CONFIGS.values(), "policy.json of an exported policy": [PolicyFile]}
    for title, configs in files.items():
        lines += ["", f"## {title}"]
        for cls in dict.fromkeys(cls for config in configs for cls in with_parts(config)):
            text = re.sub("``([^`]*)``", r"`\1`", " ".join((cls.__doc__ or "").split()))
            above = "" if cls.__base__ is Config else f" All keys of {cls.__base__.__name__}, and:"
            own = {name: field for name, field in cls.model_fields.items() if name in cls.__annotations__}
            lines += ["", f"### {cls.__name__}", "", f"{text}{above}"]
            lines += table((name, form(field), default(field), field.description or "") for name, field in own.items())
    return "\n".join(lines)


def with_parts(config: type[Config]) -> Iterator[type[Config]]:
    """The classes that a configuration is made of, bases and nested ones first."""
    for cls in reversed(config.__mro__):
        if issubclass(cls, Config) and cls is not Config:
            for field in cls.model_fields.values():
                for part in (field.annotation, *get_args(field.annotation)):
                    if isinstance(part, type) and issubclass(part, Config):
                        yield from with_parts(part)
            yield cls


def form(field: Any) -> str:
    """The type of a field, and its bounds."""
    bounds = [f"{words} {getattr(rule, name):g}" for rule in field.metadata for name, words in BOUNDS.items()
              if hasattr(rule, name)]
    return ", ".join([kind(field.annotation), *bounds])


def kind(given: Any) -> str:
    """``Literal['a', 'b']`` -> ``a|b``, ``tuple[float, ...]`` -> ``list of float``."""
    origin, inner = get_origin(given), get_args(given)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is types.UnionType:
        return "|".join(map(kind, inner))
    if origin is tuple:
        return f"list of {kind(inner[0])}" if ... in inner else f"{len(inner)} x {kind(inner[0])}"
    if hasattr(given, "__metadata__"):  # Annotated
        return kind(inner[0])
    return {"NoneType": "null", "str": "text", "Path": "file", "dict": "mapping"}.get(
        getattr(origin or given, "__name__", ""), getattr(given, "__name__", str(given)))


def default(field: Any) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    return {None: "null", True: "true", False: "false", (): "[]"}.get(value, str(value)) if not isinstance(
        value, dict) else "{}"
