"""Convert a clip of an older asset pack, pickled as an object of a class, into a clip of plain values.

    python tools/convert_class_clip.py --input_file old.pkl --output_file new.pkl

The library refuses such files: unpickling an object may run anything. Here every class and function that the file names
is replaced by an empty stand-in that only keeps what it is given, so nothing of it is imported or run; loop mode, rate
and frames are then taken from what the stand-ins hold.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimickit.anim.motion import LoopMode, MotionClip, PlainUnpickler, clip_from_values
from mimickit.util.failures import UserError
from tools.convert_options import run


class StandIn:
    """In place of an instance: the arguments it was made with and the state it was given."""

    def __new__(cls, *args: Any) -> StandIn:  # pickle makes objects without __init__
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any) -> None:
        """Called where a pickle calls the class, or the function that this stands in for."""

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.state.update(part)

    def append(self, item: Any) -> None:
        """Lists of a foreign class."""

    def extend(self, items: Any) -> None:
        """Lists of a foreign class."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


class _StandInUnpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = self.allowed.get((module, name))
        return known if known is not None else type(name.rpartition(".")[2], (StandIn,), {})


def convert(args: argparse.Namespace) -> MotionClip:
    """The clip inside.

    Raises:
        UserError: damaged, or no loop mode, rate and frames are in it.
    """
    path = args.input_file
    try:
        data = _StandInUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise nearly anything; nothing of it has an effect
        raise UserError(f"{path} is damaged: {error or type(error).__name__}") from None
    values = data.state if isinstance(data, StandIn) else data
    if not isinstance(values, Mapping):
        raise UserError(f"{path} holds a {type(data).__name__}, neither an object nor a dictionary")
    named = {str(key).lstrip("_"): value for key, value in values.items()}
    missing = [key for key in ("loop_mode", "fps", "frames") if key not in named]
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)} in {type(data).__name__}, which has {', '.join(named)}")
    return clip_from_values({**named, "loop_mode": _loop_mode(named["loop_mode"])}, path)


def _loop_mode(value: Any) -> Any:
    """An enumeration's member is pickled as its class called with the value, or looked up by its name."""
    if isinstance(value, StandIn) and value.args:
        value = value.args[-1]
    if isinstance(value, str) and value.upper() in LoopMode.__members__:
        return int(LoopMode[value.upper()])
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--input_file", type=Path, required=True)
    parser.add_argument("--output_file", type=Path, required=True, help=".pkl or .npz")
    return run(convert, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
