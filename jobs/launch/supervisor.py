"""The supervisor of a job: runs the job's cases one after the other.

    python -m jobs.launch results/demo/jobs/KEY/job-0.json

It starts torchrun for each case, watches it, ends it, and makes sure that the attempt gets a
record whatever happens to the workers. It knows nothing of models and never imports torch, so it
starts at once and outlives what it starts. Run again, it skips cases that have a record.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from jobs.launch.attempt import run_case
from jobs.launch.evidence import log
from jobs.launch.signals import Signals
from jobs.launch.workers import Limits
from orchestrator.errors import InputError, OrchError
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.record import INTERRUPTED
from orchestrator.study.files import Study, finished
from orchestrator.study.ledger import read_ledger


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job. Return 0 if every case has a record, 128 + signal if it was ended early."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.launch", description="Run the cases of a job."
    )
    parser.add_argument("job", type=Path, help="job spec, written by `orch submit`")
    options = parser.parse_args(arguments)
    try:
        job = read_job_spec(options.job)
        limits = Limits.from_environment(os.environ)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with Signals() as signals:
        return run_job(job, limits, signals)


def read_job_spec(file: Path) -> JobSpec:
    """Read the job spec in `file`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return JobSpec.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            f"{file} must be a job spec that `orch submit` wrote: {error}; submit again"
        ) from error


def run_job(job: JobSpec, limits: Limits, signals: Signals) -> int:
    """Run each case that has no record yet. Return the exit code."""
    study = Study(Path(job.study))
    all_recorded = True
    for turn in job.cases:
        signals.wait(0)
        if signals.received is not None:
            break
        if is_superseded(study, turn, job.key):
            continue
        if not _has_record_after(study, turn, job.cluster, limits, signals):
            all_recorded = False
    if signals.received is not None:
        return 128 + signals.received
    return 0 if all_recorded else 1


def _has_record_after(
    study: Study, turn: JobCase, cluster: str, limits: Limits, signals: Signals
) -> bool:
    try:
        return is_done(study, turn) or run_case(study, turn, cluster, limits, signals)
    except (
        Exception
    ) as error:  # one case's failure, of any kind, must not stop the next
        if not isinstance(error, OrchError | OSError):
            traceback.print_exc()
        log(f"{turn.case_id}: {error}")
        return False


def is_superseded(study: Study, turn: JobCase, key: str) -> bool:
    """Return whether a later submission than this job's has the case.

    sbatch may outlive an interrupted `orch submit`, and a site may requeue an old job behind a
    retry: the case would be measured in two jobs at once.
    """
    try:
        asked = read_ledger(study.ledger_file).asked().get(turn.case_id)
    except OrchError as error:
        log(f"{turn.case_id}: {error}")
        return False  # two results are better than none: attempts are never overwritten
    if asked is None or asked.submission.key == key:
        return False
    log(f"{turn.case_id}: left to the later submission {asked.submission.key}")
    return True


def is_done(study: Study, turn: JobCase) -> bool:
    """Return whether the case has the result that this job was asked for."""
    for record in finished(study, turn.case_id):
        if record.attempt >= turn.first_attempt and record.cause not in INTERRUPTED:
            log(f"{turn.case_id}: has a record, attempt {record.attempt}")
            return True
    return False
