"""Records what each rank does when: computation, communication and copies, on one clock.

`recording(engine)` puts a recorder in the place of the engine's timeline, and hooks around its
layers and groups; they change neither what is computed nor its order.
On a GPU a span is a pair of events in the current stream, read afterwards; on a CPU it is the
clock itself. All times are seconds of rank 0's `time.perf_counter`.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import nn

from kernels.llama_engine import LlamaEngine
from kernels.spans import Span
from kernels.timeline import OFF, Timeline
from kernels.world import Group

_PINGS = 20


class Recorder(Timeline):
    """Records the spans of one rank."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rank = rank
        self._token = self._micro_batch = 0
        self._spans: list[tuple[Span, Any, Any]] = []
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            torch.cuda.synchronize(device)
        self._zero = self._event()
        self._zero_s = time.perf_counter()

    def at(self, token: int, micro_batch: int = 0) -> None:
        """What follows belongs to this token and micro-batch."""
        self._token, self._micro_batch = token, micro_batch

    @contextmanager
    def span(self, kind: str, name: str, layer: int | None = None) -> Iterator[None]:
        """Record what happens inside; on a GPU, in the stream that is current at the start."""
        span = Span(
            rank=self._rank,
            kind=kind,
            name=name,
            start_s=0.0,
            end_s=0.0,
            layer=layer,
            micro_batch=self._micro_batch,
            token=self._token,
        )
        start = self._event()
        try:
            yield
        finally:
            self._spans.append((span, start, self._event()))

    def spans(self, offset_s: float = 0.0) -> list[Span]:
        """Return all spans so far, in the order of their starts; waits for the device.

        Args:
            offset_s: what `clock_offset_s` found.
        """
        if self._on_gpu:
            torch.cuda.synchronize()
        timed = [
            replace(
                span,
                start_s=self._seconds(start) + offset_s,
                end_s=self._seconds(end) + offset_s,
            )
            for span, start, end in self._spans
        ]
        return sorted(timed, key=lambda span: (span.start_s, -span.end_s))

    def _event(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, event: Any) -> float:
        if not self._on_gpu:
            return float(event)
        return self._zero_s + float(self._zero.elapsed_time(event)) / 1000


@contextmanager
def recording(engine: LlamaEngine) -> Iterator[Recorder]:
    """Record what the engine does inside: its layers, its communication, what it reports."""
    recorder = Recorder(engine.world.rank, engine.device)
    with ExitStack() as undo:
        for name, layer, module in _modules(engine.model):
            _hook(undo, recorder, module, name, layer)
        for group in vars(engine.groups).values():
            if group.size > 1:
                for name in (
                    "all_reduce",
                    "all_gather",
                    "broadcast",
                    "send",
                    "receive",
                ):
                    _wrap(undo, recorder, "communication", group, name)
        _wrap(undo, recorder, "compute", engine, "choose")
        engine.watch(recorder)
        undo.callback(engine.watch, OFF)
        yield recorder


def _modules(model: nn.Module) -> Iterator[tuple[str, int | None, nn.Module]]:
    """Yield name, layer and module of everything that gets a span."""
    for key, module in model.get_submodule("layers").named_children():
        yield "layer", int(key), module
    for name, attribute in (
        ("embedding", "tok_embeddings"),
        ("norm", "norm"),
        ("head", "output"),
    ):
        if (module := getattr(model, attribute)) is not None:
            yield name, None, module


def _hook(
    undo: ExitStack, recorder: Recorder, module: nn.Module, name: str, layer: int | None
) -> None:
    """Put a span around each forward pass of the module."""
    running: list[AbstractContextManager[None]] = []

    def before(_module: nn.Module, _inputs: object) -> None:
        span = recorder.span("compute", name, layer)
        span.__enter__()
        running.append(span)

    def after(_module: nn.Module, _inputs: object, _output: object) -> None:
        running.pop().__exit__(None, None, None)

    undo.callback(module.register_forward_pre_hook(before).remove)
    undo.callback(module.register_forward_hook(after).remove)


def _wrap(
    undo: ExitStack, recorder: Recorder, kind: str, owner: object, name: str
) -> None:
    """Put a span around each call of the owner's method."""
    method = getattr(owner, name)

    @wraps(method)
    def recorded(*args: Any, **options: Any) -> Any:
        with recorder.span(kind, name):
            return method(*args, **options)

    setattr(owner, name, recorded)
    undo.callback(delattr, owner, name)


def clock_offset_s(everyone: Group, device: torch.device) -> float:
    """Return what to add to this rank's clock to get that of the group's first member.

    Cristian's algorithm (1989): of many round trips the quickest errs least, by half its time.
    An offset within that error is taken as 0, since ranks of one machine share their clock.
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
    """Return the other member's offset."""
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
