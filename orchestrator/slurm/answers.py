"""From what squeue and sacct say to the state of a job; and the last answer, kept in a file.

A job is active, ended, or unknown. If squeue answered, a job that it does not have has ended; if it
did not, only an end that the accounting reports counts.
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


class LastAnswer:
    """The last answer about a study's jobs. Losing it only costs a question."""

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
        """Return the answer for these jobs if it is too early to ask again, else None."""
        if self.asked_at is None:
            return None
        age_s = (datetime.now(UTC) - self.asked_at).total_seconds()
        if not 0 <= age_s < poll_s or any(each not in self.states for each in ids):
            return None
        return {each: self.states[each] for each in ids}

    def last_known(self, job_id: str, problem: str) -> JobState:
        """Return the last known state, for when nobody answers. An end is final."""
        before = self.states.get(job_id)
        if before is None or before.state == "unknown":
            return JobState(state="unknown", reason=problem)
        if before.state == "ended":
            return before
        return replace(before, reason=problem, as_of=self.asked_at)

    def keep(self, states: Mapping[str, JobState]) -> None:
        """Keep this answer, unless the folder is read-only or full."""
        kept = {
            "asked_at": datetime.now(UTC).isoformat(),
            "states": {name: _plain(state) for name, state in states.items()},
        }
        with contextlib.suppress(OSError):
            write_whole(self._file, json.dumps(kept) + "\n", durable=False)

    def forget(self) -> None:
        """Forget the answer, so that Slurm is asked the next time."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def _plain(state: JobState) -> dict[str, object]:
    # An answer that was already old must not be kept as a new one.
    return {name: value for name, value in asdict(state).items() if name != "as_of"}


def job_state(
    job_id: str, name: str | None, queued: Answer, known: Answer, last: LastAnswer
) -> JobState:
    """Return the state of one job.

    Args:
        name: the job's; a job of the same id and another name is not ours. None: not known.
    """
    in_queue = _job_of(queued, job_id, name)
    accounted = _job_of(known, job_id, name)
    if in_queue is not None and in_queue.is_active:
        return _active(in_queue)
    if queued.jobs is not None:
        return _ended(in_queue or accounted, accounted, known.problem)
    if accounted is not None and not accounted.is_active:
        return _ended(accounted, accounted, "")
    if accounted is not None:
        said = f"{queued.problem}; the accounting says {accounted.state.lower()}"
        return replace(_active(accounted), reason=said)
    return last.last_known(job_id, queued.problem)


def _job_of(answer: Answer, job_id: str, name: str | None) -> SlurmJobInfo | None:
    job = answer.of(job_id)
    return job if job is not None and name in (None, job.name) else None


def _active(job: SlurmJobInfo) -> JobState:
    return JobState(
        state="pending" if phase_of(job.state) == "pending" else "running",
        reason=plain_state(job.state, job.reason),
        slurm_state=job.state,
        elapsed_s=job.elapsed_s,
        limit_s=job.limit_s,
        hosts=job.nodes,
    )


def _ended(
    job: SlurmJobInfo | None, accounted: SlurmJobInfo | None, problem: str
) -> JobState:
    if job is None:
        why = f"Slurm does not know it any more ({problem})" if problem else ""
        return JobState(state="ended", reason=why or "Slurm does not know it any more")
    if accounted is not None and accounted.is_active:
        accounted = None  # the accounting lags behind the queue
    word = job.state if not job.is_active else ""
    starved = accounted is not None and accounted.out_of_memory
    word = "OUT_OF_MEMORY" if starved else word
    code = (
        f", exit code {accounted.exit_code}"
        if accounted and accounted.exit_code
        else ""
    )
    return JobState(
        state="ended",
        reason=f"{plain_state(word)} ({word}{code})" if word else "it ended",
        slurm_state=word,
        cause=cause_of(word, accounted.exit_code if accounted else "")
        if word
        else None,
        elapsed_s=job.elapsed_s,
        limit_s=job.limit_s,
        hosts=job.nodes,
    )
