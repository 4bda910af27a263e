"""The traced repetition of a case, after the measurement: who computed when, as files and facts.

`trace.json.gz` is Chrome's trace event format: ui.perfetto.dev and chrome://tracing show it, and
`orch trace` draws the heat map of devices over time from it. Each rank is a process of it, its
computation, communication and copies are the threads.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.tracing import flame
from jobs.tracing.recorder import clock_offset_s, recording
from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.pipeline.schedule import Flow, bubble, idle_share
from kernels.spans import Span, as_events, busy, decode_window
from orchestrator.case import Case
from orchestrator.record import TraceFacts
from orchestrator.study.files import Attempt


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What one rank recorded of the traced repetition."""

    spans: list[Span] = field(default_factory=list)
    stacks: dict[flame.Stack, float] = field(default_factory=dict)
    """Microseconds of each stack, where a flame graph was asked for."""


def repeat_traced(
    engine: LlamaEngine, batch: Batch, generation: Generation, *, with_flame: bool
) -> Traced:
    """Generate once more, recorded; and once again under the profiler. All ranks call it."""
    world = engine.world
    everyone = world.group(range(world.size))
    offset_s = clock_offset_s(everyone, world.device)
    with recording(engine) as recorder:
        everyone.barrier()
        engine.generate(batch, generation)
        engine.synchronize()
    stacks = {}
    if with_flame:
        everyone.barrier()
        stacks = flame.profiled(
            lambda: engine.generate(batch, generation), world.device.type == "cuda"
        )
    everyone.close()
    return Traced(spans=recorder.spans(offset_s), stacks=stacks)


def facts(case: Case, columns: int, traced: list[Traced]) -> TraceFacts:
    """Return the idle shares of decode, and what the schedule alone would cost.

    Args:
        columns: of the padded prompts.
        traced: what each rank recorded.
    """
    spans = [span for each in traced for span in each.spans]
    start_s, end_s = decode_window(spans)
    shares = [
        idle_share(busy(each.spans), 1, (start_s, end_s)) if each.spans else 1.0
        for each in traced
    ]
    rows = case.strategy.in_flight or case.batch_size
    flow = Flow.of(case.strategy, rows, columns, case.new_tokens)
    return TraceFacts(
        window_s=end_s - start_s,
        idle_share=sum(shares) / len(shares),
        idle_share_of_ranks=shares,
        schedule_idle_share=bubble(flow, case.strategy.stages),
    )


def write(attempt: Attempt, case: Case, traced: list[Traced]) -> list[Path]:
    """Write the trace and, if there are stacks, flame graphs of all ranks together and of each.

    Raises:
        OSError: they cannot be written.
    """
    spans = [span for each in traced for span in each.spans]
    facts = {"case_id": case.case_id, "ranks": len(traced)}
    text = json.dumps(as_events(spans, facts), separators=(",", ":"))
    attempt.trace_file.write_bytes(gzip.compress(text.encode(), mtime=0))
    written = [attempt.trace_file]
    if any(each.stacks for each in traced):
        together = _together(each.stacks for each in traced)
        written += _write_flame(
            attempt.flame_file(), together, f"{case.case_id}, all ranks"
        )
        for rank, each in enumerate(traced):
            title = f"{case.case_id}, rank {rank}"
            written += _write_flame(attempt.flame_file(rank), each.stacks, title)
    return written


def _together(
    stacks: Iterable[Mapping[flame.Stack, float]],
) -> dict[flame.Stack, float]:
    total: dict[flame.Stack, float] = defaultdict(float)
    for each in stacks:
        for stack, time_us in each.items():
            total[stack] += time_us
    return dict(total)


def _write_flame(
    file: Path, stacks: Mapping[flame.Stack, float], title: str
) -> list[Path]:
    if not stacks:
        return []  # a rank without rows: its device did nothing
    text = file.with_suffix(".folded")
    file.write_text(flame.drawn(stacks, title), encoding="utf-8")
    text.write_text(flame.folded(stacks), encoding="utf-8")
    return [file, text]
