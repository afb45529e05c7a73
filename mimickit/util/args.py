"""Command line and args files: ``--flag value value ...``; the first occurrence of a flag wins.

``--flag=value`` says the same, and a flag may have ``-`` for ``_``. The command line is read before the file that its
``--arg_file`` names, so it overrides the file; within one source the first mention wins. A token that begins with ``#``
ends its line's values in a file and is dropped on a command line. Words that belong to no flag, unknown flags and a
second value where one is read are mistakes: :meth:`Args.check` names them.
No heavy imports: the acceptance suite reads args files with this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import nearest
from mimickit.util.reading import MAX_ARGS_BYTES, read_bytes

TRUE_WORDS = frozenset({"true", "t", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "f", "0", "no", "off"})
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
        if (path := args.text("arg_file")) is None:
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

    def get(self, flag: str) -> list[str] | None:
        """All values of a flag, or None when it was not given."""
        return list(self.values[flag]) if flag in self.values else None

    def text(self, flag: str, default: str | None = None, choices: Iterable[str] | None = None) -> str | None:
        """The value of a flag, the first of several. Raises UserError when it has none, or one not in ``choices``."""
        if flag not in self.values:
            return default
        if not self.values[flag]:
            raise UserError(f"--{flag} ({self.source[flag]}) needs a value")
        value = self.values[flag][0]
        if choices is not None and value not in (allowed := list(choices)):
            raise UserError(f"--{flag} {value} ({self.source[flag]}): allowed are {', '.join(allowed)}")
        return value

    def integer(
        self, flag: str, default: int | None = None, minimum: int | None = None, maximum: int | None = None
    ) -> int | None:
        """The value as an integer; ``2e9`` and ``100_000`` are accepted. Raises UserError otherwise."""
        number = self.number(flag, None, minimum)
        if number is None:
            return default
        if number != int(number):
            raise UserError(f"--{flag} {self.text(flag)} ({self.source[flag]}): a whole number is needed")
        text = self.text(flag).replace("_", "")
        value = int(text) if text.lstrip("+-").isdecimal() else int(number)
        if maximum is not None and value > maximum:
            raise UserError(f"--{flag} {self.text(flag)} ({self.source[flag]}): must be at most {maximum}")
        return value

    def number(self, flag: str, default: float | None = None, minimum: float | None = None) -> float | None:
        """The value as a float, at least ``minimum``. Raises UserError otherwise."""
        text = self.text(flag)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"--{flag} {text} ({self.source[flag]}): a number is needed") from None
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"--{flag} {text} ({self.source[flag]}): a finite number is needed")
        if minimum is not None and value < minimum:
            raise UserError(f"--{flag} {text} ({self.source[flag]}): must be at least {minimum:g}")
        return value

    def boolean(self, flag: str, default: bool) -> bool:
        """The value as a truth value; a bare flag is true. Raises UserError for any other text."""
        if flag not in self.values:
            return default
        if not self.values[flag]:
            return True
        word = self.text(flag)
        if word.lower() not in TRUE_WORDS | FALSE_WORDS:
            raise UserError(f"--{flag} {word} ({self.source[flag]}): allowed are true and false")
        return word.lower() in TRUE_WORDS

    def check(self, known: Iterable[str], lists: Iterable[str]) -> None:
        """Make sure that everything given is understood.

        Args:
            known: all flags there are.
            lists: those that take several values.

        Raises:
            UserError: words without a flag, flags that are not known (with the nearest that is), second values; all
                mistakes in one message.
        """
        known, lists = list(known), set(lists)
        wrong = [_told(words, where, known) for where, words in self.stray.items() if words]
        for flag, values in self.values.items():
            if flag not in known:
                wrong.append(f"unknown flag --{flag} ({self.source[flag]}){nearest(flag, known, prefix='--')}")
            elif len(values) > 1 and flag not in lists:
                wrong.append(f"--{flag} {' '.join(values)} ({self.source[flag]}): takes one value")
        if wrong:
            raise UserError("; ".join(wrong) + "; --help lists all flags")


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
            current = [value] if equals else []  # values of a repeated flag are dropped with this list
            found.setdefault(name.replace("-", "_"), current)
        elif not token.startswith("#"):
            (stray if current is None else current).append(token)
    return {flag: tuple(values) for flag, values in found.items()}, stray


def _told(stray: Sequence[str], where: str, known: Iterable[str]) -> str:
    """What is wrong with words that belong to no flag."""
    hint, word = "", stray[0].lstrip("-").partition("=")[0].replace("-", "_")
    if word.endswith(".txt"):
        hint = f" (did you mean --arg_file {stray[0]}?)"
    elif word in known:
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
        raise AssetMissingError(f"args file not found: {path} (the shipped ones are in args/)") from None
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
