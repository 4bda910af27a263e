"""Stands in for jobs.launch where the orchestrator is tested: it keeps to the same contract
(attempts, records, specs, first_attempt) and takes milliseconds, because it runs no model.

    python -m jobs.launch JOB.json, in a copy of the checkout that `sandbox` makes

QUICK_CASE_S: seconds that a case takes. Each start of a case is a line in runs.log of the study.
"""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.case import Case
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.record import RankFacts, Record, Sample
from orchestrator.study.files import Study, finished


def work(job_spec_file: Path) -> None:
    """Give each case of the spec a record, unless it has one."""
    spec = JobSpec.model_validate_json(job_spec_file.read_text())
    study = Study(Path(spec.study))
    for turn in spec.cases:
        if not _is_done(study, turn):
            _run(study, study.read_case(turn.case_id))


def _is_done(study: Study, turn: JobCase) -> bool:
    records = finished(study, turn.case_id)
    return any(record.attempt >= turn.first_attempt for record in records)


def _run(study: Study, case: Case) -> None:
    attempt = study.open_attempt(case.case_id)
    began = datetime.now(UTC)
    print(f"job of {case.case_id}", file=sys.stderr, flush=True)
    attempt.log_file.write_text(f"workers of {case.case_id}\n")
    _log(study, f"{case.case_id} {os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}")
    time.sleep(float(os.environ.get("QUICK_CASE_S", "0")))
    rank = RankFacts(
        rank=0, host="here", device="none", load_s=0.0, peak_memory_bytes=1,
        peak_reserved_bytes=1, weight_bytes=1,
    )  # fmt: skip
    record = Record(
        case=case, attempt=attempt.number, status="ok", started_at=began,
        ended_at=datetime.now(UTC), samples=[Sample(token_s=[1.0, 2.0], skew_s=0.0)],
        ranks=[rank], prompt_lengths=[1], output_tokens=4, ids_digest="0" * 64,
    )  # fmt: skip
    attempt.write_record(record)
    _log(study, f"done {case.case_id}")


def _log(study: Study, line: str) -> None:
    with (study.folder / "runs.log").open("a") as stream:
        stream.write(f"{time.time()} {line}\n")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
