"""Who computes when in a pipeline. Integers only, no torch.

The sequences in flight are cut by rows into micro-batches, each with rows of the KV cache to
itself. Every stage works through the same list of pieces (`order`); the schedules differ only
in what the first stage waits for before it lets a piece in (`enters_after`). Below, `21` is
token 2 of micro-batch 1; 3 stages, 3 micro-batches; token 0 is the prefill.

    gpipe: fill and drain, all ids of a token are back before the next token enters
    tick      0  1  2  3  4  5  6  7  8  9
    stage 0  00 01 02  .  . 10 11 12  .  .       idle share (N - 1) / (M + N - 1)
    stage 1   . 00 01 02  .  . 10 11 12  .       of N stages and M micro-batches
    stage 2   .  . 00 01 02  .  . 10 11 12

    async: a micro-batch's next token enters as soon as its last one is back (PipeDream-like)
    tick      0  1  2  3  4  5  6  7  8  9
    stage 0  00 01 02 10 11 12 20 21 22 30       idle share max(0, N - M) / N
    stage 1   . 00 01 02 10 11 12 20 21 22       but for one fill and one drain
    stage 2   .  . 00 01 02 10 11 12 20 21

One micro-batch is model parallel (`sequential`): in both, one stage at work at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kernels.placement import split_evenly

SCHEDULES = ("sequential", "gpipe", "async")
"""`sequential` is model parallelism: one batch, one stage at work at a time."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What goes through the stages in one generation."""

    schedule: str
    """Of `SCHEDULES`."""
    rows: int
    """Sequences in flight."""
    prompt_tokens: int
    """Columns of the padded prompts."""
    new_tokens: int
    micro_batches: int = 1
    """Of decode; at most one per row."""
    prefill_micro_batches: int = 0
    """0: as many as decode. More than there are rows cut the prompts by columns too."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"the schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        counts = (self.rows, self.prompt_tokens, self.new_tokens, self.micro_batches)
        if min(counts) < 1 or self.prefill_micro_batches < 0:
            raise ValueError(
                f"rows, prompt tokens, new tokens and micro-batches must be at least 1, got "
                f"{counts}; prefill micro-batches at least 0, got {self.prefill_micro_batches}"
            )


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a stage computes at one go."""

    token: int
    """0 is the prefill."""
    micro_batch: int
    rows: range
    columns: range
    """Of the cache that it writes: a stretch of the prompt, or the column of one token."""
    chooses: bool = True
    """Ids follow from it; not so for the earlier stretches of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One piece on one stage, from tick to tick."""

    stage: int
    piece: Piece
    start: float
    end: float


def decode_rows(flow: Flow) -> list[range]:
    """The rows of each micro-batch in decode; disjoint, together all rows."""
    count = 1 if flow.schedule == "sequential" else flow.micro_batches
    return split_evenly(flow.rows, min(count, flow.rows))


def order(flow: Flow) -> list[Piece]:
    """The pieces that every stage works through, in this order."""
    pieces = _prefill(flow)
    for token in range(1, flow.new_tokens):
        column = flow.prompt_tokens + token - 1
        pieces += [
            Piece(
                token=token,
                micro_batch=micro_batch,
                rows=rows,
                columns=range(column, column + 1),
            )
            for micro_batch, rows in enumerate(decode_rows(flow))
        ]
    return pieces


def _prefill(flow: Flow) -> list[Piece]:
    count = len(decode_rows(flow))
    if flow.schedule != "sequential":
        count = flow.prefill_micro_batches or count
    parts = split_evenly(flow.rows, min(count, flow.rows))
    stretches = [
        (rows, columns)
        for rows, shares in zip(parts, split_evenly(count, len(parts)), strict=True)
        for columns in split_evenly(
            flow.prompt_tokens, min(len(shares), flow.prompt_tokens)
        )
    ]
    return [
        Piece(
            token=0,
            micro_batch=number,
            rows=rows,
            columns=columns,
            chooses=columns.stop == flow.prompt_tokens,
        )
        for number, (rows, columns) in enumerate(stretches)
    ]


def enters_after(flow: Flow, pieces: Sequence[Piece]) -> list[int]:
    """For each piece, the index of the last one whose ids must be back first; -1: of none.

    Ids come back in the order of the pieces, so one index says it all.
    """
    last: dict[int, int] = {}
    """Row → the last piece so far that chose its id."""
    barrier = -1
    waits = []
    for number, piece in enumerate(pieces):
        if number and piece.token != pieces[number - 1].token:
            barrier = number - 1
        if not piece.token:
            waits.append(-1)
        elif flow.schedule == "gpipe":
            waits.append(barrier)
        else:
            waits.append(max(last[row] for row in piece.rows))
        if piece.chooses:
            last |= dict.fromkeys(piece.rows, number)
    return waits


def _one_tick(stage: int, piece: Piece) -> float:
    return 1


def timetable(
    flow: Flow,
    stages: int,
    ticks: Callable[[int, Piece], float] = _one_tick,
    hop: float = 0,
) -> list[Slot]:
    """When each stage works on what, if nothing but the schedule makes it wait.

    Args:
        ticks: time of a piece on a stage.
        hop: time from one stage to the next, and from the last back to the first.
    """
    pieces = order(flow)
    free = [0.0] * stages
    back: list[float] = []
    slots = []
    for piece, after in zip(pieces, enters_after(flow, pieces), strict=True):
        arrives = back[after] + hop if after >= 0 and stages > 1 else 0.0
        for stage in range(stages):
            start = max(free[stage], arrives)
            free[stage] = start + ticks(stage, piece)
            slots.append(Slot(stage=stage, piece=piece, start=start, end=free[stage]))
            arrives = free[stage] + hop
        back.append(free[-1])
    return slots


def decode_window(slots: Iterable[Slot]) -> tuple[float, float]:
    """From the first start to the last end of a decode piece; of all where none decodes."""
    every = list(slots)
    counted = [slot for slot in every if slot.piece.token] or every
    return min(slot.start for slot in counted), max(slot.end for slot in counted)


def idle_share(
    busy: Iterable[tuple[float, float]], stages: int, window: tuple[float, float]
) -> float:
    """The share of the stages' time in the window that no interval of `busy` fills: the bubble.

    Args:
        busy: start and end of work on any stage; those of one stage do not overlap.
    """
    start, end = window
    if end <= start:
        return 0.0
    worked = sum(max(0.0, min(b, end) - max(a, start)) for a, b in busy)
    return max(0.0, 1 - worked / (stages * (end - start)))  # rounding


def bubble(
    flow: Flow, stages: int, ticks: Callable[[int, Piece], float] = _one_tick
) -> float:
    """The idle share of decode that the schedule itself costs, communication being free."""
    slots = timetable(flow, stages, ticks)
    busy = [(slot.start, slot.end) for slot in slots]
    return idle_share(busy, stages, decode_window(slots))
