"""The rules of run folders: which one a run works in, who may write there, and which run its files belong to.

* A run that is given no ``--out_dir`` on the command line gets a folder of its own: ``output/<case>/<date>-<n>``.
* One process works in a folder at a time: it holds the lock on ``run.lock`` for its life.
* A training never mixes with another: a folder that holds one is continued (``--resume``), cleared (``--overwrite``) or
  refused. ``run.json`` and every checkpoint name the run that they belong to.
* A test in the folder of a training works in ``test`` below it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mimickit.util.args import COMMAND_LINE, Args
from mimickit.util.failures import UserError
from mimickit.util.files import read_json, write_json
from mimickit.util.options import OUT_DIR
from mimickit.util.processes import is_alive

OWN = "a folder of its own"
LOCK, RUN = "run.lock", "run.json"
ENDING = 60.0  # s that the system may take for a killed process: unmapping a GPU's memory takes seconds
WHAT_TRAINING_LEAVES = ("log.txt", "model.pt", "int_models", "checkpoints")
# --overwrite removes these; the run's name last, so that what a killed removal leaves still has one. Heartbeats and
# failures stay: other processes of the new run may have begun, and each removes its own failure.
_TO_CLEAR = ("result.json", "progress.json", "wandb", "events.out.tfevents*",
             "run_config.yaml", "log.txt", "log_[0-9]*.txt", "model.pt", "int_models", "checkpoints", RUN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS, errno.EACCES, errno.EPERM)


def choose(args: Args) -> Args:
    """The arguments with ``out_dir`` and ``resume`` as this run will use them. Makes nothing.

    Raises:
        UserError: ``--resume`` without a path or folder to continue in, or with ``--overwrite`` of what it continues.
    """
    given = None if wants_own(args) else args["out_dir"]
    if args.values.get("resume") == ():
        if given is None:
            raise UserError(f"--resume ({args.source['resume']}) without a path continues the run in --out_dir, which "
                            "is not given: name the run folder with either")
        args = args.with_value("resume", given)
    resume = args["resume"]
    if given is None and resume is not None:
        given = str(source_folder(Path(resume)))
    if given is None:
        return args.with_value("out_dir", str(own_folder(Path(args["out_dir"]), case_name(args))),
                               source=OWN)
    overwrite = args["overwrite"]
    if overwrite and resume is not None and _same(source_folder(Path(resume)), Path(given)):
        raise UserError(f"--overwrite would remove what --resume {resume} continues from: give one of them, or another "
                        "--out_dir")
    model = args["model_file"]
    if overwrite and model is not None and Path(given).resolve() in Path(model).resolve().parents:
        raise UserError(f"--overwrite would remove --model_file {model}: give another --out_dir")
    if args["mode"] == "test" and holds_training(Path(given)):
        given = str(Path(given) / "test")
    return args.with_value("out_dir", given)


def is_own(args: Args) -> bool:
    """Whether :func:`choose` found a new folder for this run alone."""
    return args.source.get("out_dir") == OWN


def wants_own(args: Args) -> bool:
    """Whether no particular folder was given: nothing on the command line, at most ``output/`` in an args file."""
    return args.source.get("out_dir") != COMMAND_LINE and Path(args["out_dir"]) == Path(OUT_DIR)


def case_name(args: Args) -> str:
    """``amp_g1`` of ``args/amp_g1_args.txt``; without an args file of ``amp_g1_env.yaml``."""
    file = args["arg_file"] or args["env_config"] or "run"
    return Path(file).stem.removesuffix("_args").removesuffix("_env")


def own_folder(base: Path, case: str) -> Path:
    """The next free ``<base>/<case>/<date>-<n>``."""
    date, n = time.strftime("%Y-%m-%d"), 1
    while os.path.lexists(base / case / f"{date}-{n}"):
        n += 1
    return base / case / f"{date}-{n}"


def make_own(folder: Path) -> Path:
    """Make the folder, or the next free one where another run was faster."""
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder = own_folder(folder.parents[1], folder.parent.name)


def source_folder(resume: Path) -> Path:
    """The run folder of ``--resume``, which names it or one of its checkpoints."""
    return resume.parents[1] if resume.parent.name == "checkpoints" else resume


def holds_training(folder: Path) -> bool:
    """Whether there is something of a training that a new one would destroy."""
    found = [folder / name for name in WHAT_TRAINING_LEAVES]
    return any(any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0 for path in found)


def check(folder: Path, resume: str | None, overwrite: bool) -> None:
    """Refuse to train in a folder that holds another training.

    Args:
        resume: where the training to come continues from, if it does.
        overwrite: what is there may be removed.

    Raises:
        UserError: with the choices.
    """
    if overwrite or not holds_training(folder):
        return
    if resume is None or not _same(source_folder(Path(resume)), folder):
        raise UserError(f"{folder} holds a training already{_age(folder)}: continue it with --resume {folder} (or "
                        f"mimickit train {folder}), replace it with --overwrite (its checkpoints, models and log are "
                        "removed), or give another --out_dir")
    if not _same(Path(resume), folder):
        chosen, run = Path(resume).name, identity(folder)
        if run is not None and read_json(Path(resume) / "manifest.json").get("run") != run:
            raise UserError(f"--resume {resume} belongs to another run than the one in {folder}: give another "
                            "--out_dir")
        newer = sorted(path.name for path in (folder / "checkpoints").glob("[0-9]*") if path.name > chosen)
        if newer:
            raise UserError(f"--resume {resume}: {folder} has newer checkpoints ({', '.join(newer)}), which going on "
                            f"from this one would lose: give another --out_dir, or --resume {folder} for the newest")


def clear(folder: Path) -> None:
    """Remove everything that a training left in a folder; other files stay."""
    for pattern in _TO_CLEAR:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def abandon(folder: Path) -> None:
    """Remove what the start of a run left in a folder that it made, and the folder if there is nothing else in it."""
    shutil.rmtree(folder / "heartbeat", ignore_errors=True)
    with contextlib.suppress(OSError):  # there is more in it
        for name in ("progress.json", LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def identity(folder: Path) -> str | None:
    """Name of the run that works in a folder; None where it does not say (folders of older versions)."""
    name = read_json(folder / RUN).get("run")
    return name if isinstance(name, str) else None


def continued(folder: Path, resume: str | None) -> str | None:
    """Name of the run that ``--resume`` continues in its own folder: "" where that has none; None for a new run."""
    here = resume is not None and _same(source_folder(Path(resume)), folder)
    return (identity(folder) or "") if here else None


def name_run(folder: Path, run: str | None = None) -> str:
    """Give a folder's run a name, ``run`` or a new one, and return it. A run without a name ("") stays so."""
    run = uuid.uuid4().hex[:12] if run is None else run
    if run and identity(folder) != run:
        write_json(folder / RUN, {"run": run, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    return run


class Claim:
    """The right to work in a run folder, held until :meth:`release` or the end of the process."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._taken = False

    def take(self, folder: Path) -> None:
        """Lock a folder, once. Raises UserError where another process works in it."""
        if not self._taken:
            self._file = lock(folder)
            self._taken = True

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def lock(folder: Path) -> IO[str] | None:
    """Hold a folder until the process ends or the file is closed. Waits for a holder that was killed to be gone.

    Returns:
        The open lock file; None where the file system has no locks or is not writable.

    Raises:
        UserError: another process holds it; the message says which.
    """
    file: IO[str] | None = None
    try:
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held for as long as the run)
        deadline = time.monotonic() + ENDING
        while not _hold(file):
            holder = _read_holder(file)
            if not _ending(holder) or time.monotonic() > deadline:
                raise UserError(f"{folder} is in use by {_name(holder)}: wait for it or end it, or give another "
                                "--out_dir")
            time.sleep(0.05)
    except UserError:
        file.close()
        raise
    except OSError as error:
        if file is not None:
            file.close()
        if error.errno not in _NO_LOCKS:
            raise
        from mimickit.util.logging import warn

        warn(f"{folder} cannot be locked ({error.strerror}): nothing keeps a second run out of it")
        return None
    with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                               "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        file.flush()
    return file


def _hold(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(file: IO[str]) -> dict[str, Any]:
    """What the process that holds the lock wrote about itself; empty where it has not, or not yet."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return {"pid": int(found["pid"]), "host": found["host"], "since": found["since"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _ending(holder: Mapping[str, Any]) -> bool:
    """Whether the holder runs no more, but keeps its locks until the system is done with it."""
    return bool(holder) and holder["host"] == socket.gethostname() and not is_alive(holder["pid"])


def _name(holder: Mapping[str, Any]) -> str:
    return "process {pid} on {host} since {since}".format_map(holder) if holder else "another process"


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _age(folder: Path) -> str:
    """`` (iteration 12, 1,572,864 samples)``, or nothing where it is not known."""
    known = read_json(folder / "progress.json")
    if not isinstance(known.get("samples"), int):
        return ""
    return f" (iteration {known.get('iteration')}, {known['samples']:,} samples)"
