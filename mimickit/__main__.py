"""The program: ``mimickit ...`` and ``python -m mimickit ...``."""

import os
import signal


def end_now(*_: object) -> None:
    """Handler of Ctrl-C until a run has been built: an exception would crash the libraries that are being imported."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def console() -> None:
    """Run the program and end the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it ignored
        signal.signal(signal.SIGINT, end_now)
    from mimickit.run import main
    from mimickit.util.processes import leave

    leave(main())


if __name__ == "__main__":
    console()
