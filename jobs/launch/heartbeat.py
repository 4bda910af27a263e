"""Writes heartbeat.json, from which `orch status` shows progress.

The supervisor writes it, so that no rank writes a file while it measures.
"""

import contextlib
import socket
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.progress import LOADING, MEASURING, PHASES, WARMING, RankProgress
from orchestrator.case import Case
from orchestrator.files import write_whole
from orchestrator.record import Heartbeat
from orchestrator.study.files import Attempt


def write_heartbeat(
    attempt: Attempt, case: Case, ranks: Sequence[RankProgress], started_at: datetime
) -> None:
    """Replace the attempt's heartbeat by the progress of the slowest rank."""
    slowest = min(ranks, key=lambda each: each.order)
    beat = Heartbeat(
        at=datetime.now(UTC),
        phase=_phase(slowest, case),
        done=slowest.generation * case.new_tokens + slowest.tokens,
        total=(case.warmup + case.repeats) * case.new_tokens,
        host=socket.gethostname(),
        started_at=started_at,
    )
    # Progress is a courtesy: a disk that takes no heartbeat must not end the attempt.
    with contextlib.suppress(OSError):
        write_whole(attempt.heartbeat_file, beat.model_dump_json(), durable=False)


def _phase(rank: RankProgress, case: Case) -> str:
    name = rank.phase
    if name == PHASES[LOADING]:
        return f"{name} {rank.loaded_percent} %"
    if name == PHASES[WARMING]:
        return f"{name} {rank.generation + 1} of {case.warmup}"
    if name == PHASES[MEASURING]:
        return f"{name} {rank.generation - case.warmup + 1} of {case.repeats}"
    return name
