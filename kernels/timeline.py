"""What each rank did when: spans of computation, communication and copies, on one clock.

Engines speak to `engine.timeline`, which is `OFF` and costs a call, but for the traced repetition:
`watched(engine)` puts a real one in its place, and hooks around the layers and the groups.
On a GPU a span is a pair of events in the current stream, read afterwards; on a CPU it is the
clock itself. All times are seconds of rank 0's `time.perf_counter`.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import nn

from kernels.spans import Span
from kernels.world import Group

_PINGS = 20


class Timeline:
    """The spans of one rank."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rank = rank
        self._token = self._micro_batch = 0
        self._spans: list[tuple[Span, Any, Any]] = []
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            torch.cuda.synchronize(device)
        self._zero = self._moment()
        self._zero_s = time.perf_counter()

    def at(self, token: int, micro_batch: int = 0) -> None:
        """What comes now belongs to this token and micro-batch."""
        self._token, self._micro_batch = token, micro_batch

    @contextmanager
    def span(self, kind: str, name: str, layer: int | None = None) -> Iterator[None]:
        """Note what happens inside; on a GPU, in the stream that is current at the start."""
        what = Span(
            rank=self._rank,
            kind=kind,
            name=name,
            start_s=0.0,
            end_s=0.0,
            layer=layer,
            micro_batch=self._micro_batch,
            token=self._token,
        )
        start = self._moment()
        try:
            yield
        finally:
            self._spans.append((what, start, self._moment()))

    def spans(self, offset_s: float = 0.0) -> list[Span]:
        """All spans so far, in the order of their starts; waits for the device.

        Args:
            offset_s: what `clock_offset_s` found.
        """
        if self._on_gpu:
            torch.cuda.synchronize()
        timed = [
            replace(
                what,
                start_s=self._seconds(start) + offset_s,
                end_s=self._seconds(end) + offset_s,
            )
            for what, start, end in self._spans
        ]
        return sorted(timed, key=lambda span: (span.start_s, -span.end_s))

    def _moment(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, moment: Any) -> float:
        if not self._on_gpu:
            return float(moment)
        return self._zero_s + float(self._zero.elapsed_time(moment)) / 1000


class _Off(Timeline):
    """Notes nothing."""

    def __init__(self) -> None:
        self._nothing: AbstractContextManager[None] = nullcontext()

    def at(self, token: int, micro_batch: int = 0) -> None:
        """Nothing."""

    def span(  # type: ignore[override]
        self, kind: str, name: str, layer: int | None = None
    ) -> AbstractContextManager[None]:
        """Nothing, around what happens inside."""
        return self._nothing

    def spans(self, offset_s: float = 0.0) -> list[Span]:
        """None."""
        return []


OFF = _Off()
"""The timeline of every engine that nobody watches."""


@contextmanager
def watched(engine: Any) -> Iterator[Timeline]:
    """Note what an engine does inside: its layers, its communication, what it tells itself."""
    timeline = Timeline(engine.world.rank, engine.device)
    with ExitStack() as stack:
        for name, layer, module in _parts(engine.model):
            stack.callback(_hooked(timeline, module, name, layer))
        for group in vars(engine.groups).values():
            stack.callback(_timed(timeline, group))
        stack.callback(_around_choice(timeline, engine))
        engine.watch(timeline)
        stack.callback(lambda: engine.watch(OFF))
        yield timeline


def _parts(model: nn.Module) -> Iterator[tuple[str, int | None, nn.Module]]:
    for key, module in model.get_submodule("layers").named_children():
        yield "layer", int(key), module
    for name, attribute in (("embedding", "tok_embeddings"), ("norm", "norm")):
        if (module := getattr(model, attribute)) is not None:
            yield name, None, module
    if model.output is not None:
        yield "head", None, model.output  # type: ignore[misc]


def _hooked(timeline: Timeline, module: nn.Module, name: str, layer: int | None) -> Any:
    """Hooks around a module; what takes them away."""
    running: list[AbstractContextManager[None]] = []

    def before(_module: nn.Module, _inputs: object) -> None:
        span = timeline.span("compute", name, layer)
        span.__enter__()
        running.append(span)

    def after(_module: nn.Module, _inputs: object, _out: object) -> None:
        running.pop().__exit__(None, None, None)

    handles = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _around_choice(timeline: Timeline, engine: Any) -> Any:
    """A span around the choice of ids; what takes it away."""
    engine.choose = _in_span(timeline, "compute", "choose", engine.choose)

    def remove() -> None:
        del engine.choose

    return remove


def _timed(timeline: Timeline, group: Group) -> Any:
    """Spans around what a group says, if it has anyone to talk to; what takes them away."""
    names = ("all_reduce", "all_gather", "broadcast", "send", "receive")
    if group.size == 1:
        return lambda: None
    for name in names:
        setattr(
            group, name, _in_span(timeline, "communication", name, getattr(group, name))
        )

    def remove() -> None:
        for name in names:
            delattr(group, name)

    return remove


def _in_span(timeline: Timeline, kind: str, name: str, method: Any) -> Any:
    @wraps(method)
    def said(*args: Any, **options: Any) -> Any:
        with timeline.span(kind, name):
            return method(*args, **options)

    return said


def clock_offset_s(everyone: Group, device: torch.device) -> float:
    """What to add to this rank's clock to have that of the group's first member.

    Cristian's algorithm: of many round trips the quickest one is believed, to half its time.
    Within that error of 0 the offset is taken as 0: ranks of one machine share their clock.
    All members call it.
    """
    if everyone.size == 1:
        return 0.0
    offset_s = torch.zeros(1, dtype=torch.float64, device=device)
    for other in range(1, everyone.size):
        if everyone.index == 0:
            everyone.send(_ask(everyone, other, offset_s), other)
        elif everyone.index == other:
            _answer(everyone, offset_s)
    return float(offset_s) if everyone.index else 0.0


def _ask(everyone: Group, other: int, like: torch.Tensor) -> torch.Tensor:
    """The other member's offset."""
    trips = []
    for _ in range(_PINGS):
        sent_s = time.perf_counter()
        everyone.send(torch.zeros_like(like), other)
        theirs_s = float(everyone.receive(torch.zeros_like(like), other))
        back_s = time.perf_counter()
        trips.append((back_s - sent_s, (sent_s + back_s) / 2 - theirs_s))
    round_trip_s, offset_s = min(trips)
    return torch.full_like(like, 0.0 if abs(offset_s) <= round_trip_s else offset_s)


def _answer(everyone: Group, offset_s: torch.Tensor) -> None:
    for _ in range(_PINGS):
        float(everyone.receive(torch.zeros_like(offset_s), 0))  # waits for a GPU, too
        everyone.send(torch.full_like(offset_s, time.perf_counter()), 0)
    everyone.receive(offset_s, 0)
