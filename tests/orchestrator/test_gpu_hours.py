"""GPU-hours used and to come."""

from typing import Any

from orchestrator.commands.console import note, took
from orchestrator.runner import JobState
from orchestrator.study.case_status import CaseStatus
from orchestrator.study.ledger import Asked, Entry, Submission
from orchestrator.submission.gpu_hours import GpuHours, gpu_hours
from tests.orchestrator.made import a_case


def found_as(
    status: str, index: int = 0, runner: str = "slurm", **more: Any
) -> CaseStatus:
    entry = Entry("case", 1)
    jobs = ((entry,), (entry,))
    submission = Submission("k", runner, "sol", "here", "now", jobs, ("7_0", "7_1"))
    return CaseStatus(
        case_id="case",
        status=status,  # type: ignore[arg-type]
        case=a_case(gpus=2),
        asked=Asked(submission, index, entry),
        **more,
    )


def test_hours_count_each_gpu_of_what_ran_and_of_what_may_still_run() -> None:
    waits = JobState(state="pending", limit_s=1800, elapsed_s=0)
    runs = JobState(state="running", limit_s=3600, elapsed_s=1800)
    hours = gpu_hours(
        [
            found_as("ok", elapsed_s=3600.0),
            found_as("running", elapsed_s=1800.0, job=runs),
            found_as("pending", 1, job=waits),
        ]
    )
    assert hours is not None
    assert (hours.used, hours.to_come) == (3.0, 2.0)
    assert str(hours) == "GPU-hours: 3 used, at most 2 to come"


def test_many_hours_are_printed_as_a_plain_number() -> None:
    assert str(GpuHours(123.4, 9876.5)) == ("GPU-hours: 123 used, at most 9876 to come")
    assert str(GpuHours(0.0123, 0)) == "GPU-hours: 0.012 used"


def test_cases_of_one_pack_share_their_jobs_time() -> None:
    runs = JobState(state="running", limit_s=3600, elapsed_s=0)
    hours = gpu_hours([found_as("running", job=runs), found_as("pending", job=runs)])
    assert hours is not None
    assert hours.to_come == 2.0


def test_a_study_of_this_machine_alone_has_no_gpu_hours() -> None:
    assert gpu_hours([found_as("ok", runner="local", elapsed_s=3.0)]) is None


def test_what_runs_is_shown_with_its_limit() -> None:
    runs = JobState(state="running", limit_s=3600, elapsed_s=60)
    each = found_as("running", elapsed_s=60.0, job=runs)
    assert took(each) == "1 min 00 s of 1 h 00 min"
    assert took(found_as("ok", elapsed_s=5.0)) == "5 s"
    assert note(each) == ""
