"""Hand cases to a runner so that a crash at any instant neither loses nor doubles one.

Everything here runs under the study's lock. The ledger has the intent before the runner is
asked and the job ids after it answered. Even where a job started and nobody knows of it, no
result is doubled: the next job's pack names the same `first_attempt`, so `jobs.launch` skips
what the first one finished.
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
from orchestrator.submission.job_states import RunnerOf


@dataclass(frozen=True)
class Outcome:
    """What became of a handover."""

    accepted: int
    """Cases that a runner took."""
    problems: tuple[str, ...]
    """What it refused or did not answer."""


def entry_of(study: Study, standing: CaseStatus) -> Entry:
    """What to ask for the case: an answer that is newer than the one there is."""
    attempts = study.attempts(standing.case_id)
    opened = attempts[-1].number if attempts else 0
    if standing.record is not None:
        return Entry(standing.case_id, standing.record.attempt + 1, opened)
    if standing.asked is not None:
        # The same as before: an old job that comes back to life then answers this one too.
        return Entry(standing.case_id, standing.asked.entry.first_attempt, opened)
    return Entry(standing.case_id, 1, opened)


def reconcile(study: Study, runner_of: RunnerOf) -> Ledger:
    """Note of every announced submission whether its runner has it; the ledger after that.

    A runner that does not answer leaves its submissions open: their cases count as pending.
    """
    ledger = read_ledger(study.ledger_file)
    writer = LedgerWriter(study.ledger_file)
    for key in ledger.open_keys():
        submission = ledger.submissions[key]
        try:
            found = runner_of(submission.cluster).find(study, [key])
        except OrchError:
            continue
        if key in found:
            writer.accept(key, found[key])
        else:
            writer.refuse(key, "`orch submit` was interrupted before it was accepted")
    return read_ledger(study.ledger_file)


def hand_over(
    study: Study,
    cases: Sequence[Case],
    entries: Mapping[str, Entry],
    runner: Runner,
    cluster: str,
) -> Outcome:
    """Submit the cases, batch by batch; a batch that is refused does not stop the next."""
    accepted = 0
    problems = []
    for batch in runner.batches(cases):
        try:
            accepted += _hand_over_batch(study, batch, entries, runner, cluster)
        except OrchError as error:
            problems.append(str(error))
    return Outcome(accepted, tuple(problems))


def _hand_over_batch(
    study: Study,
    batch: JobBatch,
    entries: Mapping[str, Entry],
    runner: Runner,
    cluster: str,
) -> int:
    key = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    packs = [_pack(study, key, job, entries, runner, cluster) for job in batch.jobs]
    jobs = [[entries[case.case_id] for case in job] for job in batch.jobs]
    ledger = LedgerWriter(study.ledger_file)
    ledger.intend(key, runner.name, cluster, jobs)
    try:
        job_ids = runner.submit(study, packs)
    except Unanswered:
        raise
    except OrchError as error:
        ledger.refuse(key, str(error))
        raise
    ledger.accept(key, job_ids)
    return sum(len(job) for job in jobs)


def _pack(
    study: Study,
    key: str,
    cases: Sequence[Case],
    entries: Mapping[str, Entry],
    runner: Runner,
    cluster: str,
) -> JobSpec:
    packed = [
        JobCase(
            case_id=case.case_id,
            first_attempt=entries[case.case_id].first_attempt,
            timeout_s=runner.timeout_s(case),
        )
        for case in cases
    ]
    folder = str(study.folder.resolve())
    return JobSpec(study=folder, key=key, cluster=cluster, cases=packed)
