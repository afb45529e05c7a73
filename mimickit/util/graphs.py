"""One helper for CUDA graphs: run a function as it is on CPU, capture it once and replay it on CUDA.

Rules for a function that is captured: fixed shapes, results written into tensors that outlive the call, no host
synchronisation, no Python decision on tensor values, no tensors made from host data. Python code runs only while
warming up and capturing; a replay repeats the recorded kernels on the same memory. Temporary tensors of all graphs of a
device share one pool: graphs are replayed one after the other and leave nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@cache
def shared_pool(device: torch.device) -> tuple[int, int]:
    """The memory pool of all graphs of a CUDA device."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()


class Graphed:
    """Callable that replays ``fn`` as a CUDA graph, or simply calls it on CPU.

    The graph is captured at the first call. ``fn`` then runs ``warmup`` times on a side stream (libraries allocate
    their workspaces there); afterwards ``state`` and the device's default random generator are put back, so that the
    first call has exactly the effect of one ``fn()``, and every call draws the same random numbers as without a graph.

    Args:
        fn: function without arguments and result.
        device: where its tensors live.
        warmup: runs before capture, at least 1.
        state: tensors that ``fn`` reads and changes (counters, accumulators, parameters, optimizer moments). Tensors
            that ``fn`` only overwrites need not be listed.
        enabled: ``False`` runs eagerly on CUDA too, for debugging.

    Python attributes that ``fn`` changes are not put back: it must not change any.
    """

    def __init__(
        self,
        fn: Callable[[], None],
        device: torch.device | str,
        warmup: int = 3,
        state: Sequence[torch.Tensor] = (),
        enabled: bool = True,
    ) -> None:
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1, got {warmup}")
        self._fn = fn
        self._device = torch.device(device)
        self._warmup = warmup
        self._state = tuple(state)
        self._use_graph = enabled and self._device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._graph is not None

    def __call__(self) -> None:
        if not self._use_graph:
            self._fn()
            return
        if self._graph is None:
            self._capture()
        self._graph.replay()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            capture(graph, self._fn, self._warmup, self._state, shared_pool(self._device))
        self._graph = graph


def capture(
    graph: torch.cuda.CUDAGraph, fn: Callable[[], T], warmup: int = 3, state: Sequence[torch.Tensor] = (),
    pool: tuple[int, int] | None = None,
) -> T:
    """Capture ``fn`` on the current device, see :class:`Graphed`; its result, whose tensors every replay fills.

    Args:
        pool: where temporary tensors (and the result's) live; None: memory of the graph's own.
    """
    saved = [tensor.detach().clone() for tensor in state]
    random_state = torch.cuda.get_rng_state()

    main = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(warmup):
            fn()
    main.wait_stream(side)

    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
    torch.cuda.set_rng_state(random_state)

    # thread_local: a communication library's watchdog thread may query events meanwhile
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = fn()
    torch.cuda.set_rng_state(random_state)
    return result


class SideStreamGraph(Generic[T]):
    """Runs a function as a graph on a stream of its own, with memory of its own, while the device does other work.

    :meth:`begin` queues it after all work queued so far; work queued after :meth:`wait` comes after it. On CPU it runs
    at :meth:`begin`. Other work between the two must not write what it reads, read what it writes, or be a graph of
    torch's (graphs share the place of the random generator's state).

    Args:
        fn: function without arguments. It may write buffers, but must not read what an earlier call wrote.
        device: where its tensors live.

    Attributes:
        result: of the last call; tensors in it stay valid until the next :meth:`begin`.
    """

    result: T

    def __init__(self, fn: Callable[[], T], device: torch.device | str) -> None:
        self._fn = fn
        self._device = torch.device(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None

    def begin(self) -> None:
        """Queue the function. Does not wait."""
        if self._device.type != "cuda":
            self.result = self._fn()
            return
        with torch.cuda.device(self._device):
            if self._graph is None:
                self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
                self.result = capture(self._graph, self._fn)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._graph.replay()

    def wait(self) -> None:
        """Work queued from now on comes after the function."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
