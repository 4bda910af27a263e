"""The one stopwatch. Every strategy and every peer is timed by it, in the same window.

The window opens when all ranks have met and the device is idle, and closes when the device is
idle again. In it nothing waits for the device: a token's time is an event that the GPU stamps
when it gets there, read after the window; on a CPU it is the clock itself.
"""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from kernels.engine import OnToken
from orchestrator.record import Sample

Result = TypeVar("Result")


class Marks(Protocol):
    """Moments on a device's own clock."""

    def start(self) -> None:
        """The window is open."""

    def token(self, index: int) -> None:
        """The work for this token was issued; of several calls for one token the last counts."""

    def seconds(self) -> list[float]:
        """From the start to each token; waits for the device."""


class ClockMarks:
    """On a CPU, work is done when it was issued."""

    def __init__(self, tokens: int) -> None:
        self._at = [0.0] * tokens
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def token(self, index: int) -> None:
        self._at[index] = time.perf_counter()

    def seconds(self) -> list[float]:
        return [at - self._start for at in self._at if at]


class EventMarks:
    """On a GPU, events in the stream of the work."""

    def __init__(self, tokens: int) -> None:
        self._events = [_event() for _ in range(tokens)]
        self._start = _event()
        self._marked: set[int] = set()

    def start(self) -> None:
        self._start.record()

    def token(self, index: int) -> None:
        self._events[index].record()
        self._marked.add(index)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [
            self._start.elapsed_time(self._events[index]) / 1000
            for index in sorted(self._marked)
        ]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Stopwatch:
    """Times one rank's generations."""

    def __init__(
        self,
        device: torch.device,
        tokens: int,
        meet: Callable[[], None],
        listener: OnToken,
    ) -> None:
        """
        Args:
            tokens: the most that one generation marks.
            meet: returns when every rank has called it.
            listener: also told each token; it must cost nothing.
        """
        self._device = device
        self._tokens = tokens
        self._meet = meet
        self._listener = listener

    def time(self, work: Callable[[OnToken], Result]) -> tuple[Result, list[float]]:
        """Return what `work` gives, and the seconds from the start to each token it marked."""
        marks = self._new_marks()
        listener = self._listener

        def on_token(index: int) -> None:
            marks.token(index)
            listener(index)

        gc.disable()  # a collection inside the window would be measured
        try:
            # Idle before meeting, or a rank would meet while its device still works; idle after
            # it, since on a GPU the meeting itself is work of the device.
            self._wait()
            self._meet()
            self._wait()
            marks.start()
            result = work(on_token)
            self._wait()
        finally:
            gc.enable()
        return result, marks.seconds()

    def _new_marks(self) -> Marks:
        on_gpu = self._device.type == "cuda"
        return EventMarks(self._tokens) if on_gpu else ClockMarks(self._tokens)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def slowest(times: Sequence[Sequence[float]]) -> Sample:
    """One sample from every rank's token times of one generation: the slowest rank's, per token.

    A rank that had no rows has no times; one whose rows ended early stays at its last token.
    """
    timed = [list(each) for each in times if each]
    longest = max(map(len, timed), default=0)
    padded = [each + [each[-1]] * (longest - len(each)) for each in timed]
    ends = [each[-1] for each in timed]
    return Sample(
        token_s=[max(column) for column in zip(*padded, strict=True)],
        skew_s=max(ends, default=0.0) - min(ends, default=0.0),
    )
