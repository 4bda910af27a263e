"""From what squeue and sacct say to the state of a job; and the last answer, kept in a file.

Three-valued: waits or runs, ended, or unknown. A job that squeue does not have has ended,
provided squeue answered; where it did not, only the accounting's word of an end counts.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.causes.slurm_states import cause_of, phase_of, plain_state
from orchestrator.runner import JobState
from orchestrator.slurm.query import Answer, SlurmJobInfo
from orchestrator.study.files import write_whole


class Memory:
    """The last answer about a study's jobs. Losing it costs a question, nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.asked_at: datetime | None = None
        self.states: dict[str, JobState] = {}
        with contextlib.suppress(
            OSError, ValueError, TypeError, KeyError, AttributeError
        ):
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.states = {
                name: JobState(**each) for name, each in kept["states"].items()
            }
            self.asked_at = datetime.fromisoformat(kept["asked_at"])

    def fresh(self, ids: Iterable[str], poll_s: float) -> dict[str, JobState] | None:
        """The answer for these jobs, where it is too early to ask again."""
        if self.asked_at is None:
            return None
        age_s = (datetime.now(UTC) - self.asked_at).total_seconds()
        if not 0 <= age_s < poll_s or any(each not in self.states for each in ids):
            return None
        return {each: self.states[each] for each in ids}

    def last_known(self, job_id: str, problem: str) -> JobState:
        """What was known before nobody answered; an end is for good."""
        before = self.states.get(job_id)
        if before is None or before.state == "unknown":
            return JobState(state="unknown", reason=problem)
        if before.state == "ended":
            return before
        return replace(before, reason=problem, as_of=self.asked_at)

    def keep(self, states: Mapping[str, JobState]) -> None:
        """Remember this answer; in vain where the folder is read-only or full."""
        kept = {
            "asked_at": datetime.now(UTC).isoformat(),
            "states": {name: _plain(state) for name, state in states.items()},
        }
        with contextlib.suppress(OSError):
            write_whole(self._file, json.dumps(kept) + "\n", durable=False)

    def forget(self) -> None:
        """Ask anew the next time."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def _plain(state: JobState) -> dict[str, object]:
    # What was last known is not kept as if it had been said now.
    return {name: value for name, value in asdict(state).items() if name != "as_of"}


def judge(
    job_id: str, name: str | None, queued: Answer, known: Answer, memory: Memory
) -> JobState:
    """The state of one job.

    Args:
        name: the job's own; another's of the same id is not it. None: not known.
    """
    in_queue = _ours(queued, job_id, name)
    in_books = _ours(known, job_id, name)
    if in_queue is not None and in_queue.is_active:
        return _active(in_queue)
    if queued.jobs is not None:
        return _ended(in_queue or in_books, in_books, known.problem)
    if in_books is not None and not in_books.is_active:
        return _ended(in_books, in_books, "")
    if in_books is not None:
        said = f"{queued.problem}; the accounting says {in_books.state.lower()}"
        return replace(_active(in_books), reason=said)
    return memory.last_known(job_id, queued.problem)


def _ours(answer: Answer, job_id: str, name: str | None) -> SlurmJobInfo | None:
    told = answer.of(job_id)
    return told if told is not None and name in (None, told.name) else None


def _active(told: SlurmJobInfo) -> JobState:
    return JobState(
        state="pending" if phase_of(told.state) == "pending" else "running",
        reason=plain_state(told.state, told.reason),
        slurm_state=told.state,
        elapsed_s=told.elapsed_s,
        limit_s=told.limit_s,
        hosts=told.nodes,
    )


def _ended(
    told: SlurmJobInfo | None, books: SlurmJobInfo | None, problem: str
) -> JobState:
    if told is None:
        why = f"Slurm does not know it any more ({problem})" if problem else ""
        return JobState(state="ended", reason=why or "Slurm does not know it any more")
    if books is not None and books.is_active:
        books = None  # the accounting lags behind the queue
    word = told.state if not told.is_active else ""
    starved = books is not None and books.out_of_memory
    word = "OUT_OF_MEMORY" if starved else word
    code = f", exit code {books.exit_code}" if books and books.exit_code else ""
    return JobState(
        state="ended",
        reason=f"{plain_state(word)} ({word}{code})" if word else "it ended",
        slurm_state=word,
        cause=cause_of(word, books.exit_code if books else "") if word else None,
        elapsed_s=told.elapsed_s,
        limit_s=told.limit_s,
        hosts=told.nodes,
    )
