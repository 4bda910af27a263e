"""What an allocation runs: the cases of a pack, one after the other.

    python -m jobs.launch results/demo/jobs/KEY/pack-0.json

Starts torchrun for each case, watches it, ends it, and sees to it that the attempt gets a
record whatever becomes of the workers. Knows nothing of models; never imports torch, so that it
starts at once and outlives what it starts. Run again, it skips what has a record.
"""

import argparse
import os
import shutil
import sys
import tempfile
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from jobs.checkout import CHECKOUT
from jobs.environment import describe
from jobs.filing import deliver, kept, print_record
from jobs.launch import post_mortem
from jobs.launch.heartbeat import write_heartbeat
from jobs.launch.job_log import JobLog
from jobs.launch.oom_kills import oom_kills
from jobs.launch.signals import Signals
from jobs.launch.torchrun import Nodes, nodes_of, torchrun, worker_environment
from jobs.launch.workers import Workers, run_workers
from jobs.progress import Board
from orchestrator.case import Case
from orchestrator.causes.finding import Finding, read_ends
from orchestrator.errors import InputError, OrchError
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.record import INTERRUPTED, Record, RecordError
from orchestrator.study.files import Attempt, Study, finished


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds. Each is an option of the command."""

    stall_s: float = 900
    """For any sign of progress."""
    collective_s: float = 600
    """For the other ranks, in one exchange."""
    grace_s: float = 5
    """For workers to end when asked."""
    disk_s: float = 120
    """For a full or read-only disk."""
    beat_s: float = 5
    """Between two heartbeats."""


@dataclass(frozen=True, kw_only=True)
class RunningAttempt:
    """One attempt that is under way."""

    case: Case
    attempt: Attempt
    timeout_s: int | None
    nodes: Nodes
    scratch: Path
    """Logs of ranks, the board, a record that could not be filed; all nodes see it."""
    started_at: datetime
    patience: Patience


def main(arguments: Sequence[str] | None = None) -> int:
    """Work through the pack; 0 when every case has a record, 128 + signal when ended early."""
    options = _parser().parse_args(arguments)
    try:
        pack = read_job_spec(options.pack)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    patience = Patience(
        **{each.name: getattr(options, each.name) for each in fields(Patience)}
    )
    with Signals() as signals:
        return work_through(pack, patience, signals)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.launch", description="Work through the cases of a pack."
    )
    add = parser.add_argument
    add("pack", type=Path, help="pack file, written by `orch submit`")
    for each in fields(Patience):
        name = "--" + each.name.replace("_", "-")
        add(name, type=float, default=each.default, help="default: %(default)s")
    return parser


def read_job_spec(file: Path) -> JobSpec:
    """The pack in a file.

    Raises:
        InputError: there is none.
    """
    try:
        return JobSpec.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            f"{file} must be a pack that `orch submit` wrote: {error}"
        ) from error


def work_through(pack: JobSpec, patience: Patience, signals: Signals) -> int:
    """Run each case that has no record yet; the exit code."""
    study = Study(Path(pack.study))
    all_recorded = True
    for packed in pack.cases:
        signals.wait(0)
        if signals.received is not None:
            break
        try:
            recorded = is_done(study, packed) or run_case(
                study, packed, patience, signals
            )
        except Exception as error:  # whatever it is, the next case has its turn
            if not isinstance(error, OrchError | OSError):
                traceback.print_exc()
            _say(f"{packed.case_id}: {error}")
            recorded = False
        all_recorded = all_recorded and recorded
    if signals.received is not None:
        return 128 + signals.received
    return 0 if all_recorded else 1


def is_done(study: Study, packed: JobCase) -> bool:
    """Whether this pack's turn at the case is over."""
    for record in finished(study, packed.case_id):
        if record.attempt >= packed.first_attempt and record.cause not in INTERRUPTED:
            _say(f"{packed.case_id}: has a record, attempt {record.attempt}")
            return True
    return False


def run_case(
    study: Study, packed: JobCase, patience: Patience, signals: Signals
) -> bool:
    """Make one attempt of the case; whether it has a record now."""
    case = study.read_case(packed.case_id)
    attempt = study.open_attempt(packed.case_id)
    _say(f"{packed.case_id}: attempt {attempt.number} starts")
    nodes = nodes_of(os.environ, case.gpus, attempt.number)
    run = RunningAttempt(
        case=case,
        attempt=attempt,
        nodes=nodes,
        timeout_s=packed.timeout_s,
        scratch=_scratch(nodes, attempt),
        started_at=datetime.now(UTC),
        patience=patience,
    )
    try:
        finding = _supervise(run, study.case_file(packed.case_id), signals)
        record = _record_of_workers(run) or _record_of_death(run, finding)
        filed = deliver(record, attempt, patience.disk_s, signals)
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    if not filed:
        print_record(record)
    _say(_outcome(record))
    return filed


def _scratch(nodes: Nodes, attempt: Attempt) -> Path:
    # One node's own disk is not another's; a full results disk shall not stop a single one.
    shared = nodes.count > 1
    folder = attempt.folder if shared else Path(tempfile.gettempdir())
    return folder / f".orch-{uuid.uuid4().hex[:12]}"


def _supervise(run: RunningAttempt, case_file: Path, signals: Signals) -> Finding:
    """Let the workers do their work; why they left no record, if they left none."""
    job_log, kills_before = JobLog(), oom_kills()
    try:
        run.scratch.mkdir(mode=0o700)
        board = Board.create(run.scratch, run.case.gpus, run.nodes.count == 1)
        ending = run_workers(_workers(run, case_file, board), signals)
    except OSError as error:
        return post_mortem.not_started(error)
    told = post_mortem.Symptoms(
        workers=read_ends(run.attempt.log_file),
        slurm=job_log.since_start(),
        received=signals.received,
        oom_kills=oom_kills() - kills_before,
    )
    return post_mortem.explain(ending, board, told)


def _workers(run: RunningAttempt, case_file: Path, board: Board) -> Workers:
    program = [
        "jobs.bench",
        str(case_file),
        f"--attempt-dir={run.attempt.folder}",
        f"--scratch={run.scratch}",
        f"--collective-s={run.patience.collective_s}",
        f"--started-at={run.started_at.isoformat()}",
    ]
    nodes = run.nodes
    return Workers(
        command=torchrun(nodes, run.scratch / "logs", program),
        environment=worker_environment(os.environ, nodes.ranks_per_node),
        folder=CHECKOUT,
        log=run.attempt.log_file,
        timeout_s=run.timeout_s,
        stall_s=run.patience.stall_s,
        grace_s=run.patience.grace_s,
        beat_s=run.patience.beat_s,
        progress=board.ticks,
        on_beat=lambda: write_heartbeat(run.attempt, run.case, board, run.started_at),
    )


def _record_of_workers(run: RunningAttempt) -> Record | None:
    """What rank 0 filed, or kept because it could not file it."""
    try:
        filed = run.attempt.read_record()
    except RecordError as error:
        _say(str(error))
        filed = None
    return filed or kept(run.scratch, run.attempt)


def _record_of_death(run: RunningAttempt, finding: Finding) -> Record:
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
        environment=describe(),
    )


def _outcome(record: Record) -> str:
    elapsed_s = (record.ended_at - record.started_at).total_seconds()
    why = f" ({record.cause}): {record.evidence[0]}" if record.evidence else ""
    return f"{record.case.case_id}: {record.status} after {elapsed_s:.1f} s{why}"


def _say(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)
