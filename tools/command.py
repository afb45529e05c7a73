"""What every command-line tool does with a user's mistake."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from mimickit.util.failures import EXIT_USER_ERROR, UserError

P = ParamSpec("P")


def explains_mistakes(main: Callable[P, int]) -> Callable[P, int]:
    """``main`` that answers a mistake with one message on stderr and exit code 2, without a traceback.

    Mistakes are a UserError, and a file that the system refuses to read or write ("FILE: reason").
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(error, file=sys.stderr)
        except OSError as error:
            file = error.filename2 or error.filename
            if file is None or not error.strerror:
                raise
            print(f"{file}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR

    return wrapped
