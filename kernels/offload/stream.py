"""The weights of one rank, some on the device for good, the others streamed there in turn."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kernels.offload.device_queue import queue_of
from kernels.offload.disk_reader import file_system
from kernels.offload.fetch import FromFiles, HostToCpu, HostToCuda
from kernels.offload.file_store import FileStore
from kernels.offload.layer_store import HostStore, fill, page_aligned, views
from kernels.offload.plan import OffloadPlan, Unit
from kernels.offload.slot_ring import SlotRing
from kernels.timeline import OFF, Timeline
from kernels.weights import Weights

OnUnit = Callable[[Unit], None]
"""Called with each unit once it is in its place."""


class Streamer:
    """Lends units in the order of use, for ever, whether they stay or are streamed."""

    def __init__(
        self,
        units: Sequence[Unit],
        plan: OffloadPlan,
        store: HostStore | FileStore,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        on_unit: OnUnit,
    ) -> None:
        self._by_name = {unit.name: unit for unit in units}
        self._store = store
        self._dtype = dtype
        self._device = device
        self._timeline: Timeline = OFF
        self._resident: dict[str, Tensor] = {}
        for unit, stays in zip(units, plan.is_resident, strict=True):
            if stays:
                flat = device_bytes(unit.num_bytes, device)
                fill(unit, flat, weights, dtype)
                self._resident[unit.name] = flat
            else:
                store.put(unit, weights, dtype)
            on_unit(unit)
        self._start(plan)

    def _start(self, plan: OffloadPlan) -> None:
        self.plan = plan
        streamed = [unit for unit in self.units if unit.name not in self._resident]
        self._turns = {unit.name: turn for turn, unit in enumerate(streamed)}
        self._fetch = self._new_fetch(streamed)
        self._fetch.timeline = self._timeline
        self._ring = SlotRing(
            [unit.num_bytes for unit in streamed],
            device_bytes(plan.ring_bytes, self._device),
            plan.depth,
            self._fetch,
            queue_of(self._device),
        )
        self._ring.start()

    @property
    def units(self) -> list[Unit]:
        """All units, in the order of use."""
        return [*self._by_name.values()]

    def _new_fetch(self, streamed: list[Unit]) -> FromFiles | HostToCpu | HostToCuda:
        if isinstance(self._store, FileStore):
            return FromFiles(self._store, streamed, self._device)
        if self._device.type == "cuda":
            return HostToCuda(self._store, streamed, self._device)
        return HostToCpu(self._store, streamed)

    @contextmanager
    def lend(self, name: str) -> Iterator[dict[str, Tensor]]:
        """A unit's tensors by parameter name, for what is issued within the block."""
        unit = self._by_name[name]
        with ExitStack() as stack:
            flat = self._resident.get(name)
            if flat is None:
                with self._timeline.span("communication", "weights"):
                    flat = stack.enter_context(self._ring.slot(self._turns[name]))
            yield views(unit, flat, self._dtype)

    def wait(self, name: str) -> None:
        """What is issued from now on runs after the arrival of this unit, the next in turn."""
        if name not in self._resident:
            self._ring.wait(self._turns[name])

    def watch(self, timeline: Timeline) -> None:
        """Tell this timeline from now on what is copied when."""
        self._timeline = self._fetch.timeline = timeline

    def change(self, plan: OffloadPlan) -> None:
        """Keep other units on the device from now on."""
        self._ring.drain()
        del (
            self._ring
        )  # its memory first: the device may hold no more than one plan at a time
        stay = {
            unit.name
            for unit, stays in zip(self.units, plan.is_resident, strict=True)
            if stays
        }
        for name in self._resident.keys() - stay:
            self._store.keep(self._by_name[name], self._resident.pop(name))
        for name in stay - self._resident.keys():
            self._resident[name] = self._fetched(name)
        self._fetch.close()
        self._start(plan)

    def _fetched(self, name: str) -> Tensor:
        flat = device_bytes(self._by_name[name].num_bytes, self._device)
        queue = queue_of(self._device)
        arrival = self._fetch.start(self._turns[name], flat, queue.record())
        arrival.wait(queue)
        return flat

    def close(self) -> None:
        """Give all memory and files back."""
        self._ring.drain()
        self._fetch.close()
        del self._ring
        self._resident.clear()


def device_bytes(num_bytes: int, device: torch.device) -> Tensor:
    """Flat uint8 memory on a device; on a CPU it begins on a page, as direct reads need."""
    if device.type == "cpu":
        return page_aligned(num_bytes)
    # A normal tensor wherever this is called: copies into it are issued by other threads.
    with torch.inference_mode(mode=False):
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def new_store(
    source: str, device: torch.device, cleanup: ExitStack
) -> HostStore | FileStore:
    """Where the streamed weights will wait, `host` or `disk` (in TMPDIR); closed by `cleanup`."""
    store: HostStore | FileStore
    if source == "host":
        store = HostStore(pinned=device.type == "cuda")
    else:
        store = FileStore(Path(tempfile.gettempdir()))
    cleanup.callback(store.close)
    return store


def how_stored(store: HostStore | FileStore) -> str:
    """Where the weights wait and how they are read, in words."""
    if isinstance(store, HostStore):
        return store.how
    kind = file_system(store.folder)
    memory = ", which is memory" if kind in ("tmpfs", "ramfs") else ""
    return f"{store.how}, {kind}{memory}"
