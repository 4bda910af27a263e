"""A ring of buffers on the device that units of weights pass through, fetched ahead of their use.

Two promises, both kept with events, so that neither the host nor the device waits needlessly:
a unit is computed with only after it has arrived (copy → compute), and its buffer is overwritten
only after the computation with it has ended (compute → copy).

A `Fetch` brings the units, a `Queue` computes with them: the ring knows neither disks nor GPUs.
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
        """Block the host until all work before this point is done."""


class Queue(Protocol):
    """Computations of a device, which run in the order in which they are issued."""

    def record(self) -> Event:
        """Return the point after all work issued so far."""

    def wait(self, event: Event) -> None:
        """Make work issued from now on run after `event`."""


class Arrival(Protocol):
    """A unit that is being fetched."""

    def wait(self, queue: Queue) -> None:
        """Make work that `queue` is given from now on run after the unit's arrival.

        Raises:
            Exception: whatever kept the unit from arriving.
        """


class Fetch(Protocol):
    """Copies units into buffers."""

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        """Begin to copy a unit into `buffer`, flat uint8 of its size, once `after` is reached."""

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        """Return when the buffer may be overwritten, given that its computation ends at `computed`.

        That is later only where something has to be saved first. Each such point implies the
        earlier ones.
        """


@dataclass(kw_only=True)
class _Held:
    unit: int
    place: range
    arrival: Arrival


class BufferRing:
    """Lends the units in turn, for ever, and fetches the next ones meanwhile."""

    def __init__(
        self,
        sizes: Sequence[int],
        memory: Tensor,
        depth: int,
        fetch: Fetch,
        queue: Queue,
    ) -> None:
        """Make an empty ring; `start` begins to fill it.

        Args:
            sizes: bytes of each unit, in order of use.
            memory: flat uint8 on the device, for all buffers.
            depth: units in the ring at once, the one computed with included.
            fetch: brings them.
            queue: computes with them.
        """
        self._sizes = list(sizes)
        self._memory = memory
        self._depth = depth
        self._fetch = fetch
        self._queue = queue
        self._held: deque[_Held] = deque()
        self._next = 0
        # Earlier owners of the memory may still compute; later points imply the earlier ones.
        self._free = queue.record()

    def start(self) -> None:
        """Fetch as many units as there is room for."""
        while self._sizes and len(self._held) < self._depth:
            size = self._sizes[self._next]
            taken = [held.place for held in self._held]
            start = free_start(size, taken, len(self._memory))
            if start is None:
                return
            buffer = self._memory[start : start + size]
            arrival = self._fetch.start(self._next, buffer, self._free)
            place = range(start, start + size)
            self._held.append(_Held(unit=self._next, place=place, arrival=arrival))
            self._next = (self._next + 1) % len(self._sizes)

    @contextmanager
    def buffer(self, unit: int) -> Iterator[Tensor]:
        """Lend the buffer that holds the unit to work that is issued within the block.

        Out of turn, as after an error that ended a pass early, the ring starts over from this unit.
        """
        held = self._arrived(unit)
        buffer = self._memory[held.place.start : held.place.stop]
        try:
            yield buffer
        finally:
            computed = self._queue.record()
            self._free = self._fetch.finish(held.unit, buffer, computed)
            self._held.popleft()
            self.start()

    def wait(self, unit: int) -> None:
        """Make work issued from now on run after the arrival of this unit, the next in turn."""
        self._arrived(unit)

    def _arrived(self, unit: int) -> _Held:
        if not self._held or self._held[0].unit != unit:
            self._start_over(unit)
        try:
            self._held[0].arrival.wait(self._queue)
        except BaseException:
            self.drain()
            raise
        return self._held[0]

    def _start_over(self, unit: int) -> None:
        self.drain()
        self._next = unit
        self.start()

    def drain(self) -> None:
        """Wait for all units being fetched and drop them; fetches that fail are ignored."""
        for held in self._held:
            with suppress(Exception):
                held.arrival.wait(self._queue)
        if self._held:
            self._free = self._queue.record()
        self._held.clear()
