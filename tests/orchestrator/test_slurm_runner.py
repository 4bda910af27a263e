"""The Slurm runner's questions and what it concludes, with squeue and sacct as small programs."""

import json
import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.clusters.cluster import load_cluster
from orchestrator.commands.retry import Change, retry_cases
from orchestrator.commands.selection import Choice
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.runner import Unanswered
from orchestrator.slurm.runner import SlurmRunner
from orchestrator.slurm.script import job_name
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter, Submission
from tests.orchestrator.made import a_case, a_failure, a_rank, a_study

KEY = "20260102-030405-abcdef01"
NAME = job_name(KEY)


def a_submission(*job_ids: str, jobs: int = 1) -> Submission:
    entries = tuple((Entry(f"case-{index}", 1),) for index in range(jobs))
    at = "2026-01-02T03:04:05+00:00"
    return Submission(KEY, "slurm", "slurm", "here", at, entries, job_ids)


class Commands:
    """squeue and sacct on PATH; each notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.say("squeue", "true")
        self.say("sacct", "true")

    def say(self, command: str, script: str) -> None:
        file = self.folder / command
        file.write_text(
            f'#!/bin/sh\necho "$@" >> {self.folder}/{command}.asked\n{script}\n'
        )
        file.chmod(file.stat().st_mode | stat.S_IEXEC)

    def asked(self, command: str) -> list[str]:
        log = self.folder / f"{command}.asked"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Commands(folder)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path / "study")
    study.create()
    return study


def runner() -> SlurmRunner:
    return SlurmRunner(load_cluster("slurm"))


def let_time_pass(study: Study) -> None:
    """The last answer becomes an hour old: Slurm may be asked again."""
    kept = json.loads(study.answers_file.read_text())
    an_hour_ago = datetime.fromisoformat(kept["asked_at"]) - timedelta(hours=1)
    kept["asked_at"] = an_hour_ago.isoformat()
    study.answers_file.write_text(json.dumps(kept))


def line(job_id: str, state: str = "RUNNING") -> str:
    return f"echo '{job_id}|{state}|1:00|30:00|n1|{NAME}|None'"


DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


def test_a_silent_squeue_is_not_taken_for_a_submission_that_was_not_accepted(
    study: Study, commands: Commands
) -> None:
    """Otherwise the same cases would be submitted a second time beside the first job."""
    commands.say("squeue", DOWN)
    with pytest.raises(Unanswered, match="Unable to contact slurm controller"):
        runner().find(study, [a_submission()])


def test_a_submission_that_squeue_does_not_have_was_not_accepted(
    study: Study, commands: Commands
) -> None:
    assert runner().find(study, [a_submission()]) == {}


def test_of_two_jobs_of_one_name_the_first_is_the_submission_s(
    study: Study, commands: Commands
) -> None:
    """A person may submit the script again by hand; that array is not ours."""
    again = "; ".join((line("12_0"), line("12_1"), line("7_0"), line("7_1")))
    commands.say("squeue", again)
    found = runner().find(study, [a_submission(jobs=2)])
    assert found == {KEY: ["7_0", "7_1"]}


def test_silence_is_not_remembered_as_an_answer(
    study: Study, commands: Commands
) -> None:
    jobs = {"7": a_submission("7")}
    commands.say("squeue", line("7"))
    first = runner().states(study, jobs)["7"]
    assert (first.state, first.as_of) == ("running", None)
    commands.say("squeue", DOWN)
    let_time_pass(study)
    second, third = (runner().states(study, jobs)["7"] for _ in range(2))
    assert second.state == third.state == "running"
    assert second.as_of is not None
    assert third.as_of == second.as_of


def test_hundreds_of_jobs_are_asked_about_without_naming_each(
    study: Study, commands: Commands
) -> None:
    few = {str(number): a_submission(str(number)) for number in range(1, 11)}
    runner().states(study, few)
    many = {str(number): a_submission(str(number)) for number in range(1, 1001)}
    runner().states(study, many)
    first, second = commands.asked("squeue")
    assert "-j 1,10,2" in first
    assert "--me" in second
    assert len(second) < 500


def test_a_case_that_ran_out_of_memory_by_slurm_s_word_says_so(
    study: Study, commands: Commands
) -> None:
    commands.say("sacct", f"echo '7|OUT_OF_MEMORY|00:01:00|00:30:00|n1|{NAME}|0:125'")
    state = runner().states(study, {"7": a_submission("7")})["7"]
    assert (state.state, state.cause) == ("ended", "oom_host")


@pytest.mark.parametrize("cases_per_job", [1, 3])
def test_a_slow_case_is_ended_by_its_supervisor_and_not_by_slurm(
    cases_per_job: int,
) -> None:
    """Or nobody would file a record that says it took too long."""
    cluster = load_cluster("sol", {"cases_per_job": cases_per_job})
    cases = [a_case(seed=seed) for seed in range(cases_per_job)]
    (batch,) = SlurmRunner(cluster).batches(cases)
    assert batch.resources is not None
    assert cases_per_job * batch.timeout_s < batch.resources.time_s
    assert batch.timeout_s > batch.resources.time_s / cases_per_job / 2


def test_the_job_id_is_the_one_of_slurm_s_own_line(
    study: Study, commands: Commands
) -> None:
    commands.say(
        "sbatch", "echo 'Your job 17 of 50 this week'; echo 'Submitted batch job 4242'"
    )
    cluster = load_cluster("slurm")
    case = a_case()
    (batch,) = SlurmRunner(cluster).batches([case])
    study.file_case(case)
    turn = JobCase(case_id=case.case_id, first_attempt=1)
    spec = JobSpec(study=str(study.folder), key=KEY, cases=[turn])
    assert SlurmRunner(cluster).submit(study, batch, [spec]) == ["4242"]
    commands.say("sbatch", "echo 'Your job 17 of 50 this week'")
    with pytest.raises(Unanswered, match="gave no job id"):
        SlurmRunner(cluster).submit(study, batch, [spec])


def test_retry_keeps_a_case_off_the_node_that_failed_under_it(
    tmp_path: Path, commands: Commands
) -> None:
    case = a_case()
    study = a_study(tmp_path, [case], "seen")
    writer = LedgerWriter(study.ledger_file)
    writer.intend(KEY, "slurm", "slurm", [[Entry(case.case_id, 1)]])
    writer.accept(KEY, ["7"])
    record = a_failure(
        case, cause="node_fail", retryable=True, ranks=[a_rank(0, host="sg042")]
    )
    study.open_attempt(case.case_id).write_record(record)
    commands.say("sbatch", "echo Submitted batch job 8")
    code = retry_cases(
        tmp_path, "seen", Choice(), Change(), yes=True, confirm=lambda _: False
    )
    assert code == 0
    scripts = list(study.jobs_dir.glob("*/*.sh"))
    assert scripts
    assert all("--exclude=sg042" in script.read_text() for script in scripts)
