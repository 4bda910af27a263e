"""Copying units of weights into buffers: from host memory or files, to a GPU or a CPU.

From page-locked memory to a GPU a unit is one copy. Otherwise threads bring it block by block:
straight into the buffer of a CPU; for a GPU into page-locked staging blocks, which are copied to
the buffer in turn.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from kernels.offload.buffer_ring import Arrival, Event, Stream, issued
from kernels.offload.plan import MAX_DEPTH, Unit
from kernels.offload.store import HostMemory, HostStore, Store
from kernels.timeline import OFF, Timeline

READ_THREADS = 4 if (os.cpu_count() or 1) < 8 else 8
"""Blocks read at once. Four keep one NVMe disk busy; a RAID of several needs more."""


class WeightFetch:
    """Base of the fetches of weights, which do not change: nothing has to be saved."""

    def __init__(
        self,
        store: Store,
        units: Sequence[Unit],
        device: torch.device,
        timeline: Callable[[], Timeline],
    ) -> None:
        self._store = store
        self._units = units
        self._device = device
        self._timeline = timeline
        self._stream = Stream(device, new=True)

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        return computed

    def _span(self, unit: Unit) -> AbstractContextManager[None]:
        layer = unit.name.removeprefix("layers.")
        if layer == unit.name:
            return self._timeline().span("copy", unit.name)
        return self._timeline().span("copy", "layer", int(layer))


class PinnedFetch(WeightFetch):
    """Copies each unit from page-locked memory to a GPU."""

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        self._stream.wait(after)
        with self._stream.current(), self._span(self._units[unit]):
            self._store.read_block(self._units[unit], 0, buffer)
        return issued(self._stream.record())

    def close(self) -> None:
        self._stream.synchronize()  # the source of the copies is freed next


class BlockFetch(WeightFetch):
    """Reads the blocks of a unit by several threads."""

    def __init__(self, *common: Any) -> None:
        super().__init__(*common)
        device = self._device
        # A thread without a device makes a context on the first GPU, whichever is this rank's.
        on_gpu = device.type == "cuda"
        setup = partial(torch.cuda.set_device, device) if on_gpu else None
        # A unit's thread hands its blocks to the readers and waits for them, so it is no reader.
        self._unit_threads = ThreadPoolExecutor(MAX_DEPTH, "offload-unit", setup)
        self._read_threads = ThreadPoolExecutor(READ_THREADS, "offload-read", setup)
        # Page-locked blocks, each with the event of the last copy out of it. Two a thread: one is
        # read into while the other is copied to the GPU.
        self._staging: SimpleQueue[tuple[Tensor, Event]] = SimpleQueue()
        self._memory = HostMemory(device)
        for _ in range(2 * READ_THREADS if on_gpu else 0):
            self._staging.put((self._memory.allocate(self._store.block_bytes), None))
        self._read = self._to_gpu if on_gpu else self._to_cpu

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        return self._unit_threads.submit(self._fetch, self._units[unit], buffer, after)

    def _fetch(self, unit: Unit, buffer: Tensor, after: Event) -> Event:
        size = self._store.block_bytes
        with self._stream.current(), self._span(unit):
            blocks = [
                self._read_threads.submit(
                    self._read, unit, start, buffer[start : start + size], after
                )
                for start in range(0, len(buffer), size)
            ]
            # For all of them, even if one fails: nothing may write to the buffer afterwards.
            wait(blocks)
            for block in blocks:
                block.result()
        # All blocks are copied on one stream: its next event is after every one of them.
        return self._stream.record()

    def _to_cpu(self, unit: Unit, start: int, part: Tensor, after: Event) -> None:
        # At once: when a CPU gives a buffer back, its computation has ended.
        self._store.read_block(unit, start, part)

    def _to_gpu(self, unit: Unit, start: int, part: Tensor, after: Event) -> None:
        block, event = self._staging.get()
        try:
            if event is not None:
                event.synchronize()  # until what was in the block before has been copied
            self._store.read_block(unit, start, block[: len(part)])
            event = self._stream.copy(part, block[: len(part)], after)
        finally:
            self._staging.put((block, event))

    def close(self) -> None:
        self._unit_threads.shutdown(cancel_futures=True)
        self._read_threads.shutdown()
        self._stream.synchronize()
        self._memory.free()


def fetch_for(
    store: Store,
    units: Sequence[Unit],
    device: torch.device,
    timeline: Callable[[], Timeline] = lambda: OFF,
) -> PinnedFetch | BlockFetch:
    """Return the fastest way from a store to a device."""
    in_memory = isinstance(store, HostStore)
    fetch = PinnedFetch if in_memory and device.type == "cuda" else BlockFetch
    return fetch(store, units, device, timeline)
