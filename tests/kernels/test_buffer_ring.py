"""The ring against slow copies and slow computations: a missing event shows as wrong bytes.

Copies and computations run in threads of their own that dawdle; events are their futures. The
computation reads its buffer late, so a copy that does not wait for it destroys what it reads, and a
computation that does not wait for its copy reads what was there before.
"""

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.offload.buffer_ring import Arrival, BufferRing, Event, issued

SIZES = [4, 4, 6, 4, 5]


class Point:
    """An event: the end of a piece of work."""

    def __init__(self, work: "Future[Any]") -> None:
        self._work = work

    def synchronize(self) -> None:
        self._work.result()


class SlowQueue:
    """Computations one after another in a thread, each a while after it was issued."""

    def __init__(self, *, forgets_to_wait: bool = False) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._forgets = forgets_to_wait
        self.last: Future[Any] = self._thread.submit(lambda: None)

    def issue(self, work: Any) -> None:
        self.last = self._thread.submit(work)

    def record(self) -> Event:
        return Point(self._thread.submit(lambda: None))

    def wait(self, event: Event) -> None:
        if not (self._forgets or event is None):
            self._thread.submit(event.synchronize)


class SlowFetch:
    """Copies in threads that dawdle; unit u is u + 1 in every byte."""

    def __init__(self, *, forgets_to_wait: bool = False) -> None:
        self._threads = ThreadPoolExecutor(3)
        self._forgets = forgets_to_wait
        self._random = random.Random(5)
        self.started: list[int] = []
        self.broken: set[int] = set()

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        self.started.append(unit)
        delay = self._random.random() * 0.004
        return self._arrival(
            self._threads.submit(self._copy, unit, buffer, after, delay)
        )

    def _arrival(self, copy: "Future[Event]") -> Arrival:
        return issued(Point(copy))

    def _copy(self, unit: int, buffer: Tensor, after: Event, delay: float) -> Event:
        if not self._forgets:
            after.synchronize()
        if unit in self.broken:
            raise OSError(f"unit {unit} is broken")
        half = len(buffer) // 2
        buffer[:half] = unit + 1
        time.sleep(delay)
        buffer[half:] = unit + 1

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        return computed


class HostArrival(SlowFetch):
    """As `SlowFetch`, but the host itself waits, as for a read that can fail."""

    def _arrival(self, copy: "Future[Event]") -> Arrival:
        return copy


def wrong_reads(ring: BufferRing, queue: SlowQueue, passes: int) -> int:
    """Computes with each unit in turn; how many of them saw other bytes than the unit's."""
    wrong: list[int] = []

    def compute(unit: int, buffer: Tensor) -> None:
        before = buffer.clone()
        time.sleep(0.002)
        if not (before.eq(unit + 1).all() and buffer.eq(unit + 1).all()):
            wrong.append(unit)

    for turn in range(passes * len(SIZES)):
        unit = turn % len(SIZES)
        with ring.buffer(unit) as buffer:
            queue.issue(lambda unit=unit, buffer=buffer: compute(unit, buffer))
    queue.record().synchronize()
    return len(wrong)


def new_ring(depth: int, fetch: SlowFetch, queue: SlowQueue) -> BufferRing:
    buffers = torch.zeros((depth, max(SIZES)), dtype=torch.uint8)
    ring = BufferRing(SIZES, [*buffers], fetch, queue)
    ring.start()
    return ring


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_slow_copies_and_slow_computations_never_meet_in_a_buffer(depth: int) -> None:
    queue = SlowQueue()
    ring = new_ring(depth, SlowFetch(), queue)
    assert wrong_reads(ring, queue, passes=6) == 0


def test_without_the_event_from_copy_to_computation_this_would_show() -> None:
    queue = SlowQueue(forgets_to_wait=True)
    assert wrong_reads(new_ring(2, SlowFetch(), queue), queue, passes=6) > 0


def test_without_the_event_from_computation_to_copy_this_would_show() -> None:
    queue = SlowQueue()
    fetch = SlowFetch(forgets_to_wait=True)
    assert wrong_reads(new_ring(2, fetch, queue), queue, passes=6) > 0


def test_the_first_copy_waits_for_what_still_computes_with_the_memory() -> None:
    queue, fetch = SlowQueue(), SlowFetch()
    buffers = torch.zeros((2, max(SIZES)), dtype=torch.uint8)
    seen: list[Tensor] = []
    queue.issue(lambda: (time.sleep(0.05), seen.append(buffers.clone())))
    BufferRing(SIZES, [*buffers], fetch, queue).start()
    queue.record().synchronize()
    assert not seen[0].any()


def test_after_the_last_unit_the_first_one_is_fetched_for_the_next_token() -> None:
    queue, fetch = SlowQueue(), SlowFetch()
    ring = new_ring(2, fetch, queue)
    assert wrong_reads(ring, queue, passes=2) == 0
    ring.drain()
    assert fetch.started[:12] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_the_next_unit_is_on_its_way_while_one_computes() -> None:
    queue, fetch = SlowQueue(), SlowFetch()
    ring = new_ring(3, fetch, queue)
    with ring.buffer(0):
        assert fetch.started[:2] == [0, 1]
    with ring.buffer(1):
        assert 2 in fetch.started


def test_a_pass_that_is_cut_short_is_followed_by_a_whole_one() -> None:
    queue = SlowQueue()
    ring = new_ring(2, SlowFetch(), queue)
    with ring.buffer(0):
        pass
    assert wrong_reads(ring, queue, passes=2) == 0


def test_a_unit_that_cannot_be_fetched_fails_when_its_turn_comes() -> None:
    queue, fetch = SlowQueue(), HostArrival()
    fetch.broken = {2}
    ring = new_ring(2, fetch, queue)
    for unit in (0, 1):
        with ring.buffer(unit):
            pass
    with pytest.raises(OSError, match="unit 2 is broken"), ring.buffer(2):
        pass
    fetch.broken = set()
    assert wrong_reads(ring, queue, passes=1) == 0


def test_an_error_while_computing_leaves_the_ring_usable() -> None:
    queue = SlowQueue()
    ring = new_ring(2, SlowFetch(), queue)
    with pytest.raises(ZeroDivisionError), ring.buffer(0):
        raise ZeroDivisionError
    assert wrong_reads(ring, queue, passes=2) == 0
