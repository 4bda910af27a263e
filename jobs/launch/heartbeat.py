"""heartbeat.json: how far an attempt is, for `orch status`. Written by `jobs.launch`, so that no
rank writes anything while it measures.
"""

import contextlib
import socket
from datetime import UTC, datetime

from jobs.progress import LOADING, MEASURING, PHASES, WARMING, Board, RankProgress
from orchestrator.case import Case
from orchestrator.record import Heartbeat
from orchestrator.study.files import Attempt, write_whole


def write_heartbeat(
    attempt: Attempt, case: Case, board: Board, started_at: datetime
) -> None:
    """Replace the attempt's heartbeat by where the rank that is furthest behind stands."""
    last = min(board.rank_progress(), key=lambda each: each.place)
    beat = Heartbeat(
        at=datetime.now(UTC),
        phase=_phase(last, case),
        done=last.run * case.new_tokens + last.token,
        total=(case.warmup + case.repeats) * case.new_tokens,
        host=socket.gethostname(),
        started_at=started_at,
    )
    # A courtesy: where it cannot be written, the attempt goes on all the same.
    with contextlib.suppress(OSError):
        write_whole(attempt.heartbeat_file, beat.model_dump_json(), durable=False)


def _phase(standing: RankProgress, case: Case) -> str:
    name = standing.phase
    if name == PHASES[LOADING]:
        return f"{name} {standing.loaded} %"
    if name == PHASES[WARMING]:
        return f"{name} {standing.run + 1} of {case.warmup}"
    if name == PHASES[MEASURING]:
        return f"{name} {standing.run - case.warmup + 1} of {case.repeats}"
    return name
