"""Where a case stands, from its files, the ledger and what the runner answers."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import OrchError
from orchestrator.record import Heartbeat
from orchestrator.runner import JobState, Runner, Unanswered
from orchestrator.study.case_status import CaseStatus, case_statuses
from orchestrator.study.files import Study
from orchestrator.study.ledger import (
    Asked,
    Entry,
    LedgerWriter,
    Submission,
    read_ledger,
)
from orchestrator.study.lock import locked
from orchestrator.submission.job_states import asker
from orchestrator.submission.submit import entry_of, settle_interrupted
from tests.orchestrator.made import a_case, a_failure, a_record, a_study, file

CASE = a_case()
ID = CASE.case_id


class Scheduler:
    """A runner that answers what it is told to, and counts the questions."""

    name = "told"

    def __init__(
        self, *, knows: dict[str, list[str]] | None = None, **states: JobState
    ) -> None:
        self.known = knows
        self.told = states
        self.questions = 0

    def find(
        self, study: Study, submissions: Sequence[Submission]
    ) -> dict[str, list[str]]:
        if self.known is None:
            raise Unanswered("the scheduler does not answer")
        keys = [each.key for each in submissions]
        return {key: self.known[key] for key in keys if key in self.known}

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        self.questions += 1
        return {job_id: self.told[job_id] for job_id in jobs}

    def as_runner(self) -> Runner:
        return self  # type: ignore[return-value]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return a_study(tmp_path, [CASE])


def submitted(
    study: Study, first: int = 1, opened: int = 0, job_id: str | None = "j"
) -> None:
    ledger = LedgerWriter(study.ledger_file)
    ledger.intend("key", "told", "somewhere", [[Entry(ID, first, opened)]])
    if job_id:
        ledger.accept("key", [job_id])


def stands(study: Study, scheduler: Scheduler | None = None) -> CaseStatus:
    runner = (scheduler or Scheduler(knows={})).as_runner()
    ask = asker(study, lambda cluster: runner)
    (found,) = case_statuses(study, read_ledger(study.ledger_file), ask)
    return found


def job(state: str, **more: object) -> Scheduler:
    return Scheduler(knows={}, j=JobState(state=state, **more))  # type: ignore[arg-type]


def test_a_case_nobody_submitted_is_new(study: Study) -> None:
    assert stands(study).status == "new"


def test_a_case_that_cannot_fit_is_pruned_with_the_reason(study: Study) -> None:
    study.prune(ID, "needs 9 GiB, has 1")
    found = stands(study)
    assert (found.status, found.evidence) == ("pruned", ("needs 9 GiB, has 1",))


def test_a_valid_record_is_the_truth_whatever_the_scheduler_says(study: Study) -> None:
    submitted(study)
    file(study, a_record(CASE))
    scheduler = job("running")
    assert stands(study, scheduler).status == "ok"
    assert scheduler.questions == 0, "nothing was left to ask"


def test_a_failure_comes_with_cause_evidence_and_remedy(study: Study) -> None:
    submitted(study)
    file(study, a_failure(CASE))
    found = stands(study)
    assert (found.status, found.cause) == ("failed", "timeout")
    assert found.evidence == ("still running after 60 s",)
    assert found.remedy == "give it more time"
    assert found.elapsed_s == 60


def test_a_waiting_job_is_pending_with_its_reason(study: Study) -> None:
    submitted(study)
    found = stands(study, job("pending", reason="waits for a free GPU"))
    assert (found.status, found.evidence) == ("pending", ("waits for a free GPU",))
    assert found.job_id == "j"


def test_a_case_runs_when_its_job_runs_and_opened_an_attempt(study: Study) -> None:
    submitted(study)
    assert stands(study, job("running")).status == "pending"
    attempt = study.open_attempt(ID)
    started = datetime.now(UTC) - timedelta(seconds=30)
    beat = Heartbeat(
        at=datetime.now(UTC), phase="measuring", done=3, total=9, started_at=started
    )
    attempt.heartbeat_file.write_text(beat.model_dump_json())
    found = stands(study, job("running"))
    assert (found.status, found.attempt, found.heartbeat) == ("running", 1, beat)
    assert found.elapsed_s == pytest.approx(30, abs=10)


def test_a_torn_heartbeat_is_no_news(study: Study) -> None:
    submitted(study)
    study.open_attempt(ID).heartbeat_file.write_text('{"at": ')
    found = stands(study, job("running"))
    assert (found.status, found.heartbeat) == ("running", None)


def test_an_attempt_from_before_the_submission_does_not_run(study: Study) -> None:
    study.open_attempt(ID)
    submitted(study, opened=1)
    assert stands(study, job("running")).status == "pending"


def test_a_job_that_ended_without_a_record_is_lost(study: Study) -> None:
    submitted(study)
    found = stands(study, job("ended", reason="Slurm says COMPLETED"))
    assert (found.status, found.cause, found.retryable) == ("lost", "lost", True)
    assert "Slurm says COMPLETED" in found.evidence[0]
    assert "orch submit" in (found.remedy or "")


def test_what_the_scheduler_proves_of_a_lost_job_is_its_cause(study: Study) -> None:
    submitted(study)
    assert stands(study, job("ended", cause="node_fail")).cause == "node_fail"


def test_a_record_that_is_filed_while_slurm_is_asked_counts(study: Study) -> None:
    submitted(study)

    def slow_squeue(asked: Iterable[Asked]) -> dict[str, JobState]:
        study.open_attempt(ID).write_record(a_record(CASE))
        return {each.entry.case_id: JobState(state="ended") for each in asked}

    (found,) = case_statuses(study, read_ledger(study.ledger_file), slow_squeue)
    assert found.status == "ok"


def test_what_orch_cancel_ended_is_said_to_be_cancelled(study: Study) -> None:
    submitted(study)
    LedgerWriter(study.ledger_file).cancel("key", ["j"])
    found = stands(study, job("ended", reason="some last words"))
    assert (found.status, found.cause) == ("lost", "cancelled")
    assert found.evidence == ("`orch cancel` ended its job",)
    assert found.retryable


def test_a_damaged_record_is_lost_and_never_a_success(study: Study) -> None:
    submitted(study)
    text = a_record(CASE).model_dump_json()
    study.open_attempt(ID).record_file.write_text(text[: len(text) // 2])
    found = stands(study, job("ended"))
    assert found.status == "lost"
    assert "is not a valid record" in found.evidence[0]


def test_where_nobody_answers_nothing_is_lost(study: Study) -> None:
    submitted(study)
    found = stands(study, job("unknown", reason="squeue does not answer"))
    assert found.status == "pending"
    assert "squeue does not answer" in found.evidence[0]
    study.open_attempt(ID)
    assert stands(study, job("unknown")).status == "running"


def test_a_last_known_state_is_said_to_be_old(study: Study) -> None:
    submitted(study)
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    found = stands(study, job("pending", reason="slurmctld is down", as_of=at))
    assert found.evidence == ("slurmctld is down; last known at 2026-01-02 03:04",)


def test_a_profile_that_is_gone_concludes_nothing(study: Study) -> None:
    submitted(study)

    def no_runner(cluster: str) -> Runner:
        raise OrchError(f"no cluster {cluster!r}")

    (found,) = case_statuses(
        study, read_ledger(study.ledger_file), asker(study, no_runner)
    )
    assert found.status == "pending"
    assert "no cluster 'somewhere'" in found.evidence[0]


def test_a_retry_under_way_outweighs_the_old_failure(study: Study) -> None:
    file(study, a_failure(CASE))
    submitted(study, first=2, opened=1)
    assert stands(study, job("pending")).status == "pending"
    assert stands(study, job("ended")).status == "lost"
    file(study, a_record(CASE, attempt=2))
    assert stands(study, job("ended")).status == "ok"


def test_a_requeued_job_comes_back_to_the_case(study: Study) -> None:
    submitted(study)
    file(study, a_failure(CASE, cause="preempted"))
    assert stands(study, job("pending")).status == "pending"
    assert stands(study, job("running")).status == "pending"
    study.open_attempt(ID)
    assert stands(study, job("running")).status == "running"
    assert stands(study, job("ended")).status == "failed"


def test_an_interrupted_submit_is_told_from_one_at_work(study: Study) -> None:
    submitted(study, job_id=None)
    found = stands(study, Scheduler(knows={}))
    assert found.status == "new"
    assert "interrupted" in found.evidence[0]
    with locked(study.lock_file):
        found = stands(study, Scheduler(knows={}))
        assert found.status == "pending"
        assert "being submitted by process" in found.evidence[0]


def test_an_interrupted_submit_that_was_accepted_is_found(study: Study) -> None:
    submitted(study, job_id=None)
    scheduler = Scheduler(knows={"key": ["j"]}, j=JobState(state="running"))
    assert stands(study, scheduler).status == "pending"
    settle_interrupted(study, lambda cluster: scheduler.as_runner())
    assert read_ledger(study.ledger_file).submissions["key"].job_ids == ("j",)


def test_an_unanswered_question_leaves_the_submission_open(study: Study) -> None:
    submitted(study, job_id=None)
    silent = Scheduler(knows=None)
    assert stands(study, silent).status == "pending"
    settle_interrupted(study, lambda cluster: silent.as_runner())
    assert read_ledger(study.ledger_file).open_keys() == ["key"]


def test_a_submission_nobody_has_is_refused_and_its_cases_are_new(study: Study) -> None:
    submitted(study, job_id=None)
    settle_interrupted(study, lambda cluster: Scheduler(knows={}).as_runner())
    found = stands(study)
    assert (found.status, read_ledger(study.ledger_file).open_keys()) == ("new", [])
    assert "interrupted" in found.evidence[0]


def test_the_scheduler_s_refusal_is_shown(study: Study) -> None:
    submitted(study, job_id=None)
    LedgerWriter(study.ledger_file).refuse("key", "invalid partition")
    assert stands(study).evidence == ("invalid partition",)


def test_a_damaged_case_file_does_not_hide_the_case(study: Study) -> None:
    study.case_file(ID).write_text("")
    found = stands(study)
    assert (found.case_id, found.status, found.case) == (ID, "new", None)


def test_one_question_for_any_number_of_jobs(tmp_path: Path) -> None:
    cases = [a_case(seed=seed) for seed in range(50)]
    study = a_study(tmp_path, cases)
    ledger = LedgerWriter(study.ledger_file)
    for case in cases:
        ledger.intend(ID + case.case_id, "told", "c", [[Entry(case.case_id, 1)]])
        ledger.accept(ID + case.case_id, [f"j{case.seed}"])
    told = {f"j{seed}": JobState(state="pending") for seed in range(50)}
    scheduler = Scheduler(knows={}, **told)
    ask = asker(study, lambda cluster: scheduler.as_runner())
    assert len(case_statuses(study, read_ledger(study.ledger_file), ask)) == 50
    assert scheduler.questions == 1


@pytest.mark.parametrize(
    ("given", "first", "opened"),
    [("nothing", 1, 0), ("lost attempt", 1, 1), ("failed", 2, 1), ("lost retry", 2, 2)],
)
def test_the_next_submission_asks_for_a_newer_answer(
    study: Study, given: str, first: int, opened: int
) -> None:
    if given in ("failed", "lost retry"):
        file(study, a_failure(CASE))
    if given == "lost retry":
        submitted(study, first=2, opened=1)
    if given in ("lost attempt", "lost retry"):
        study.open_attempt(ID)
    assert entry_of(study, stands(study, job("ended"))) == Entry(ID, first, opened)


def test_asked_without_a_submission_has_no_job(study: Study) -> None:
    assert stands(study).job_id is None
    submitted(study)
    asked = read_ledger(study.ledger_file).asked()[ID]
    assert isinstance(asked, Asked)
    assert asked.job_id == "j"
