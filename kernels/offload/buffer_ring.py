"""A ring of buffers on the device that units of weights pass through, fetched before their use.

Copies and computations run on streams of their own; events order them, so that neither the host
nor the device waits needlessly. A unit is computed with only after its copy has ended, and its
buffer is overwritten only after the computation with it has ended.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import cycle
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_UNRECORDED = nullcontext()


Event = torch.cuda.Event | None
"""A point in a stream of work; None for a CPU, which has done its work as soon as it is issued."""


class Stream:
    """A GPU's stream of work: a new one, or the current one, which computes. Or a CPU."""

    def __init__(self, device: torch.device, *, new: bool = False) -> None:
        self._device = device
        is_own = new and device.type == "cuda"
        self._own = torch.cuda.Stream(device) if is_own else None

    def _cuda(self) -> torch.cuda.Stream:
        return self._own or torch.cuda.current_stream(self._device)

    def current(self) -> AbstractContextManager[object]:
        """Make this the current stream, on which spans are recorded, within the block."""
        return torch.cuda.stream(self._own) if self._own else nullcontext()

    def record(self) -> Event:
        """Return the point after all work issued so far."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(self._cuda())
        return event

    def wait(self, event: Event) -> None:
        """Make work issued from now on run after `event`."""
        if event is not None:
            self._cuda().wait_event(event)

    def copy(
        self,
        target: Tensor,
        source: Tensor,
        after: Event,
        span: AbstractContextManager[object] = _UNRECORDED,
    ) -> Event:
        """Issue a copy that runs after an event, within a span; return the event of its end.

        Host memory must be page-locked, or the host waits for the copy.
        """
        self.wait(after)  # before the span, which shows the copy alone
        with self.current(), span:
            target.copy_(source, non_blocking=True)
        return self.record()

    def synchronize(self) -> None:
        """Block the host until all work is done, so that its memory can be freed."""
        if self._device.type == "cuda":
            self._cuda().synchronize()


Arrival = Future[Event]
"""A unit that is being fetched: done once its copy is issued, with the event of the copy's end."""


def issued(event: Event) -> Arrival:
    """Return the arrival of a unit whose copy is issued already."""
    arrival: Arrival = Future()
    arrival.set_result(event)
    return arrival


class Fetch(Protocol):
    """Copies units into buffers."""

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        """Begin to copy a unit into `buffer`, flat uint8 of its size, once `after` is reached."""

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        """Return when a buffer may be overwritten whose computation ends at `computed`.

        That is later only where the buffer has to be saved first. Each such event implies the
        earlier ones.
        """


class _Held(NamedTuple):
    unit: int
    buffer: Tensor
    arrival: Arrival


class BufferRing:
    """Lends the units in turn, for ever, and fetches the next ones meanwhile."""

    def __init__(
        self,
        sizes: Sequence[int],
        buffers: Sequence[Tensor],
        fetch: Fetch,
        compute: Stream,
    ) -> None:
        """Make an empty ring; `start` begins to fill it.

        Args:
            sizes: bytes of each unit, in order of use.
            buffers: flat uint8 on the device, each large enough for any unit.
            fetch: brings the units.
            compute: the stream that computes with them.
        """
        self._sizes = sizes
        self._depth = len(buffers)
        self._buffers = cycle(buffers)
        self._fetch = fetch
        self._compute = compute
        self._held: deque[_Held] = deque()
        self._next = 0
        # Earlier owners of the memory may still compute; later events imply the earlier ones.
        self._free = compute.record()

    def start(self) -> None:
        """Fetch as many units as there are free buffers."""
        while len(self._held) < self._depth:
            # Units leave in the order in which they came: the longest held buffer is free.
            buffer = next(self._buffers)[: self._sizes[self._next]]
            arrival = self._fetch.start(self._next, buffer, self._free)
            self._held.append(_Held(self._next, buffer, arrival))
            self._next = (self._next + 1) % len(self._sizes)

    @contextmanager
    def buffer(self, unit: int) -> Iterator[Tensor]:
        """Lend the buffer that holds the unit to work that is issued within the block.

        Out of turn, as after an error that ended a pass early, the ring starts over from this unit.
        """
        self.wait(unit)
        buffer = self._held[0].buffer
        try:
            yield buffer
        finally:
            # The next copy into this buffer waits for what was issued within the block.
            self._free = self._fetch.finish(unit, buffer, self._compute.record())
            self._held.popleft()
            self.start()

    def wait(self, unit: int) -> None:
        """Make work issued from now on run after the arrival of this unit, the next in turn."""
        if not self._held or self._held[0].unit != unit:
            self.drain()
            self._next = unit
            self.start()
        try:
            # The host waits until the copy is issued, the device until it has ended.
            self._compute.wait(self._held[0].arrival.result())
        except BaseException:
            self.drain()
            raise

    def close(self) -> None:
        """Wait for all units being fetched, and free the buffers."""
        self.drain()
        self._buffers = cycle(())

    def drain(self) -> None:
        """Wait for all units being fetched and drop them; fetches that fail are ignored."""
        for held in self._held:
            with suppress(Exception):
                self._compute.wait(held.arrival.result())
        if self._held:
            # Copies into the buffers have been issued since: the next ones come after them.
            self._free = self._compute.record()
        self._held.clear()
