"""Submit cases so that a crash at any instant neither loses nor doubles one.

Everything here runs under the study's lock. The ledger has the intent before the runner is called,
and the job ids after it answered. Even if a job started and nobody knows of it, no result is
doubled: the next job's spec names the same `first_attempt`, so `jobs.launch` skips what the first
job finished.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.case import Case
from orchestrator.errors import OrchError
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.runner import JobBatch, Runner, Unanswered
from orchestrator.study.case_status import CaseStatus
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, Ledger, LedgerWriter, read_ledger
from orchestrator.submission.job_states import RunnerOf, runner_of


@dataclass(frozen=True)
class Outcome:
    """What became of a submission."""

    accepted: int
    """Cases that a runner accepted."""
    problems: tuple[str, ...]
    """Refusals, and calls without an answer."""


def entry_of(study: Study, status: CaseStatus) -> Entry:
    """Return the ledger's entry for a case: ask for a newer result than it has."""
    attempts = study.attempts(status.case_id)
    opened = attempts[-1].number if attempts else 0
    if status.record is not None:
        return Entry(status.case_id, status.record.attempt + 1, opened)
    if status.asked is not None:
        # The same as before, so that an old job that comes back to life answers this one too.
        return Entry(status.case_id, status.asked.entry.first_attempt, opened)
    return Entry(status.case_id, 1, opened)


def settle_interrupted(study: Study, runner_of: RunnerOf = runner_of) -> Ledger:
    """Find out about each open submission whether its runner has it. Return the ledger.

    A runner that does not answer leaves its submissions open: their cases count as pending.
    """
    ledger = read_ledger(study.ledger_file)
    still_open = [ledger.submissions[key] for key in ledger.open_keys()]
    writer = LedgerWriter(study.ledger_file)
    for submission in still_open:
        try:
            found = runner_of(submission.cluster).find(study, [submission])
        except OrchError:
            continue
        if submission.key in found:
            writer.accept(submission.key, found[submission.key])
        else:
            writer.refuse(
                submission.key, "`orch submit` was interrupted before it was accepted"
            )
    return read_ledger(study.ledger_file) if still_open else ledger


def submit_cases(
    study: Study,
    cases: Sequence[Case],
    entries: Mapping[str, Entry],
    runner: Runner,
    cluster: str,
) -> Outcome:
    """Submit cases batch by batch. A batch that is refused does not stop the next."""
    accepted = 0
    problems = []
    for batch in runner.batches(cases):
        try:
            accepted += _submit_batch(study, batch, entries, runner, cluster)
        except OrchError as error:
            problems.append(str(error))
    return Outcome(accepted, tuple(problems))


def _submit_batch(
    study: Study,
    batch: JobBatch,
    entries: Mapping[str, Entry],
    runner: Runner,
    cluster: str,
) -> int:
    key = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    jobs = [[entries[case.case_id] for case in job] for job in batch.jobs]
    folder = str(study.folder.resolve())
    specs = [
        JobSpec(study=folder, key=key, cluster=cluster, cases=_turns(job, batch))
        for job in jobs
    ]
    ledger = LedgerWriter(study.ledger_file)
    ledger.intend(key, runner.name, cluster, jobs)
    try:
        job_ids = runner.submit(study, batch, specs)
    except Unanswered:
        raise  # the intent stays open: the next submit finds out whether it was accepted
    except OrchError as error:
        ledger.refuse(key, str(error))
        raise
    ledger.accept(key, job_ids)
    return sum(map(len, jobs))


def _turns(entries: Sequence[Entry], batch: JobBatch) -> list[JobCase]:
    return [
        JobCase(
            case_id=entry.case_id,
            first_attempt=entry.first_attempt,
            timeout_s=batch.timeout_s,
        )
        for entry in entries
    ]
