"""When each stage of a pipeline computes what. Integers only, no torch.

The sequences in flight are cut by rows into micro-batches, each with rows of the KV cache to
itself. Every stage runs the same forward passes in the same order (`forward_passes`); the
schedules differ only in which ids the first stage waits for before a pass (`dependencies`).
Below, `21` is token 2 of micro-batch 1; 3 stages, 3 micro-batches; token 0 is the prefill.

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
from kernels.strategies import Strategy

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

    @classmethod
    def of(
        cls, strategy: Strategy, rows: int, prompt_tokens: int, new_tokens: int
    ) -> "Flow":
        """Return what goes through the stages of one replica."""
        return cls(
            schedule=strategy.schedule,
            rows=rows,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            micro_batches=strategy.micro_batches,
            prefill_micro_batches=strategy.prefill_micro_batches,
        )

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
class ForwardPass:
    """One forward pass of one micro-batch through a stage."""

    token: int
    """0 is the prefill."""
    micro_batch: int
    rows: range
    columns: range
    """Of the cache that it writes: a chunk of the prompt, or the column of one token."""
    chooses: bool = True
    """Whether ids follow from it; not from the earlier chunks of a prompt."""

    def completes_token(self, flow: Flow) -> bool:
        """Return whether it is the last pass of its token."""
        return self.chooses and self.rows.stop == flow.rows


@dataclass(frozen=True, kw_only=True)
class TimetableEntry:
    """One forward pass on one stage, from tick to tick."""

    stage: int
    forward: ForwardPass
    start: float
    end: float


def decode_rows(flow: Flow) -> list[range]:
    """Return the rows of each micro-batch in decode; disjoint, together all rows."""
    count = 1 if flow.schedule == "sequential" else flow.micro_batches
    return split_evenly(flow.rows, min(count, flow.rows))


def forward_passes(flow: Flow) -> list[ForwardPass]:
    """Return the forward passes that every stage runs, in this order."""
    passes = _prefill(flow)
    for token in range(1, flow.new_tokens):
        column = flow.prompt_tokens + token - 1
        passes += [
            ForwardPass(
                token=token,
                micro_batch=micro_batch,
                rows=rows,
                columns=range(column, column + 1),
            )
            for micro_batch, rows in enumerate(decode_rows(flow))
        ]
    return passes


def _prefill(flow: Flow) -> list[ForwardPass]:
    count = len(decode_rows(flow))
    if flow.schedule != "sequential":
        count = flow.prefill_micro_batches or count
    parts = split_evenly(flow.rows, min(count, flow.rows))
    chunks = [
        (rows, columns)
        for rows, shares in zip(parts, split_evenly(count, len(parts)), strict=True)
        for columns in split_evenly(
            flow.prompt_tokens, min(len(shares), flow.prompt_tokens)
        )
    ]
    return [
        ForwardPass(
            token=0,
            micro_batch=number,
            rows=rows,
            columns=columns,
            chooses=columns.stop == flow.prompt_tokens,
        )
        for number, (rows, columns) in enumerate(chunks)
    ]


def dependencies(flow: Flow, passes: Sequence[ForwardPass]) -> list[int]:
    """Return for each pass the index of the last pass whose ids must be back first; -1: none.

    Ids come back in the order of the passes, so the last one implies the others.
    """
    last: dict[int, int] = {}
    """Row → the last pass so far that chose its id."""
    token_ends = -1
    waits = []
    for number, each in enumerate(passes):
        if each.micro_batch == 0:
            token_ends = number - 1
        if not each.token:
            waits.append(-1)
        elif flow.schedule == "gpipe":
            waits.append(token_ends)
        else:
            waits.append(max(last[row] for row in each.rows))
        if each.chooses:
            last |= dict.fromkeys(each.rows, number)
    return waits


def _one_tick(stage: int, forward: ForwardPass) -> float:
    return 1


def timetable(
    flow: Flow,
    stages: int,
    ticks: Callable[[int, ForwardPass], float] = _one_tick,
    hop: float = 0,
) -> list[TimetableEntry]:
    """Return when each stage runs each pass, if nothing but the schedule makes it wait.

    Args:
        ticks: time of a pass on a stage.
        hop: time from one stage to the next, and from the last back to the first.
    """
    passes = forward_passes(flow)
    free = [0.0] * stages
    back: list[float] = []
    entries = []
    for forward, after in zip(passes, dependencies(flow, passes), strict=True):
        arrives = back[after] + hop if after >= 0 and stages > 1 else 0.0
        for stage in range(stages):
            start = max(free[stage], arrives)
            free[stage] = start + ticks(stage, forward)
            entries.append(
                TimetableEntry(
                    stage=stage, forward=forward, start=start, end=free[stage]
                )
            )
            arrives = free[stage] + hop
        back.append(free[-1])
    return entries


def decode_window(entries: Iterable[TimetableEntry]) -> tuple[float, float]:
    """Return the interval of all decode passes, or of all passes if there are no others."""
    every = list(entries)
    counted = [entry for entry in every if entry.forward.token] or every
    return min(entry.start for entry in counted), max(entry.end for entry in counted)


def idle_share(
    busy: Iterable[tuple[float, float]], stages: int, window: tuple[float, float]
) -> float:
    """Return the share of the stages' time in the window that is idle: the bubble.

    Args:
        busy: start and end of work on any stage; those of one stage do not overlap.
    """
    start, end = window
    if end <= start:
        return 0.0
    worked = sum(max(0.0, min(b, end) - max(a, start)) for a, b in busy)
    return max(0.0, 1 - worked / (stages * (end - start)))  # rounding


def bubble(
    flow: Flow, stages: int, ticks: Callable[[int, ForwardPass], float] = _one_tick
) -> float:
    """Return the idle share of decode that the schedule alone costs, with free communication."""
    entries = timetable(flow, stages, ticks)
    busy = [(entry.start, entry.end) for entry in entries]
    return idle_share(busy, stages, decode_window(entries))
