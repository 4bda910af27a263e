"""One attempt of one case: start its workers, watch them, and make sure a record is filed."""

import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs.environment import describe
from jobs.filing import deliver, kept_record, print_record
from jobs.launch import post_mortem
from jobs.launch.evidence import JobLog, OomKills, log
from jobs.launch.signals import Signals
from jobs.launch.torchrun import Nodes, nodes_of, torchrun, worker_environment
from jobs.launch.workers import Limits, Workers, run_workers
from jobs.progress import ProgressBoard, write_heartbeat
from orchestrator.case import Case
from orchestrator.causes.finding import Finding, read_ends
from orchestrator.checkout import ROOT
from orchestrator.job_spec import JobCase
from orchestrator.record import Record, RecordError
from orchestrator.study.files import Attempt, Study


@dataclass(frozen=True, kw_only=True)
class RunningAttempt:
    """An attempt in progress."""

    case: Case
    case_file: Path
    attempt: Attempt
    timeout_s: int | None
    nodes: Nodes
    scratch: Path
    """Logs of ranks, the progress board, a record that could not be filed; seen by all nodes."""
    started_at: datetime
    cluster: str
    limits: Limits


def run_case(
    study: Study, turn: JobCase, cluster: str, limits: Limits, signals: Signals
) -> bool:
    """Make one attempt of the case. Return whether it has a record now."""
    run = _open_attempt(study, turn, cluster, limits)
    log(f"{turn.case_id}: attempt {run.attempt.number} starts")
    try:
        record = _run_workers(run, signals)
        filed = deliver(record, run.attempt, limits.disk_s, signals.sleep)
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    if not filed:
        print_record(record)
    log(_outcome(record))
    return filed


def _open_attempt(
    study: Study, turn: JobCase, cluster: str, limits: Limits
) -> RunningAttempt:
    case = study.read_case(turn.case_id)
    attempt = study.open_attempt(turn.case_id)
    nodes = nodes_of(os.environ, case.gpus, attempt.number)
    return RunningAttempt(
        case=case,
        case_file=study.case_file(turn.case_id),
        attempt=attempt,
        timeout_s=turn.timeout_s,
        nodes=nodes,
        scratch=_scratch_folder(nodes, attempt),
        started_at=datetime.now(UTC),
        cluster=cluster,
        limits=limits,
    )


def _scratch_folder(nodes: Nodes, attempt: Attempt) -> Path:
    # Several nodes need a folder that all of them see. On one node the local disk is better:
    # a full results disk must not stop the attempt.
    shared = nodes.count > 1
    folder = attempt.folder if shared else Path(tempfile.gettempdir())
    return folder / f".orch-{uuid.uuid4().hex[:12]}"


def _run_workers(run: RunningAttempt, signals: Signals) -> Record:
    """Run the workers to their end. Return their record, or one that says why there is none."""
    job_log, oom_kills = JobLog(), OomKills()
    try:
        run.scratch.mkdir(mode=0o700)
        one_node = run.nodes.count == 1
        board = ProgressBoard.create(run.scratch, run.case.gpus, one_node)
        ending = run_workers(_workers(run, board), signals)
    except OSError as error:
        return _record_of_failure(run, post_mortem.not_started(error))
    # A record that the workers filed counts, even if a limit ended them afterwards.
    if record := _record_of_workers(run):
        return record
    symptoms = post_mortem.Symptoms(
        worker_log=read_ends(run.attempt.log_file),
        job_log=job_log.since_start(),
        received=signals.received,
        oom_kills=oom_kills.since_start(),
        stall_s=run.limits.stall_s,
    )
    finding = post_mortem.explain(ending, board.rank_progress(), symptoms)
    return _record_of_failure(run, finding)


def _workers(run: RunningAttempt, board: ProgressBoard) -> Workers:
    program = [
        "jobs.bench",
        str(run.case_file),
        f"--attempt-dir={run.attempt.folder}",
        f"--scratch={run.scratch}",
        f"--collective-s={run.limits.collective_s}",
        f"--started-at={run.started_at.isoformat()}",
        f"--cluster={run.cluster}",
    ]
    return Workers(
        command=torchrun(run.nodes, run.scratch / "logs", program),
        environment=worker_environment(os.environ, run.nodes.ranks_per_node),
        folder=ROOT,
        log=run.attempt.log_file,
        timeout_s=run.timeout_s,
        limits=run.limits,
        progress=board.updates,
        on_heartbeat=lambda: write_heartbeat(
            run.attempt, run.case, board.rank_progress(), run.started_at
        ),
    )


def _record_of_workers(run: RunningAttempt) -> Record | None:
    """Return the record that rank 0 filed, or kept because it could not file it."""
    try:
        filed = run.attempt.read_record()
    except RecordError as error:
        log(str(error))
        filed = None
    return filed or kept_record(run.scratch, run.attempt)


def _record_of_failure(run: RunningAttempt, finding: Finding) -> Record:
    return Record(
        case=run.case,
        attempt=run.attempt.number,
        status=finding.status,
        cause=finding.cause,
        evidence=list(finding.evidence),
        remedy=finding.remedy,
        retryable=finding.retryable,
        started_at=run.started_at,
        ended_at=datetime.now(UTC),
        shape=run.case.random,
        cluster=run.cluster,
        environment=describe(),
    )


def _outcome(record: Record) -> str:
    elapsed_s = (record.ended_at - record.started_at).total_seconds()
    why = f" ({record.cause}): {record.evidence[0]}" if record.evidence else ""
    return f"{record.case.case_id}: {record.status} after {elapsed_s:.1f} s{why}"
