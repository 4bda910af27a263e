"""CUDA's streams and events without a GPU: each stream is a thread that takes its time.

What is issued runs later, in its stream's order and in no other; only events hold streams back
from each other. So the code that issues copies and computations to a GPU can be run, and a missing
event shows as wrong numbers, as it would there. Memory is the CPU's.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor


class Event:
    """A point in a stream."""

    def __init__(self, **_options: Any) -> None:
        self._reached: threading.Event | None = None

    def record(self, stream: "Stream") -> None:
        self._reached = threading.Event()
        stream.issue(self._reached.set)

    def synchronize(self) -> None:
        if self._reached is not None:
            assert self._reached.wait(30), "a stream hangs"


class Stream:
    """A thread that does what it is given, in order, never at once."""

    def __init__(self, _device: object = None) -> None:
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._random = random.Random(3)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            time.sleep(self._random.random() * 0.002)
            work()

    def issue(self, work: Callable[[], object]) -> None:
        self._work.put(work)

    def wait_event(self, event: Event) -> None:
        self.issue(event.synchronize)

    def synchronize(self) -> None:
        event = Event()
        event.record(self)
        event.synchronize()


class Cuda:
    """The parts of `torch.cuda` that stand in for themselves."""

    def __init__(self) -> None:
        self._current = threading.local()
        self.compute = Stream()
        self.locked: dict[int, int] = {}
        self.unlocked_copies = 0

    def current_stream(self, _device: object = None) -> Stream:
        stream: Stream = getattr(self._current, "stream", self.compute)
        return stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def cudart(self) -> "Cuda":
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, _flags: int) -> int:
        self.locked[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0

    def is_locked(self, tensor: Tensor) -> bool:
        return any(
            start <= tensor.data_ptr() < start + size
            for start, size in [*self.locked.items()]
        )


class Gpu:
    """A device that says it is a GPU."""

    type = "cuda"


def install(patch: pytest.MonkeyPatch) -> Cuda:
    """Have `torch.cuda` and asynchronous copies dawdle until the test ends."""
    cuda = Cuda()
    patch.setattr(torch.cuda, "Stream", Stream)
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "stream", cuda.stream)
    patch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    patch.setattr(torch.cuda, "set_device", lambda _device: None)
    patch.setattr(torch.cuda, "cudart", cuda.cudart)
    copy, empty = Tensor.copy_, torch.empty

    def copy_(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return copy(into, source)
        if not (cuda.is_locked(into) or cuda.is_locked(source)):
            cuda.unlocked_copies += 1
        cuda.current_stream().issue(lambda: copy(into, source))
        return into

    def empty_(*size: Any, device: Any = None, **options: Any) -> Tensor:
        on = "cpu" if isinstance(device, Gpu) else device
        return empty(*size, device=on, **options)

    patch.setattr(Tensor, "copy_", copy_)
    patch.setattr(torch, "empty", empty_)
    return cuda
