"""The status of each case of a study: records, ledger, heartbeats and the runner, joined.

A case is done when it has a valid record, and only then. A job that runs no more and left none
is `lost`, whatever the scheduler says of it; where nobody answers, nothing is concluded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from orchestrator.case import Case
from orchestrator.errors import OrchError
from orchestrator.record import INTERRUPTED, Heartbeat, Record, RecordError
from orchestrator.runner import JobState
from orchestrator.study.files import Attempt, Study
from orchestrator.study.ledger import Asked, Ledger

Status = Literal[
    "ok", "oom", "invalid", "failed", "pruned", "pending", "running", "lost", "new"
]
DONE: frozenset[Status] = frozenset({"ok", "oom", "invalid", "failed"})
"""It has a valid record, good or bad."""
ACTIVE: frozenset[Status] = frozenset({"pending", "running"})
MISSING: frozenset[Status] = frozenset({"new", "lost"})
"""What `orch submit` submits."""

Ask = Callable[[Iterable[Asked]], dict[str, JobState]]
"""The runners' answer for the jobs of these submissions, by case id; a case that no runner ever
accepted is left out."""


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """The status of one case, and why."""

    case_id: str
    status: Status
    case: Case | None = None
    """None where case.json is damaged."""
    record: Record | None = None
    """The valid record that counts."""
    cause: str | None = None
    evidence: tuple[str, ...] = ()
    """Proof of the cause, or why it waits."""
    remedy: str | None = None
    retryable: bool = False
    attempt: int | None = None
    asked: Asked | None = None
    """Its last submission."""
    elapsed_s: float | None = None
    job: JobState | None = None
    heartbeat: Heartbeat | None = None

    @property
    def job_id(self) -> str | None:
        """The job that has, or had, the case."""
        return self.asked.job_id if self.asked else None


@dataclass(frozen=True)
class _Files:
    """What the files alone say of a case."""

    record: Record | None
    damage: str | None
    last: Attempt | None
    """Latest attempt of the last submission."""
    pruned: str | None


def case_statuses(
    study: Study, ledger: Ledger, ask: Ask, ids: Sequence[str] | None = None
) -> list[CaseStatus]:
    """Return the status of each case, in grid order.

    Args:
        ask: asked once, for the cases that were submitted and have no valid record.
        ids: only these cases; None: every one filed in the study.
    """
    asked = ledger.asked()
    refused = ledger.refusals()
    if ids is None:
        ids = study.case_ids()
    files = {case_id: _files(study, case_id, asked.get(case_id)) for case_id in ids}
    unfinished = [
        asked[case_id]
        for case_id in ids
        if case_id in asked and _may_go_on(files[case_id].record)
    ]
    states = ask(unfinished) if unfinished else {}
    for case_id, state in states.items():
        if state.state == "ended":
            # Look again: the job may have filed its record while the scheduler was asked.
            files[case_id] = _files(study, case_id, asked[case_id])
    return [
        _status_of(
            study, case_id, files[case_id], asked.get(case_id),
            states.get(case_id), refused.get(case_id),
        )
        for case_id in ids
    ]  # fmt: skip


def _may_go_on(record: Record | None) -> bool:
    """Return whether the job may still run the case: it has no record, or was requeued."""
    return record is None or record.cause in INTERRUPTED


def _files(study: Study, case_id: str, asked: Asked | None) -> _Files:
    first = asked.entry.first_attempt if asked else 1
    attempts = [each for each in study.attempts(case_id) if each.number >= first]
    damage = None
    for attempt in reversed(attempts):
        try:
            record = attempt.read_record()
        except RecordError as error:
            damage = damage or str(error)
            continue
        if record is not None:
            return _Files(record, damage, attempts[-1], None)
    last = attempts[-1] if attempts else None
    return _Files(None, damage, last, study.pruned(case_id))


def _status_of(
    study: Study,
    case_id: str,
    files: _Files,
    asked: Asked | None,
    state: JobState | None,
    refusal: str | None,
) -> CaseStatus:
    active = state is not None and state.state != "ended"
    if files.record is not None and not active:
        return _done(case_id, files.record, asked)
    case = _case(study, case_id)
    if active and state is not None and asked is not None:
        return _active(case_id, case, files, asked, state)
    if files.pruned is not None:
        return CaseStatus(
            case_id=case_id, status="pruned", case=case, evidence=(files.pruned,)
        )
    if state is not None or files.last is not None:
        return _lost(case_id, case, files, asked, state)
    why = "`orch submit` was interrupted before it was accepted" if asked else refusal
    return CaseStatus(
        case_id=case_id, status="new", case=case, evidence=(why,) if why else ()
    )


def _case(study: Study, case_id: str) -> Case | None:
    try:
        return study.read_case(case_id)
    except OrchError:
        return None


def _done(case_id: str, record: Record, asked: Asked | None) -> CaseStatus:
    return CaseStatus(
        case_id=case_id,
        status=record.status,
        case=record.case,
        record=record,
        cause=record.cause,
        evidence=tuple(record.evidence),
        remedy=record.remedy,
        retryable=record.retryable,
        attempt=record.attempt,
        asked=asked,
        elapsed_s=(record.ended_at - record.started_at).total_seconds(),
    )


def _active(
    case_id: str, case: Case | None, files: _Files, asked: Asked, state: JobState
) -> CaseStatus:
    mine = files.last if files.last and files.last.number > asked.entry.opened else None
    if mine is not None and mine.record_file.exists():
        mine = None  # interrupted; the job comes back to the case
    runs = mine is not None and state.state != "pending"
    heartbeat = _heartbeat(mine) if runs and mine else None
    started = heartbeat.started_at if heartbeat else None
    return CaseStatus(
        case_id=case_id,
        status="running" if runs else "pending",
        case=case,
        evidence=(_why(runs, state),) if _why(runs, state) else (),
        attempt=mine.number if mine else None,
        asked=asked,
        elapsed_s=_seconds_since(started) if started else _job_elapsed(asked, state),
        job=state,
        heartbeat=heartbeat,
    )


def _job_elapsed(asked: Asked, state: JobState) -> float | None:
    # What a job of several cases took so far says nothing of one of them.
    alone = len(asked.submission.jobs[asked.index]) == 1
    return state.elapsed_s if alone or state.state == "pending" else None


def _why(runs: bool, state: JobState) -> str:
    if state.as_of is not None:
        return (
            f"{state.reason or 'no answer'}; last known at {state.as_of:%Y-%m-%d %H:%M}"
        )
    if state.reason or runs or state.state != "running":
        return state.reason
    return "its job runs; another case of the job comes first"


def _seconds_since(time: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - time).total_seconds())


def _heartbeat(attempt: Attempt) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(attempt.heartbeat_file.read_bytes())
    except (OSError, ValidationError):
        return None  # none yet, or being replaced: the next look will tell


def _lost(
    case_id: str,
    case: Case | None,
    files: _Files,
    asked: Asked | None,
    state: JobState | None,
) -> CaseStatus:
    cancelled = asked is not None and asked.job_id in asked.submission.cancelled
    known = "cancelled" if cancelled else state.cause if state else None
    why = files.damage or _how_it_ended(cancelled, state)
    return CaseStatus(
        case_id=case_id,
        status="lost",
        case=case,
        cause=known or "lost",
        evidence=(why,),
        remedy="`orch submit` with the same grid runs it again",
        retryable=True,
        attempt=files.last.number if files.last else None,
        asked=asked,
        elapsed_s=state.elapsed_s if state else None,
        job=state,
    )


def _how_it_ended(cancelled: bool, state: JobState | None) -> str:
    if cancelled:
        return "`orch cancel` ended its job"
    said = f": {state.reason}" if state and state.reason else ""
    return f"its job ended without a record{said}"
