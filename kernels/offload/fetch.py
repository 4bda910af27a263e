"""Copying units into buffers: from host memory or files, to a GPU or the CPU.

From files to a GPU there are three stages: threads read blocks into page-locked staging memory,
each issues the copies of its blocks on a stream of its own, and the computation waits for all of
them. On a CPU the threads read straight into the buffer.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kernels.offload.buffer_ring import Event, Queue
from kernels.offload.device_queue import copy_on, pin, unpin, wait_on
from kernels.offload.file_store import FileStore
from kernels.offload.layer_store import HostStore, memory_of, page_aligned
from kernels.offload.plan import Unit
from kernels.timeline import OFF, Timeline

READ_THREADS = 4 if (os.cpu_count() or 1) < 8 else 8
"""Blocks read at once. Four keep one NVMe disk busy; a RAID of several needs more."""
_STAGING_BLOCKS = 2
"""Per thread: one is read into while the other is copied to the GPU."""


class Parts:
    """The arrival of a unit in parts, each a future that ends once its copy is issued."""

    def __init__(self, parts: Sequence["Future[Event | None]"]) -> None:
        self._parts = parts

    @classmethod
    def issued(cls, event: Event | None) -> "Parts":
        """Return the arrival of a unit in one part whose copy is issued already."""
        part: Future[Event | None] = Future()
        part.set_result(event)
        return cls([part])

    def wait(self, queue: Queue) -> None:
        # For all of them, even if one failed: nothing may write to the buffer afterwards.
        failed = [part.exception() for part in self._parts]
        for error in failed:
            if error is not None:
                raise error
        for part in self._parts:
            event = part.result()
            if event is not None:
                queue.wait(event)


class _Fetcher:
    """Base of all fetches of weights: the units, and the timeline that records their copies."""

    timeline: Timeline = OFF

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        return computed  # weights do not change: nothing has to be saved

    def _span(self, unit: Unit) -> AbstractContextManager[None]:
        layer = unit.name.removeprefix("layers.")
        if layer == unit.name:
            return self.timeline.span("copy", unit.name)
        return self.timeline.span("copy", "layer", int(layer))


class HostToCpu(_Fetcher):
    """Copies within host memory, by a thread: a CPU takes the device's place."""

    def __init__(self, store: HostStore, units: Sequence[Unit]) -> None:
        super().__init__(units)
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offload-copy")

    def start(self, unit: int, buffer: Tensor, after: Event) -> Parts:
        return Parts([self._thread.submit(self._copy, unit, buffer, after)])

    def _copy(self, unit: int, buffer: Tensor, after: Event) -> None:
        after.synchronize()
        with self._span(self._units[unit]):
            buffer.copy_(self._store.flat(self._units[unit]))

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class HostToCuda(_Fetcher):
    """Copies from page-locked memory on a stream of its own, one copy per unit."""

    def __init__(
        self, store: HostStore, units: Sequence[Unit], device: torch.device
    ) -> None:
        super().__init__(units)
        self._store = store
        self._stream = torch.cuda.Stream(device)

    def start(self, unit: int, buffer: Tensor, after: Event) -> Parts:
        wait_on(self._stream, after)
        source = self._store.flat(self._units[unit])
        with torch.cuda.stream(self._stream), self._span(self._units[unit]):
            event = copy_on(self._stream, buffer, source)
        return Parts.issued(event)

    def close(self) -> None:
        self._stream.synchronize()  # the source of the copies is freed next


class FromFiles(_Fetcher):
    """Reads the blocks of a unit by several threads."""

    def __init__(
        self,
        store: FileStore,
        units: Sequence[Unit],
        device: torch.device,
        threads: int = READ_THREADS,
    ) -> None:
        super().__init__(units)
        self._store = store
        self._device = device
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="offload-read")
        self._own = threading.local()
        self._staging: list[_Staging] = []

    def start(self, unit: int, buffer: Tensor, after: Event) -> Parts:
        into: Callable[[Unit, int, Tensor, Event], Event | None]
        into = self._to_cuda if self._device.type == "cuda" else self._to_cpu
        blocks = _blocks(buffer, self._store.block_bytes)
        span = _SharedSpan(self._span(self._units[unit]), len(blocks))

        def fetch(start: int, part: Tensor) -> Event | None:
            with self._own_stream(), span:
                return into(self._units[unit], start, part, after)

        return Parts([self._threads.submit(fetch, *block) for block in blocks])

    def _to_cpu(self, unit: Unit, start: int, part: Tensor, after: Event) -> None:
        after.synchronize()
        self._store.read_block(unit, start, memory_of(part))

    def _to_cuda(self, unit: Unit, start: int, part: Tensor, after: Event) -> Event:
        staging = self._own_staging()
        block = staging.next_free()[: len(part)]
        self._store.read_block(unit, start, memory_of(block))
        wait_on(staging.stream, after)
        return staging.copied(copy_on(staging.stream, part, block))

    def _own_stream(self) -> AbstractContextManager[object]:
        if self._device.type == "cuda":
            return torch.cuda.stream(self._own_staging().stream)
        return nullcontext()

    def _own_staging(self) -> "_Staging":
        if not hasattr(self._own, "staging"):
            self._own.staging = _Staging(self._device, self._store.block_bytes)
            self._staging.append(self._own.staging)
        staging: _Staging = self._own.staging
        return staging

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for staging in self._staging:
            staging.close()


def _blocks(buffer: Tensor, block_bytes: int) -> list[tuple[int, Tensor]]:
    starts = range(0, len(buffer), block_bytes)
    return [(start, buffer[start : start + block_bytes]) for start in starts]


class _SharedSpan:
    """A context that the first of several threads enters and the last one leaves."""

    def __init__(self, context: AbstractContextManager[None], members: int) -> None:
        self._context = context
        self._is_entered = False
        self._still_inside = members
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._is_entered:
                self._context.__enter__()
            self._is_entered = True

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._still_inside -= 1
            if not self._still_inside:
                self._context.__exit__(None, None, None)


class _Staging:
    """A reading thread's page-locked blocks and its copy stream."""

    def __init__(self, device: torch.device, block_bytes: int) -> None:
        torch.cuda.set_device(device)
        self.stream = torch.cuda.Stream(device)
        self._blocks = [page_aligned(block_bytes) for _ in range(_STAGING_BLOCKS)]
        for block in self._blocks:
            pin(block)
        self._copied: list[Event | None] = [None] * _STAGING_BLOCKS
        self._turn = 0

    def next_free(self) -> Tensor:
        """Return a block once nothing is copied from it any more."""
        self._turn = (self._turn + 1) % _STAGING_BLOCKS
        busy = self._copied[self._turn]
        if busy is not None:
            busy.synchronize()
        return self._blocks[self._turn]

    def copied(self, event: Event) -> Event:
        """Remember when the copy from the block returned last ends, and return that event."""
        self._copied[self._turn] = event
        return event

    def close(self) -> None:
        self.stream.synchronize()
        for block in self._blocks:
            unpin(block)
        self._blocks.clear()
