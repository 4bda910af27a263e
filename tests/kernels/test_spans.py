"""Spans as intervals: what counts as busy, and the way to Chrome's format and back."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.spans import (
    KINDS,
    Span,
    as_events,
    busy,
    decode_window,
    of_events,
    shares,
)


def span(kind: str, start_s: float, end_s: float, token: int = 1) -> Span:
    return Span(rank=0, kind=kind, name="x", start_s=start_s, end_s=end_s, token=token)


# Whole microseconds, as far apart as a long generation is.
moments = st.integers(0, 10**9)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start, length = draw(moments), draw(st.integers(0, 10**6))
    return Span(
        rank=draw(st.integers(0, 3)),
        kind=draw(st.sampled_from(KINDS)),
        name=draw(st.sampled_from(["layer", "receive"])),
        start_s=start / 1e6,
        end_s=(start + length) / 1e6,
        layer=draw(st.none() | st.integers(0, 80)),
        micro_batch=draw(st.integers(0, 8)),
        token=draw(st.integers(0, 128)),
    )


def test_busy_is_what_compute_spans_cover_together() -> None:
    several = [span("compute", 0, 2), span("compute", 1, 3), span("compute", 5, 6)]
    assert busy(several) == [(0, 3), (5, 6)]


def test_busy_leaves_out_what_is_said_within_a_computation() -> None:
    several = [
        span("compute", 0, 10),
        span("communication", 2, 3),
        span("copy", 0, 20),
    ]
    assert busy(several) == [(0, 2), (3, 10)]


@given(st.lists(spans(), max_size=20))
def test_busy_intervals_follow_each_other_without_overlap(several: list[Span]) -> None:
    found = busy(several)
    assert all(start < end for start, end in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))


def test_the_decode_window_leaves_the_prefill_out_where_there_is_decode() -> None:
    prefill, decode = span("compute", 0, 4, token=0), span("compute", 5, 7)
    said = span("communication", 0, 99)
    assert decode_window([prefill, decode, said]) == (5, 7)
    assert decode_window([prefill, said]) == (0, 4)
    with pytest.raises(ValueError, match="no computation"):
        decode_window([said])


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).map(sorted),
    st.integers(1, 50),
)
def test_shares_of_all_parts_add_up_to_the_time_covered(
    edges: list[int], parts: int
) -> None:
    intervals = [
        (float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)
    ]
    window = (100.0, 900.0)
    covered = sum(max(0.0, min(b, 900.0) - max(a, 100.0)) for a, b in intervals)
    found = shares(intervals, window, parts)
    assert len(found) == parts
    assert all(0 <= share <= 1 for share in found)
    assert sum(found) * 800 / parts == pytest.approx(covered, abs=1e-6)


@given(st.lists(spans(), min_size=1, max_size=8))
def test_chrome_s_format_loses_nothing_but_the_start_of_the_clock(
    several: list[Span],
) -> None:
    text = json.dumps(as_events(several, {"case_id": "x"}))
    again = of_events(json.loads(text))
    zero_s = min(each.start_s for each in several)
    for one, other in zip(several, again, strict=True):
        assert other.start_s == pytest.approx(one.start_s - zero_s, abs=1e-8)
        assert other.end_s == pytest.approx(one.end_s - zero_s, abs=1e-8)
        for name in ("rank", "kind", "name", "layer", "micro_batch", "token"):
            assert getattr(one, name) == getattr(other, name)


def test_every_rank_and_kind_has_a_name_in_chrome_s_format() -> None:
    events = as_events([span("copy", 1, 2)], {})["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"rank 0", *KINDS}
