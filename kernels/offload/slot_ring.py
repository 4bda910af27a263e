"""Units of weights pass through a ring of slots on the device, fetched ahead of the computation.

Two promises, both kept with events, so that neither the host nor the device waits needlessly:
a unit is computed with only once it has arrived (copy → compute), and its slot is overwritten
only once the computation with it has ended (compute → copy).

Where copies come from is a `Fetch`, who computes is a `Queue`: the ring knows neither disks nor
GPUs.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.offload.plan import free_start


class Event(Protocol):
    """A point in a queue of work; `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Wait, on the host, until everything before this point is done."""


class Queue(Protocol):
    """Where computations run, in the order in which they are issued."""

    def record(self) -> Event:
        """The point after all that has been issued so far."""

    def wait(self, event: Event) -> None:
        """What is issued from now on runs after `event`."""


class Arrival(Protocol):
    """A unit on its way."""

    def wait(self, queue: Queue) -> None:
        """What `queue` is given from now on runs after the unit's arrival.

        Raises:
            Exception: whatever kept the unit from arriving.
        """


class Fetch(Protocol):
    """Brings units into slots."""

    def start(self, unit: int, slot: Tensor, after: Event) -> Arrival:
        """Begin to copy a unit into `slot`, a flat uint8 tensor of its size, after `after`."""

    def finish(self, unit: int, slot: Tensor, computed: Event) -> Event:
        """When the slot may be overwritten, its computation ending at `computed`: then, or later
        where something has to be saved first. Each such point implies the earlier ones."""


@dataclass(kw_only=True)
class _Live:
    unit: int
    place: range
    arrival: Arrival


class SlotRing:
    """Hands out the units in turn, for ever, and fetches the next ones meanwhile."""

    def __init__(
        self,
        sizes: Sequence[int],
        memory: Tensor,
        depth: int,
        fetch: Fetch,
        queue: Queue,
    ) -> None:
        """An empty ring; `start` begins to fill it.

        Args:
            sizes: bytes of each unit, in order of use.
            memory: flat uint8 on the device, for all slots.
            depth: units in the ring at once, the one computed with included.
            fetch: brings them.
            queue: computes with them.
        """
        self._sizes = list(sizes)
        self._memory = memory
        self._depth = depth
        self._fetch = fetch
        self._queue = queue
        self._live: deque[_Live] = deque()
        self._next = 0
        # What had the memory before may still compute; later points imply the earlier ones.
        self._free = queue.record()

    def start(self) -> None:
        """Fetch as many units as there is room for."""
        while self._sizes and len(self._live) < self._depth:
            size = self._sizes[self._next]
            taken = [live.place for live in self._live]
            start = free_start(size, taken, len(self._memory))
            if start is None:
                return
            slot = self._memory[start : start + size]
            arrival = self._fetch.start(self._next, slot, self._free)
            place = range(start, start + size)
            self._live.append(_Live(unit=self._next, place=place, arrival=arrival))
            self._next = (self._next + 1) % len(self._sizes)

    @contextmanager
    def slot(self, unit: int) -> Iterator[Tensor]:
        """The unit in its slot; what is issued within the block may read it.

        Out of turn (after an error cut a pass short) the ring starts over from this unit.
        """
        live = self._arrived(unit)
        slot = self._memory[live.place.start : live.place.stop]
        try:
            yield slot
        finally:
            computed = self._queue.record()
            self._free = self._fetch.finish(live.unit, slot, computed)
            self._live.popleft()
            self.start()

    def wait(self, unit: int) -> None:
        """What is issued from now on runs after the arrival of this unit, the next in turn."""
        self._arrived(unit)

    def _arrived(self, unit: int) -> _Live:
        if not self._live or self._live[0].unit != unit:
            self._start_over(unit)
        try:
            self._live[0].arrival.wait(self._queue)
        except BaseException:
            self.drain()
            raise
        return self._live[0]

    def _start_over(self, unit: int) -> None:
        self.drain()
        self._next = unit
        self.start()

    def drain(self) -> None:
        """Wait for what is on its way, and forget it; a failed arrival no longer matters."""
        for live in self._live:
            with suppress(Exception):
                live.arrival.wait(self._queue)
        if self._live:
            self._free = self._queue.record()
        self._live.clear()
