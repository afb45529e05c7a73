"""Command line and args files: ``--flag value value ...``; the first occurrence of a flag wins.

``--flag=value`` says the same, and a flag may have ``-`` for ``_``. The command line is read before the file that its
``--arg_file`` names, so it overrides the file; within one source the first mention wins. A token that begins with ``#``
ends its line's values in a file and is dropped on a command line. ``args["num_envs"]`` is the value of an option of
:mod:`mimickit.util.options`, of its type. No heavy imports: the acceptance suite reads args files with this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import missing_file, nearest
from mimickit.util.options import OPTIONS, SHORT, parse
from mimickit.util.reading import MAX_ARGS_BYTES, read_bytes

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Args:
    """Flags and their values, in order of first mention.

    Attributes:
        source: where each flag came from.
        stray: words that belong to no flag, by where they stand.
        remarks: what was dropped while reading, a sentence each.
        command: ``("train", "amp_g1")`` where the program was called as ``mimickit train amp_g1``.
    """

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    stray: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Args:
        """Parse a command line (without the program name) and the args file it names.

        Raises:
            AssetMissingError: the args file does not exist.
            UserError: ``--arg_file`` without a value, or an args file that is not text.
        """
        command, stray = parse_tokens(argv)
        args = cls(command, dict.fromkeys(command, COMMAND_LINE), {COMMAND_LINE: tuple(stray)})
        if (path := args["arg_file"]) is None:
            return args
        given, stray = parse_tokens(read_arg_file(path))
        remarks: tuple[str, ...] = ()
        if (inside := given.pop("arg_file", None)) is not None:
            remarks = (f"--arg_file {' '.join(inside)} ({path}) is ignored: an args file cannot name another",)
        return cls(given, dict.fromkeys(given, path), {path: tuple(stray)}, remarks).under(args)

    def under(self, given: Args) -> Args:
        """``given``, and these arguments where it says nothing."""
        return replace(given, values={**given.values, **self.values, **given.values},
                       source={**self.source, **given.source}, stray={**given.stray, **self.stray},
                       remarks=(*given.remarks, *self.remarks))

    def with_defaults(self, values: Mapping[str, Sequence[str]], source: str) -> Args:
        """The same, with ``values`` by ``source`` for flags that were not given."""
        return Args({flag: tuple(words) for flag, words in values.items()}, dict.fromkeys(values, source)).under(self)

    def with_value(self, flag: str, *values: str, source: str | None = None) -> Args:
        """The same with other values of a flag, given where the flag was, or by ``source``."""
        return replace(self, values={**self.values, flag: values},
                       source={**self.source, flag: source or self.source.get(flag, "default")})

    def named(self, name: str, target: str) -> Args:
        """The same, as those of ``mimickit <name> <target>``."""
        return replace(self, command=(name, target))

    def __contains__(self, flag: str) -> bool:
        return flag in self.values

    def __getitem__(self, flag: str) -> Any:
        """The value of an option, or its default. Raises UserError where the words given stand for none."""
        if flag not in self.values:
            return OPTIONS[flag].default
        return parse(flag, self.values[flag], self.source.get(flag, COMMAND_LINE))

    def check(self) -> None:
        """Make sure that everything given is understood.

        Raises:
            UserError: words without a flag, unknown flags (with the nearest known one), wrong values; all mistakes in
                one message.
        """
        wrong = [_about_stray(words, where) for where, words in self.stray.items() if words]
        for flag in self.values:
            if flag not in OPTIONS:
                wrong.append(f"unknown flag --{flag} ({self.source[flag]}){nearest(flag, OPTIONS, prefix='--')}")
                continue
            try:
                self[flag]
            except UserError as error:
                wrong.append(str(error))
        if wrong:
            where = (f"mimickit {self.command[0]} --help lists" if self.command else
                     "mimickit train --help and mimickit test --help list")
            raise UserError(f"{'; '.join(wrong)}; {where} all flags")


def parse_tokens(tokens: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Flags and their values from tokens, and the words before the first flag. A flag starts with ``--`` and has at
    least three characters; what follows, up to the next flag, are its values; tokens starting with ``#`` are dropped.
    In ``--flag=value`` the value stands with the flag; ``-`` within a flag's name is read as ``_``.
    """
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    stray: list[str] = []
    for token in tokens:
        if token.startswith("--") and len(token) >= 3:
            name, equals, value = token[2:].partition("=")
            name, *current = SHORT.get(name, (name.replace("-", "_"),))
            current += [value] if equals else []  # values of a repeated flag are dropped with this list
            found.setdefault(name, current)
        elif not token.startswith("#"):
            (stray if current is None else current).append(token)
    return {flag: tuple(values) for flag, values in found.items()}, stray


def _about_stray(stray: Sequence[str], where: str) -> str:
    """What is wrong with words that belong to no flag."""
    hint, word = "", stray[0].lstrip("-").partition("=")[0].replace("-", "_")
    if word.endswith(".txt"):
        hint = f" (did you mean --arg_file {stray[0]}?)"
    elif word in OPTIONS:
        hint = f" (did you mean '--{word}'?)"
    return f"'{' '.join(stray)}' ({where}) belongs to no flag{hint}: flags begin with --, their values follow them"


def read_arg_file(path: str | Path) -> list[str]:
    """Tokens of an args file: lines beginning with ``#`` are skipped, the rest of a line after a ``#`` token too.

    Raises:
        AssetMissingError: no such file, here or among the shipped ones.
        UserError: not a text file, no regular file, or larger than what is read.
    """
    try:
        if os.path.isdir(path):
            raise FileNotFoundError
        text = read_bytes(locate(path), MAX_ARGS_BYTES).decode("utf-8")
        if "\0" in text:
            raise UnicodeError
    except FileNotFoundError:
        raise AssetMissingError(f"args file not found: {missing_file(path)} (the shipped ones are in args/)") from None
    except UnicodeError:
        raise UserError(f"--arg_file {path}: not a text file; args files hold flags and values, like those in args/"
                        ) from None
    tokens: list[str] = []
    for line in text.splitlines():
        for token in line.split():
            if token.startswith("#"):
                break
            tokens.append(token)
    return tokens
