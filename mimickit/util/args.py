"""Command line and args files: ``--flag value value ...``; the first occurrence of a flag wins.

The command line is read before the file that its ``--arg_file`` names, so it overrides the file; within one source the
first mention wins. A token that begins with ``#`` ends its line's values in a file and is dropped on a command line.
No heavy imports: the acceptance suite reads args files with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import nearest

TRUE_WORDS = frozenset({"true", "t", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "f", "0", "no", "off"})


@dataclass(frozen=True)
class Args:
    """Flags and their values, in order of first mention; ``source`` tells where each flag came from."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Args:
        """Parse a command line (without the program name) and the args file it names.

        Raises:
            AssetMissingError: the args file does not exist.
        """
        command = parse_tokens(argv)
        values, source = dict(command), dict.fromkeys(command, "command line")
        for path in command.get("arg_file", ())[:1]:
            for flag, given in read_arg_file(path).items():
                if flag not in values and flag != "arg_file":
                    values[flag], source[flag] = given, str(path)
        return cls(values, source)

    def __contains__(self, flag: str) -> bool:
        return flag in self.values

    def get(self, flag: str) -> list[str] | None:
        """All values of a flag, or None when it was not given."""
        return list(self.values[flag]) if flag in self.values else None

    def text(self, flag: str, default: str | None = None, choices: Iterable[str] | None = None) -> str | None:
        """First value of a flag. Raises UserError when it has none, or one that is not in ``choices``."""
        if flag not in self.values:
            return default
        if not self.values[flag]:
            raise UserError(f"--{flag} ({self.source[flag]}) needs a value")
        value = self.values[flag][0]
        if choices is not None and value not in (allowed := list(choices)):
            raise UserError(f"--{flag} {value} ({self.source[flag]}): allowed are {', '.join(allowed)}")
        return value

    def integer(self, flag: str, default: int | None = None, minimum: int | None = None) -> int | None:
        """First value as an integer; ``2e9`` and ``100_000`` are accepted. Raises UserError otherwise."""
        number = self.number(flag, None, minimum)
        if number is None:
            return default
        if number != int(number):
            raise UserError(f"--{flag} {self.text(flag)} ({self.source[flag]}): a whole number is needed")
        text = self.text(flag).replace("_", "")
        return int(text) if text.lstrip("+-").isdigit() else int(number)

    def number(self, flag: str, default: float | None = None, minimum: float | None = None) -> float | None:
        """First value as a float, at least ``minimum``. Raises UserError otherwise."""
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
        """First value as a truth value; a bare flag is true. Raises UserError for any other text."""
        if flag not in self.values:
            return default
        if not self.values[flag]:
            return True
        word = self.values[flag][0].lower()
        if word not in TRUE_WORDS | FALSE_WORDS:
            raise UserError(f"--{flag} {self.values[flag][0]} ({self.source[flag]}): allowed are true and false")
        return word in TRUE_WORDS

    def require_known(self, known: Iterable[str]) -> None:
        """Raise UserError naming every flag that is not in ``known``, with the nearest known one."""
        known = list(known)
        unknown = [f"unknown flag --{flag} ({self.source[flag]}){nearest(flag, known, prefix='--')}"
                   for flag in self.values if flag not in known]
        if unknown:
            raise UserError("; ".join(unknown) + "; --help lists all flags")


def parse_tokens(tokens: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Flags and their values from tokens. A flag starts with ``--`` and has at least three characters; what follows,
    up to the next flag, are its values; tokens before the first flag and tokens starting with ``#`` are dropped."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for token in tokens:
        if token.startswith("--") and len(token) >= 3:
            current = []  # values of a repeated flag are dropped with this list
            found.setdefault(token[2:], current)
        elif current is not None and not token.startswith("#"):
            current.append(token)
    return {flag: tuple(values) for flag, values in found.items()}


def read_arg_file(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Flags of an args file: lines beginning with ``#`` are skipped, the rest of a line after a ``#`` token too."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise AssetMissingError(f"args file not found: {path} (the shipped ones are in args/)") from None
    tokens: list[str] = []
    for line in text.splitlines():
        for token in line.split():
            if token.startswith("#"):
                break
            tokens.append(token)
    return parse_tokens(tokens)
