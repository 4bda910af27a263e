"""Copying units of weights into buffers: from host memory or files, to a GPU or a CPU.

From page-locked memory to a GPU a unit is one copy. Otherwise threads bring it block by block:
straight into the buffer of a CPU; for a GPU into page-locked staging blocks, which are copied to
the buffer in turn.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from queue import SimpleQueue
from threading import Lock

import torch
from torch import Tensor

from kernels.offload.buffer_ring import Arrival, CopyStream, Event, Reached, issued
from kernels.offload.plan import Unit
from kernels.offload.store import HostStore, Store, page_aligned, pin, unpin
from kernels.timeline import OFF, Timeline

READ_THREADS = 4 if (os.cpu_count() or 1) < 8 else 8
"""Blocks read at once. Four keep one NVMe disk busy; a RAID of several needs more."""


class WeightFetch:
    """Base of the fetches of weights, which do not change: nothing has to be saved."""

    timeline: Timeline = OFF

    def __init__(self, units: Sequence[Unit], device: torch.device) -> None:
        self._units = units
        self._stream = CopyStream(device)

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        return computed

    def _span(self, unit: Unit) -> AbstractContextManager[None]:
        layer = unit.name.removeprefix("layers.")
        if layer == unit.name:
            return self.timeline.span("copy", unit.name)
        return self.timeline.span("copy", "layer", int(layer))


class PinnedFetch(WeightFetch):
    """Copies each unit from page-locked memory to a GPU."""

    def __init__(
        self, store: HostStore, units: Sequence[Unit], device: torch.device
    ) -> None:
        super().__init__(units, device)
        self._store = store

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        source = self._store.flat(self._units[unit])
        span = self._span(self._units[unit])
        return issued(self._stream.copy(buffer, source, after, span))

    def close(self) -> None:
        self._stream.synchronize()  # the source of the copies is freed next


class BlockFetch(WeightFetch):
    """Reads the blocks of a unit by several threads."""

    def __init__(
        self,
        store: Store,
        units: Sequence[Unit],
        device: torch.device,
        threads: int = READ_THREADS,
    ) -> None:
        super().__init__(units, device)
        self._store = store
        self._staging: SimpleQueue[tuple[Tensor, Event]] | None = None
        if device.type == "cuda":
            # Two a thread: one is read into while the other is copied to the GPU.
            self._staging = _staging_blocks(2 * threads, store.block_bytes)
        self._threads = ThreadPoolExecutor(threads, "offload-read", _use, (device,))

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        read, size = self._units[unit], self._store.block_bytes
        blocks = [(at, buffer[at : at + size]) for at in range(0, len(buffer), size)]
        span = _SharedSpan(self._span(read), len(blocks))

        def fetch(at: int, part: Tensor) -> Event | None:
            with self._stream.current(), span:
                return self._fetch(read, at, part, after)

        return [self._threads.submit(fetch, *block) for block in blocks]

    def _fetch(self, unit: Unit, at: int, part: Tensor, after: Event) -> Event | None:
        if self._staging is None:
            after.synchronize()
            self._store.read_block(unit, at, part)
            return None
        staged, event = self._staging.get()
        try:
            event.synchronize()  # until what was in it before has been copied
            self._store.read_block(unit, at, staged[: len(part)])
            event = self._stream.copy(part, staged[: len(part)], after)
            return event
        finally:
            self._staging.put((staged, event))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._stream.synchronize()
        while self._staging is not None and not self._staging.empty():
            unpin(self._staging.get()[0])


def fetch_for(
    store: Store, units: Sequence[Unit], device: torch.device
) -> PinnedFetch | BlockFetch:
    """Return the fastest way from a store to a device."""
    if isinstance(store, HostStore) and device.type == "cuda":
        return PinnedFetch(store, units, device)
    return BlockFetch(store, units, device)


def _use(device: torch.device) -> None:
    # A thread that leaves this out makes a context on the first GPU, whichever is this rank's.
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _staging_blocks(count: int, num_bytes: int) -> SimpleQueue[tuple[Tensor, Event]]:
    """Allocate page-locked blocks, each with the event of the last copy out of it."""
    blocks: SimpleQueue[tuple[Tensor, Event]] = SimpleQueue()
    for _ in range(count):
        block = page_aligned(num_bytes)
        pin(block)
        blocks.put((block, Reached()))
    return blocks


class _SharedSpan:
    """A context that the first of several threads enters and the last one leaves."""

    def __init__(self, context: AbstractContextManager[None], members: int) -> None:
        self._context = context
        self._members = members
        self._entered = self._left = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self._context.__enter__()
            self._entered += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._left += 1
            if self._left == self._members:
                self._context.__exit__(None, None, None)
