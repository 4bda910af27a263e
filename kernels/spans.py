"""What ranks did when, as intervals. Numbers only, no torch; `jobs.tracing` records them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("compute", "communication", "copy")

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Something that a rank did, from start to end."""

    rank: int
    kind: str
    """Of `KINDS`."""
    name: str
    start_s: float
    end_s: float
    layer: int | None = None
    micro_batch: int = 0
    token: int = 0
    """0 is the prefill."""


def busy(spans: Iterable[Span]) -> list[Interval]:
    """Return when one rank computed: its compute spans less the communication in them."""
    edges = []
    for span in spans:
        if span.kind in ("compute", "communication"):
            speaks = span.kind == "communication"
            edges += [(span.start_s, speaks, 1), (span.end_s, speaks, -1)]
    edges.sort()
    intervals: list[Interval] = []
    open_spans = {False: 0, True: 0}
    since: float | None = None
    for at_s, speaks, change in edges:
        open_spans[speaks] += change
        computes = open_spans[False] > 0 and not open_spans[True]
        if computes and since is None:
            since = at_s
        elif not computes and since is not None:
            if at_s > since:
                intervals.append((since, at_s))
            since = None
    return intervals


def decode_window(spans: Iterable[Span]) -> Interval:
    """Return the interval of all decode computation, or of any computation if there is none.

    Raises:
        ValueError: nothing was computed.
    """
    computing = [span for span in spans if span.kind == "compute"]
    counted = [span for span in computing if span.token] or computing
    if not counted:
        raise ValueError("the trace holds no computation")
    return min(span.start_s for span in counted), max(span.end_s for span in counted)


def shares(intervals: Sequence[Interval], window: Interval, parts: int) -> list[float]:
    """Return the share of each of `parts` equal parts of the window that the intervals cover."""
    start, end = window
    width = (end - start) / parts
    covered = [0.0] * parts
    for first, last in intervals:
        first, last = max(first, start), min(last, end)
        if first >= last:
            continue
        low = min(int((first - start) / width), parts - 1)
        high = min(int((last - start) / width), parts - 1)
        for part in range(low, high + 1):
            left = start + part * width
            covered[part] += max(0.0, min(last, left + width) - max(first, left))
    return [min(1.0, each / width) for each in covered]


def as_events(spans: Sequence[Span], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the spans in Chrome's trace event format, from the first one on.

    Each rank is a process, each kind of span a thread of it. Time is in microseconds.
    """
    zero_s = min((span.start_s for span in spans), default=0.0)
    names = [
        {"ph": "M", "name": name, "pid": rank, "tid": thread, "args": {"name": value}}
        for rank in sorted({span.rank for span in spans})
        for thread, kind in enumerate(KINDS)
        for name, value in (("process_name", f"rank {rank}"), ("thread_name", kind))
    ]
    return {
        "traceEvents": names + [_event(span, zero_s) for span in spans],
        "displayTimeUnit": "ms",
        "otherData": facts,
    }


def _event(span: Span, zero_s: float) -> dict[str, Any]:
    where = {"token": span.token, "micro_batch": span.micro_batch}
    if span.layer is not None:
        where["layer"] = span.layer
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.kind,
        "pid": span.rank,
        "tid": KINDS.index(span.kind),
        "ts": round(1e6 * (span.start_s - zero_s), 3),
        "dur": round(1e6 * (span.end_s - span.start_s), 3),
        "args": where,
    }


def of_events(trace: dict[str, Any]) -> list[Span]:
    """Return the spans that `as_events` made the trace from.

    Raises:
        KeyError, TypeError, ValueError: it is another program's trace, or damaged.
    """
    return [
        Span(
            rank=int(event["pid"]),
            kind=str(event["cat"]),
            name=str(event["name"]),
            start_s=float(event["ts"]) / 1e6,
            end_s=(float(event["ts"]) + float(event["dur"])) / 1e6,
            layer=event["args"].get("layer"),
            micro_batch=int(event["args"]["micro_batch"]),
            token=int(event["args"]["token"]),
        )
        for event in trace["traceEvents"]
        if event["ph"] == "X"
    ]
