"""The heat map of devices over time: a row per rank, dark where it computes.

One panel per traced case, all on one time scale, so that schedules can be compared by eye.
Within a panel each stretch of work carries its token and, where there are several, its
micro-batch, as in the timetables of `kernels.pipeline.schedule`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernels.spans import Interval, Span, busy, shares

PARTS = 1200
"""Columns of a heat map."""
_LABELS = 160
"""More stretches of work than this in a panel carry no text: it could not be read."""
_CHARACTER = 0.0075
"""Share of the width that a character takes; a stretch narrower than its text carries none."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The heat map of one traced case."""

    title: str
    spans: Sequence[Span]


def stretches(spans: Iterable[Span]) -> dict[tuple[int, int, int], Interval]:
    """Map (rank, token, micro-batch) to the time from its first to its last computation."""
    found: dict[tuple[int, int, int], Interval] = {}
    for span in spans:
        if span.kind != "compute":
            continue
        key = (span.rank, span.token, span.micro_batch)
        start, end = found.get(key, (span.start_s, span.end_s))
        found[key] = (min(start, span.start_s), max(end, span.end_s))
    return found


def shares_by_rank(
    spans: Iterable[Span], ranks: int, window: Interval, parts: int
) -> list[list[float]]:
    """Return which share of each part of the window each rank computes: a row per rank."""
    work = busy_ranks(spans)
    return [shares(work.get(rank, []), window, parts) for rank in range(ranks)]


def busy_ranks(spans: Iterable[Span]) -> dict[int, list[Interval]]:
    """Map each rank to the intervals in which it computes."""
    by_rank: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_rank[span.rank].append(span)
    return {rank: busy(mine) for rank, mine in by_rank.items()}


def draw(panels: Sequence[Panel], tokens: range, file: Path) -> None:
    """Draw these tokens of every panel into a file; its ending says what kind of picture.

    Raises:
        ValueError: a panel has no such token, or the ending is of no picture.
    """
    from matplotlib.figure import Figure

    ranks = [1 + max(span.rank for span in panel.spans) for panel in panels]
    panels = [replace(panel, spans=_of_tokens(panel, tokens)) for panel in panels]
    windows = [_window(panel) for panel in panels]
    longest_s = max(end - start for start, end in windows)
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
    several = any(span.micro_batch for panel in panels for span in panel.spans)
    what = "token·micro-batch" if several else "token"
    axes[-1].set_xlabel(f"milliseconds; labels: {what}, token 0 is the prefill")
    bar = figure.colorbar(picture, ax=list(axes), aspect=30, pad=0.01)
    bar.set_label("share computing", fontsize=8)
    figure.savefig(file, dpi=150)


def _of_tokens(panel: Panel, tokens: range) -> list[Span]:
    """Drop the computation of other tokens, which a faster case would show too."""
    found = [
        span for span in panel.spans if span.kind != "compute" or span.token in tokens
    ]
    if any(span.kind == "compute" for span in found):
        return found
    last = max((span.token for span in panel.spans), default=-1)
    raise ValueError(
        f"{panel.title}: no computation of tokens {tokens.start} to {tokens.stop - 1} in the "
        f"trace; it has tokens 0 to {last}"
    )


def _window(panel: Panel) -> Interval:
    computing = [span for span in panel.spans if span.kind == "compute"]
    return min(span.start_s for span in computing), max(
        span.end_s for span in computing
    )


def _heat(axis: Any, panel: Panel, window: Interval, ranks: int) -> Any:
    picture = axis.imshow(
        shares_by_rank(panel.spans, ranks, window, PARTS),
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
        if place[1] - place[0] >= len(_text(key, several)) * _CHARACTER * longest_s
    }
    if len(seen) > _LABELS:
        return
    work = busy_ranks(panel.spans)
    for key, (start, end) in seen.items():
        dark = shares(work[key[0]], (start, end), 1)[0] > 0.5
        axis.text(
            1e3 * ((start + end) / 2 - window[0]),
            key[0],
            _text(key, several),
            ha="center", va="center", fontsize=7, clip_on=True,
            color="white" if dark else "black",
        )  # fmt: skip


def _text(key: tuple[int, int, int], several: bool) -> str:
    """Return what a bar shows: rank, token and micro-batch."""
    return f"{key[1]}·{key[2]}" if several else str(key[1])
