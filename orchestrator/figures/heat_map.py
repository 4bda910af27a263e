"""The heat map of devices over time: a row per rank, dark where it computes.

One panel per traced case, all on one time scale, so that schedules can be compared by eye.
Within a panel each stretch of work carries its token and, where there are several, its
micro-batch, as in the timetables of `kernels.pipeline.schedule`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.spans import Interval, Span, busy, shares

PARTS = 1200
"""Columns of a heat map."""
_LABELS = 160
"""More stretches of work than this in a panel carry no text: it could not be read."""
_NARROW = 0.012
"""A stretch below this share of the width carries none either."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One traced case."""

    title: str
    spans: Sequence[Span]


def window_of(spans: Iterable[Span], tokens: range) -> Interval | None:
    """From the first to the last moment of computation of these tokens; None: there is none."""
    mine = [span for span in spans if span.kind == "compute" and span.token in tokens]
    if not mine:
        return None
    return min(span.start_s for span in mine), max(span.end_s for span in mine)


def stretches(spans: Iterable[Span]) -> dict[tuple[int, int, int], Interval]:
    """(rank, token, micro-batch) → from the first to the last moment it was computed."""
    found: dict[tuple[int, int, int], Interval] = {}
    for span in spans:
        if span.kind != "compute":
            continue
        key = (span.rank, span.token, span.micro_batch)
        start, end = found.get(key, (span.start_s, span.end_s))
        found[key] = (min(start, span.start_s), max(end, span.end_s))
    return found


def grid_of(
    spans: Iterable[Span], ranks: int, window: Interval, parts: int
) -> list[list[float]]:
    """How much of each part of the window each rank computes: a row per rank."""
    work = busy_ranks(spans)
    return [shares(work.get(rank, []), window, parts) for rank in range(ranks)]


def busy_ranks(spans: Iterable[Span]) -> dict[int, list[Interval]]:
    """Rank → the intervals in which it computes."""
    by_rank: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_rank[span.rank].append(span)
    return {rank: busy(mine) for rank, mine in by_rank.items()}


def draw(panels: Sequence[Panel], tokens: range, file: Path) -> None:
    """Draw the tokens of every panel into a file; its ending says what kind of picture.

    Raises:
        ValueError: a panel has no such token, or the ending is of no picture.
    """
    from matplotlib.figure import Figure

    windows = [_window(panel, tokens) for panel in panels]
    longest_s = max(end - start for start, end in windows)
    ranks = [1 + max(span.rank for span in panel.spans) for panel in panels]
    figure = Figure(
        figsize=(11, 0.7 + sum(0.75 + 0.34 * count for count in ranks)),
        layout="constrained",
    )
    axes = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[2 + n for n in ranks]
    )[:, 0]
    picture: Any = None
    for axis, panel, window, count in zip(axes, panels, windows, ranks, strict=True):
        whole = (window[0], window[0] + longest_s)
        picture = _heat(axis, panel, whole, count)
        _label(axis, panel, window, longest_s)
    axes[-1].set_xlabel("milliseconds")
    figure.colorbar(
        picture, ax=list(axes), label="share of the time computing", aspect=30, pad=0.01
    )
    figure.savefig(file, dpi=150)


def _window(panel: Panel, tokens: range) -> Interval:
    window = window_of(panel.spans, tokens)
    if window is None:
        last = max((span.token for span in panel.spans), default=-1)
        raise ValueError(
            f"{panel.title}: no computation of tokens {tokens.start} to {tokens.stop - 1} in the "
            f"trace; it has tokens 0 to {last}"
        )
    return window


def _heat(axis: Any, panel: Panel, window: Interval, ranks: int) -> Any:
    picture = axis.imshow(
        grid_of(panel.spans, ranks, window, PARTS),
        aspect="auto",
        interpolation="nearest",
        cmap="OrRd",
        vmin=0,
        vmax=1,
        extent=(0, 1e3 * (window[1] - window[0]), ranks - 0.5, -0.5),
    )
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)], fontsize=8)
    return picture


def _label(axis: Any, panel: Panel, window: Interval, longest_s: float) -> None:
    """Write token and micro-batch on what is wide enough."""
    several = any(span.micro_batch for span in panel.spans)
    seen = {
        key: place
        for key, place in stretches(panel.spans).items()
        if window[0] <= sum(place) / 2 <= window[0] + longest_s
        and place[1] - place[0] >= _NARROW * longest_s
    }
    if len(seen) > _LABELS:
        return
    work = busy_ranks(panel.spans)
    for (rank, token, micro_batch), (start, end) in seen.items():
        dark = shares(work[rank], (start, end), 1)[0] > 0.5
        axis.text(
            1e3 * ((start + end) / 2 - window[0]),
            rank,
            f"{token}·{micro_batch}" if several else str(token),
            ha="center", va="center", fontsize=7, clip_on=True,
            color="white" if dark else "black",
        )  # fmt: skip
