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


class Event(Protocol):
    """A point in a stream of work; `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Block the host until all work before this point is done."""


class Reached:
    """The event of a CPU, which has done its work as soon as it is issued."""

    def synchronize(self) -> None:
        pass


Arrival = Sequence["Future[Event | None]"]
"""A unit that is being fetched, in parts: each future ends once the part's copy is issued, and
gives the event of the copy's end, or None if the part is there already."""


def issued(event: Event) -> Arrival:
    """Return the arrival of a unit in one part whose copy is issued already."""
    part: Future[Event | None] = Future()
    part.set_result(event)
    return [part]


class ComputeStream:
    """What a device computes on: a GPU's current stream, or a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self) -> Event:
        """Return the point after all work issued so far."""
        if self._device.type != "cuda":
            return Reached()
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, event: Event) -> None:
        """Make work issued from now on run after `event`."""
        if isinstance(event, torch.cuda.Event):
            torch.cuda.current_stream(self._device).wait_event(event)
        else:
            event.synchronize()


_UNRECORDED = nullcontext()


class CopyStream:
    """Copies to and from a GPU beside its computations; on a CPU they are done at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def current(self) -> AbstractContextManager[object]:
        """Make this the stream that spans of a timeline are recorded on."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def copy(
        self,
        target: Tensor,
        source: Tensor,
        after: Event,
        span: AbstractContextManager[object] = _UNRECORDED,
    ) -> Event:
        """Issue a copy that runs after an event, and return the event of its end.

        Host memory must be page-locked, or the host waits for the copy. The span records it.
        """
        if self._stream is None:
            after.synchronize()
            with span:
                target.copy_(source)
            return Reached()
        event = torch.cuda.Event()
        assert isinstance(after, torch.cuda.Event)
        self._stream.wait_event(after)
        with self.current(), span:
            target.copy_(source, non_blocking=True)
            event.record(self._stream)
        return event

    def synchronize(self) -> None:
        """Block the host until all copies are done, so that their memory can be freed."""
        if self._stream is not None:
            self._stream.synchronize()


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
        compute: ComputeStream,
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
            self._wait_for(self._held[0].arrival)
        except BaseException:
            self.drain()
            raise
        self._held[0] = self._held[0]._replace(arrival=())

    def drain(self) -> None:
        """Wait for all units being fetched and drop them; fetches that fail are ignored."""
        for held in self._held:
            with suppress(Exception):
                self._wait_for(held.arrival)
        if self._held:
            self._free = self._compute.record()
        self._held.clear()

    def _wait_for(self, arrival: Arrival) -> None:
        # For all parts, even if one failed: nothing may write to the buffer afterwards.
        failed = [part.exception() for part in arrival]
        for error in failed:
            if error is not None:
                raise error
        for part in arrival:
            event = part.result()
            if event is not None:
                self._compute.wait(event)
