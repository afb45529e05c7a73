"""Compile ahead the kernels that runs will need, each combination once: ``python mimickit/kernels.py JOB.json``.

``JOB.json`` holds ``runs`` (options of the run program, by name) and ``devices`` to compile for. Written beside it:
``compiled.json`` (progress), and at the end ``result.json``, which names marker files of each run's kernels: as long as
these exist, there is nothing to compile.

One process compiles one combination after the other. They share half of the work, which two processes would do twice.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import the package, not the files beside this one
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimickit.request import Request
from mimickit.request_reader import read_request
from mimickit.util.alive import ALIVE
from mimickit.util.args import Args
from mimickit.util.failures import EXIT_FAILED, EXIT_OK, UserError, write_failure
from mimickit.util.files import read_json, write_json
from mimickit.util.processes import leave

# Seconds on one core (2026-11-30, empty cache, torch 2.13, Newton 1.8); most of what the first one compiles is shared.
FIRST, NEW_CHARACTER, SAME_CHARACTER = 115.0, 15.0, 3.0


@dataclass(frozen=True)
class Combination:
    """One set of kernels. ``compile`` compiles them; ``marker`` is a file that exists afterwards."""

    name: str
    character: str
    marker: Path
    compile: Callable[[], None]


class _Found(Exception):
    """Stops building an environment when it asks for its engine."""


def main(argv: Sequence[str]) -> int:
    """Compile what is missing; exit code 0 if nothing is missing afterwards."""
    from mimickit.engines.kernel_cache import warp_cache_dir

    job_file = Path(argv[0])
    out_dir, job = job_file.parent, read_json(job_file)
    ALIVE.begin(out_dir, 0, is_root=True)
    ALIVE.start()
    markers: dict[str, list[str]] = {}
    missing: dict[Path, Combination] = {}
    for name, flags in job["runs"].items():
        try:
            found = list(combinations(flags, job["devices"], out_dir))
        except UserError as error:  # the run itself will say so
            print(f"{name}: {error}", flush=True)
            continue
        markers[name] = [str(one.marker) for one in found]
        missing |= {one.marker: one for one in found if not one.marker.exists()}
    first = not any((warp_cache_dir() / "mimickit_compiled").glob("*"))
    costs = expected(list(missing.values()), first)
    failed = []
    begin, planned = time.monotonic(), 0.0
    for number, (one, cost) in enumerate(zip(missing.values(), costs)):
        pace = (time.monotonic() - begin) / planned if planned else 1.0
        write_json(out_dir / "compiled.json", {
            "done": number, "total": len(missing), "what": one.name, "began": time.monotonic(),
            "expected_s": pace * cost, "left_s": pace * sum(costs[number + 1:])})
        try:
            one.compile()
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{one.name}: {error}")
            continue
        print(f"{number + 1}/{len(missing)} {one.name} after {time.monotonic() - begin:.0f} s", flush=True)
        planned += cost
    write_json(out_dir / "result.json", {"mode": "compile", "ok": not failed, "markers": markers,
                                         "compiled": len(missing), "seconds": round(time.monotonic() - begin, 1)})
    if failed:
        write_failure(out_dir, 0, RuntimeError("; ".join(failed)))
    return EXIT_FAILED if failed else EXIT_OK


def expected(missing: Sequence[Combination], first: bool) -> list[float]:
    """Rough seconds for each: the first on a machine, the first of a character, another of the same."""
    costs, known = [], set()
    for one in missing:
        costs.append(SAME_CHARACTER if one.character in known else NEW_CHARACTER)
        known.add(one.character)
    if first and costs:
        costs[0] = FIRST
    return costs


def combinations(flags: Sequence[str], devices: Sequence[str], out_dir: Path) -> Iterator[Combination]:
    """Kernels a run needs: physics of one world or several, for each kind of device, and pictures."""
    from mimickit.engines.kernel_cache import marker
    from mimickit.engines.newton_engine import NewtonEngine, engine_key
    from mimickit.engines.newton_viewer import picture_key

    args = Args.from_argv(list(flags))
    args.values.pop("model_file", None)  # there is none yet
    request = read_request(args)
    spec, config = world_of(request)
    character, worlds = Path(spec.char_file).stem, min(request.num_envs, 2)
    for device in devices:
        def build(device: str = device) -> None:
            NewtonEngine(spec, config, worlds, device).close()

        name = f"{character}, {'several worlds' if worlds > 1 else 'one world'}"
        yield Combination(name, character, marker(engine_key(spec, config, worlds, device)), build)
    if request.mode == "test" and args["video"]:
        show = bool(getattr(request.env, "visualize_ref_char", False))
        yield Combination("pictures", "pictures", marker(picture_key(show)), lambda: draw(request, devices[0], out_dir))


def world_of(request: Request) -> tuple[Any, Any]:
    """World and physics settings that an environment would build its engine with."""
    from mimickit.envs.env_builder import build_env

    asked: list[Any] = []

    def note(spec: Any, config: Any, *_: Any) -> Any:
        asked.extend((spec, config))
        raise _Found

    with contextlib.suppress(_Found):
        build_env(request.env, request.engine, 2, "cpu", make_engine=note)
    return asked[0], asked[1]


def draw(request: Request, device: str, out_dir: Path) -> None:
    """Begin a film, which compiles the kernels of pictures."""
    from mimickit.envs import filming
    from mimickit.envs.env_builder import build_env

    env = build_env(request.env, request.engine, 1, device)
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        filming.video(env, Path(folder) / "film.mp4", width=64, height=48).close()
    env.close()


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
