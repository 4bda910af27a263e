"""Reading a study takes time in proportion to its cases. The curve itself:
tests/benchmarks/read_curve.py."""

import time
from pathlib import Path

import pytest

from orchestrator.submission.job_states import study_statuses
from orchestrator.tables.columns import long_row
from tests.orchestrator.made import big_study


def cpu_s(results: Path, number: int) -> float:
    study = big_study(results, number)
    took = []
    for _ in range(3):
        began = time.process_time()
        rows = [long_row(each) for each in study_statuses(study)]
        took.append(time.process_time() - began)
        assert len(rows) == number
    return min(took)


@pytest.mark.alone
def test_four_times_the_cases_take_about_four_times_as_long(tmp_path: Path) -> None:
    assert cpu_s(tmp_path, 1200) < 8 * cpu_s(tmp_path, 300)
