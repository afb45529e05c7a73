"""The program: ``mimickit ...`` and ``python -m mimickit ...``."""

from mimickit.util.processes import end_at_interrupt, leave, outlive_reader


def console() -> None:
    """Run the program and end the process."""
    end_at_interrupt()
    outlive_reader()
    from mimickit.run import main

    leave(main())


if __name__ == "__main__":
    console()
