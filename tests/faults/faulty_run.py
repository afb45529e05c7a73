"""The real run program with a real fault in it.

Stands in for ``mimickit/run.py`` as the suite's ``--runner``. The environment variable ``FAULT_FILE`` names a JSON file
(see :class:`Fault`); without one the program runs as it is. Nothing of the product knows about faults: functions are
wrapped from outside, and what they then do is real (memory is used up, processes die, connections break).

Every injection and every start of training appends a line to ``<FAULT_FILE>.jsonl``: event (``fault``, ``start``),
time, stage, rank, pid, samples.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # run as a script: import packages, not the files beside this one
    sys.path[0] = str(ROOT)

from mimickit import run  # noqa: E402
from mimickit.util.args import Args  # noqa: E402
from mimickit.util.processes import leave  # noqa: E402

MIB = 2**20
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fault:
    """What goes wrong where.

    Attributes:
        kind: name of one of ACTIONS.
        when: ``iteration`` (inside one), ``engine`` (before the world is built) or ``agent`` (before the agent is).
        stage: of the suite; rank: the process that is hit, None all; iteration: counted from 1 in this process.
        times: so many starts of the program are hit; above_envs: only starts with more environments than this.
    """

    kind: str
    when: str = "iteration"
    stage: str = "long_train"
    rank: int | None = 1
    iteration: int = 5
    times: int = 1
    above_envs: int = 0


class Journal:
    """The file that tells what happened, appended to by all processes."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def write(self, event: str, **more: Any) -> None:
        entry = {"event": event, "time": time.time(), "monotonic": time.monotonic(), "stage": self.stage,
                 "rank": rank(), "pid": os.getpid(), "run": run_id(), **more}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def hits(self) -> set[str]:
        """Earlier starts of the program that were hit."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        entries = [json.loads(line) for line in lines]
        return {entry["run"] for entry in entries if entry["event"] == "fault"} - {run_id()}


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def run_id() -> str:
    """The same in all processes of one start."""
    return os.environ.get("MIMICKIT_STARTED", repr(run.PROCESS_START))


def launcher() -> int:
    """The process the suite's guard started: torchrun's, or this one."""
    return os.getppid() if "LOCAL_RANK" in os.environ else os.getpid()


def guard() -> int:
    """The process that the suite started, above the launcher."""
    return int(Path(f"/proc/{launcher()}/stat").read_text().rpartition(")")[2].split()[1])


# --- what can go wrong ------------------------------------------------------------------------------------------------


def limit_memory(*training: Any) -> None:
    """Host memory: from here on the process gets 8 MiB of address space more; the next big request fails.

    Building the world makes such requests by itself, an iteration seldom does.
    """
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * MIB, resource.RLIM_INFINITY))
    if training:
        training[0].waste = training[0].env.obs.new_ones(64 * MIB)


def wake_oom_killer(training: Any) -> None:
    """Host memory: the process joins a control group with room for 64 MiB and writes to 512 MiB."""
    v2 = (CGROUP / "cgroup.controllers").exists()
    group = (CGROUP if v2 else CGROUP / "memory") / f"faulty_run_{os.getpid()}"
    group.mkdir()
    (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(64 * MIB))
    (group / "cgroup.procs").write_text(str(os.getpid()))  # what is allocated before stays charged elsewhere
    training.waste = [bytearray(b"x") * (16 * MIB) for _ in range(32)]


def fill_gpu(left: int) -> Callable[[], None]:
    """GPU memory: one tensor takes all that is free but ``left`` MiB; the next big request fails, torch's or Warp's."""

    def action() -> None:
        import torch

        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.init()
        free, _ = torch.cuda.mem_get_info(device)
        action.held = torch.empty(max(free - left * MIB, 0), dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)

    return action


def assert_on_device(training: Any) -> None:
    """CUDA: an index beyond its table fails an assertion on the device."""
    import torch

    table = torch.zeros(4, device=training.env.device)
    training.waste = table[torch.full((8,), 1000, device=training.env.device)]


def write_to_nowhere(training: Any) -> None:
    """CUDA: a kernel writes 32 TiB beyond the end of an array."""
    import warp as wp

    @wp.kernel
    def write(target: wp.array(dtype=wp.float32)):
        target[wp.tid()] = 1.0

    device = str(training.env.device)
    nowhere = wp.zeros(1024, dtype=wp.float32, device=device).ptr + 2**45
    wp.launch(write, 1024, [wp.array(ptr=nowhere, shape=1024, dtype=wp.float32, device=device)], device=device)


def cut_connections(training: Any) -> None:
    """Communication breaks while everybody lives: gloo's sockets are shut, NCCL's communicator is aborted."""
    import torch.distributed as c10d

    if training.env.device.type == "cuda":
        c10d.distributed_c10d._get_default_group()._get_backend(training.env.device).abort()
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # not a socket, or closed meanwhile
            continue
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
            with contextlib.suppress(OSError):  # a listening one
                connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def leave_in_a_collective(training: Any) -> None:
    """The process ends without a word while a collective is on its way."""
    import torch
    import torch.distributed as c10d

    c10d.all_reduce(torch.ones(4 * MIB, device=training.env.device), async_op=True)
    os._exit(13)


def send(number: int, who: Callable[[], int] = os.getpid) -> Callable[[Any], None]:
    def action(training: Any) -> None:
        os.kill(who(), number)

    return action


def sleep_for_ever(training: Any) -> None:
    while True:
        time.sleep(60)


def break_a_number(training: Any) -> None:
    """From here on physics reports NaN for one joint of one world."""
    step = training.env.engine.step

    def broken() -> None:
        step()
        training.env.engine.dof_vel[0, 0] = float("nan")

    training.env.engine.step = broken


def no_room_for_contacts() -> None:
    """The solver gets room for one contact a world; it drops the others."""
    from mimickit.engines import newton_engine

    capacity = newton_engine.contact_capacity

    def too_little(*args: Any) -> Any:
        found, known = capacity(*args)
        return found.model_copy(update={"nconmax": 1, "njmax": 8}), known

    newton_engine.contact_capacity = too_little


def fill_disk(training: Any) -> None:
    """Somebody else fills the disk that the run folder is on; less than a checkpoint is left."""
    folder = next(path for path in training.out_dir.resolve().parents if path.is_mount())
    state = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - 6 * MIB)


def small_files_only(training: Any) -> None:
    """Disk, where no small file system can be mounted: no file may grow beyond 1 MiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))


def nothing(training: Any) -> None:
    """Only the note in the journal: whoever reads it does the rest."""


ACTIONS: dict[str, Callable[..., None]] = {
    "host_oom": limit_memory, "oom_killer": wake_oom_killer,
    "gpu_oom_physics": fill_gpu(256), "gpu_oom_learning": fill_gpu(16),
    "device_assert": assert_on_device, "illegal_access": write_to_nowhere,
    "cut": cut_connections, "exit": leave_in_a_collective,
    "kill_rank": send(signal.SIGKILL), "stop_rank": send(signal.SIGSTOP), "crash": send(signal.SIGSEGV),
    "kill_trainer": send(signal.SIGKILL, launcher), "kill_guard": send(signal.SIGKILL, guard),
    "preempt": send(signal.SIGTERM, launcher),
    "hang": sleep_for_ever, "nan": break_a_number, "overflow": no_room_for_contacts,
    "fill_disk": fill_disk, "small_files": small_files_only, "note": nothing,
}


# --- where it goes wrong ----------------------------------------------------------------------------------------------


def install(fault: Fault | None, journal: Journal, num_envs: int) -> None:
    """Wrap the run program's functions: note every start of training, and hit where the fault says."""
    start_workers_as_this_program()
    if rank() == 0:
        note_starts(journal)
    if fault is None or journal.stage != fault.stage or num_envs <= fault.above_envs:
        return
    if fault.rank not in (None, rank()) or len(journal.hits()) >= fault.times:
        return
    if fault.when == "iteration":
        before_iteration(fault, journal)
    elif fault.when == "engine":
        from mimickit.engines.kernel_cache import warp_cache_dir
        from mimickit.envs import env_builder

        warp_cache_dir()  # loads Warp: importing without memory can spin for ever in CPython
        env_builder.build_env = after(env_builder.build_env, lambda: hit(fault, journal))
    elif fault.when == "agent":
        from mimickit.learning import methods

        methods.build_agent = after(methods.build_agent, lambda: hit(fault, journal))
    else:
        raise ValueError(f"fault.when {fault.when!r}")


def hit(fault: Fault, journal: Journal, *training: Any) -> None:
    journal.write("fault", kind=fault.kind, samples=training[0].state.samples if training else None)
    ACTIONS[fault.kind](*training)


def after(function: Callable, first: Callable[[], None]) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        first()
        return function(*args, **options)

    return wrapped


def before_iteration(fault: Fault, journal: Journal) -> None:
    from mimickit.learning.trainer import Training

    iterate = Training._iterate

    def wrapped(self: Any) -> None:
        if self.iterations_here + 1 == fault.iteration:
            hit(fault, journal, self)
        iterate(self)

    Training._iterate = wrapped


def note_starts(journal: Journal) -> None:
    from mimickit.learning.trainer import Training

    start = Training._start

    def wrapped(self: Any) -> None:
        start(self)
        journal.write("start", samples=self.state.samples)

    Training._start = wrapped


def start_workers_as_this_program() -> None:
    """The launcher names mimickit/run.py to torchrun; it has to be this file."""
    import torch.distributed.run as torchrun

    main, script = torchrun.main, str(Path(run.__file__).resolve())
    torchrun.main = lambda argv: main([__file__ if word == script else word for word in argv])


def main() -> int:
    file = Path(os.environ["FAULT_FILE"])
    args = Args.from_argv(sys.argv[1:])
    fault = Fault(**json.loads(file.read_text())) if file.exists() else None
    stage = Path(args["out_dir"]).name
    install(fault, Journal(file.with_suffix(".jsonl"), stage), args["num_envs"])
    return run.main()


if __name__ == "__main__":
    leave(main())
