"""The weights of one rank: some stay on the device, the others are streamed there in turn."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kernels.offload.buffer_ring import BufferRing
from kernels.offload.device_queue import queue_of
from kernels.offload.disk_reader import file_system
from kernels.offload.fetch import FromFiles, HostToCpu, HostToCuda
from kernels.offload.file_store import FileStore
from kernels.offload.layer_store import HostStore, fill, page_aligned, views
from kernels.offload.plan import OffloadPlan, Unit
from kernels.timeline import OFF, Timeline
from kernels.weights import Weights

OnUnit = Callable[[Unit], None]
"""Called with each unit once it is loaded."""


class Streamer:
    """Lends units in the order of use, for ever, whether they are resident or streamed."""

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
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self._timeline: Timeline = OFF
        self._resident: dict[str, Tensor] = {}
        self._stored: set[str] = set()
        self._start(plan, on_unit)

    def _start(self, plan: OffloadPlan, on_unit: OnUnit | None = None) -> None:
        self.plan = plan
        self._load(plan, on_unit)
        streamed = [unit for unit in self.units if unit.name not in self._resident]
        self._turns = {unit.name: turn for turn, unit in enumerate(streamed)}
        self._fetch = self._new_fetch(streamed)
        self._fetch.timeline = self._timeline
        self._ring = BufferRing(
            [unit.num_bytes for unit in streamed],
            device_bytes(plan.ring_bytes, self._device),
            plan.depth,
            self._fetch,
            queue_of(self._device),
        )
        self._ring.start()

    def _load(self, plan: OffloadPlan, on_unit: OnUnit | None) -> None:
        """Read from the checkpoint what is not yet where the plan wants it."""
        is_resident = dict(zip(self._by_name, plan.is_resident, strict=True))
        # Their memory first: the device may hold no more than one plan at a time.
        for name in [name for name in self._resident if not is_resident[name]]:
            del self._resident[name]
        for unit in self.units:
            if not is_resident[unit.name]:
                if unit.name not in self._stored:
                    self._store.put(unit, self._weights, self._dtype)
                    self._stored.add(unit.name)
            elif unit.name not in self._resident:
                flat = device_bytes(unit.num_bytes, self._device)
                fill(unit, flat, self._weights, self._dtype)
                self._resident[unit.name] = flat
            if on_unit is not None:
                on_unit(unit)

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
        """Lend a unit's tensors, by parameter name, to work that is issued within the block."""
        unit = self._by_name[name]
        with ExitStack() as stack:
            flat = self._resident.get(name)
            if flat is None:
                with self._timeline.span("communication", "weights"):
                    flat = stack.enter_context(self._ring.buffer(self._turns[name]))
            yield views(unit, flat, self._dtype)

    def wait(self, name: str) -> None:
        """Make work issued from now on run after the arrival of this unit, the next in turn."""
        if name not in self._resident:
            self._ring.wait(self._turns[name])

    def watch(self, timeline: Timeline) -> None:
        """Record copies on this timeline from now on."""
        self._timeline = self._fetch.timeline = timeline

    def change(self, plan: OffloadPlan) -> None:
        """Keep other units resident from now on; what moves is read from the checkpoint again."""
        self._ring.drain()
        self._fetch.close()
        del self._ring
        self._start(plan)

    def close(self) -> None:
        """Free all memory; the store is the caller's."""
        self._ring.drain()
        self._fetch.close()
        del self._ring
        self._resident.clear()


def device_bytes(num_bytes: int, device: torch.device) -> Tensor:
    """Allocate flat uint8 memory on a device; on a CPU on whole pages, as direct reads need."""
    if device.type == "cpu":
        return page_aligned(num_bytes)
    # Not an inference tensor, whatever mode the caller is in: other threads copy into it.
    with torch.inference_mode(mode=False):
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def new_store(
    source: str, device: torch.device, cleanup: ExitStack
) -> HostStore | FileStore:
    """Make the store of a source, `host` or `disk` (in TMPDIR); `cleanup` closes it."""
    store: HostStore | FileStore
    if source == "host":
        store = HostStore(pinned=device.type == "cuda")
    else:
        store = FileStore(Path(tempfile.gettempdir()))
    cleanup.callback(store.close)
    return store


def how_stored(store: HostStore | FileStore) -> str:
    """Tell where the weights are and how they are read, and if the disk is really memory."""
    if isinstance(store, HostStore):
        return store.how
    kind = file_system(store.folder)
    memory = ", which is memory" if kind in ("tmpfs", "ramfs") else ""
    return f"{store.how}, {kind}{memory}"
