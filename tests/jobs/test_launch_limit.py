"""A record that is filed counts, whatever ends the workers afterwards.

The launch and torchrun are real; the ranks run a `jobs.bench` that files its record and then
hangs, in a copy of the checkout.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from kernels.shapes import ModelShape
from kernels.strategies import Parallel, Single
from orchestrator.case import Case
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.study.files import Study

CHECKOUT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=64
)
CASE = Case(
    model="toy",
    random=SHAPE,
    label="single",
    strategy=Parallel(single=Single()),
    gpus=1,
)

HANGS_AFTER_ITS_RECORD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.case import Case
from orchestrator.record import RankFacts, Record, Sample
from orchestrator.study.files import attempt_in

case_file, *options = sys.argv[1:]
attempt = attempt_in(Path(dict(each.split("=", 1) for each in options)["--attempt-dir"]))
now = datetime.now(UTC)
rank = RankFacts(
    rank=0, host="here", device="cpu", load_s=1, peak_memory_bytes=1,
    peak_reserved_bytes=1, weight_bytes=1,
)
attempt.write_record(
    Record(
        case=Case.model_validate_json(Path(case_file).read_text()), attempt=attempt.number,
        status="ok", started_at=now, ended_at=now, output_tokens=1, ids_digest="0" * 64,
        samples=[Sample(token_s=[1.0], skew_s=0)], ranks=[rank],
    )
)
time.sleep(600)
"""


def test_a_record_that_was_filed_before_the_limit_struck_stays_the_result(
    tmp_path: Path,
) -> None:
    for package in ("orchestrator", "kernels", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=ignored)
    (tmp_path / "jobs/bench.py").write_text(HANGS_AFTER_ITS_RECORD)
    study = Study(tmp_path / "study")
    study.create()
    study.file_case(CASE)
    turn = JobCase(case_id=CASE.case_id, first_attempt=1, timeout_s=12)
    file = study.jobs_dir / "job.json"
    job = JobSpec(study=str(study.folder), key="k", cases=[turn])
    file.write_text(job.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "jobs.launch", str(file)], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": ""}, capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (attempt,) = study.attempts(CASE.case_id)
    record = attempt.read_record()
    assert record is not None
    assert record.status == "ok"
    assert "ok after" in done.stdout
