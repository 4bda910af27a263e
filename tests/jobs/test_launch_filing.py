"""Records reach their place or somebody's eyes; progress is seen; deaths are explained."""

import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.filing import deliver, file_or_keep, kept_record, print_record
from jobs.launch import post_mortem
from jobs.launch.evidence import JobLog, OomKills
from jobs.launch.post_mortem import Symptoms
from jobs.launch.signals import Signals
from jobs.launch.supervisor import is_done, is_superseded, main
from jobs.launch.torchrun import nodes_of
from jobs.launch.workers import Ending, Limits
from jobs.progress import (
    LOADING,
    MEASURING,
    WARMING,
    ProgressBoard,
    write_heartbeat,
)
from kernels.shapes import ModelShape
from kernels.strategies import Parallel, TensorParallel
from orchestrator.case import Case
from orchestrator.errors import InputError
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.record import Cause, Heartbeat, Record, read_record
from orchestrator.study.files import Attempt, Study
from orchestrator.study.ledger import Entry, LedgerWriter

SHAPE = ModelShape(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=64
)
CASE = Case(
    model="toy",
    random=SHAPE,
    label="tensor",
    strategy=Parallel(tensor=TensorParallel(degree=2)),
    gpus=2,
    new_tokens=10,
    warmup=2,
    repeats=3,
)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def failed(cause: Cause, attempt: int = 1) -> Record:
    return Record(
        case=CASE, attempt=attempt, status="failed", cause=cause, evidence=["it broke"],
        started_at=NOW, ended_at=NOW,
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path / "study")
    study.create()
    study.file_case(CASE)
    return study


@pytest.fixture
def attempt(study: Study) -> Attempt:
    return study.open_attempt(CASE.case_id)


def test_a_record_that_can_be_filed_is_filed(attempt: Attempt, tmp_path: Path) -> None:
    assert file_or_keep(failed("unknown"), attempt, tmp_path)
    assert attempt.read_record() == failed("unknown")
    assert kept_record(tmp_path, attempt) is None


def test_a_record_that_cannot_be_filed_is_kept(
    attempt: Attempt, tmp_path: Path
) -> None:
    attempt.folder.rmdir()
    assert not file_or_keep(failed("unknown"), attempt, tmp_path)
    assert kept_record(tmp_path, attempt) == failed("unknown")


@pytest.mark.parametrize("folder", [None, Path("/nowhere/at/all")])
def test_a_record_that_cannot_even_be_kept_is_printed(
    attempt: Attempt, folder: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt.folder.rmdir()
    assert not file_or_keep(failed("unknown"), attempt, folder, patience_s=0)
    line = capsys.readouterr().out.splitlines()[-1]
    assert read_record(line[line.index("{") :], "stdout") == failed("unknown")


def test_what_was_printed_is_still_filed_where_it_can_be(attempt: Attempt) -> None:
    attempt.folder.rmdir()
    repair = threading.Timer(0.5, attempt.folder.mkdir)
    repair.start()
    assert file_or_keep(failed("unknown"), attempt, Path("/nowhere/at/all"))
    repair.join()
    assert attempt.read_record() == failed("unknown")


def test_a_printed_record_names_its_place_and_can_be_read_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_record(failed("timeout", attempt=3))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"orch: record of {CASE.case_id} attempt 3: {{")
    assert read_record(line[line.index("{") :], "stdout") == failed("timeout", 3)


def test_a_record_is_never_overwritten(attempt: Attempt, tmp_path: Path) -> None:
    attempt.write_record(failed("unknown"))
    with Signals() as signals:
        assert deliver(failed("timeout"), attempt, 0, signals.sleep)
    assert file_or_keep(failed("timeout"), attempt, tmp_path)
    assert attempt.read_record() == failed("unknown")


def test_a_disk_that_comes_back_gets_the_record(attempt: Attempt) -> None:
    attempt.folder.rmdir()
    repair = threading.Timer(0.8, attempt.folder.mkdir)
    repair.start()
    with Signals() as signals:
        assert deliver(failed("unknown"), attempt, 60, signals.sleep)
    repair.join()
    assert attempt.read_record() == failed("unknown")


def test_a_disk_that_stays_away_is_given_up(attempt: Attempt) -> None:
    attempt.folder.rmdir()
    with Signals() as signals:
        assert not deliver(failed("unknown"), attempt, 0.6, signals.sleep)


def test_a_request_to_end_ends_the_waiting(attempt: Attempt) -> None:
    attempt.folder.rmdir()
    start = time.monotonic()
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert not deliver(failed("unknown"), attempt, 600, signals.sleep)
    assert signals.received == signal.SIGTERM
    assert time.monotonic() - start < 300


def test_a_case_is_done_when_this_jobs_turn_has_a_record(study: Study) -> None:
    turn = JobCase(case_id=CASE.case_id, first_attempt=2)
    study.open_attempt(CASE.case_id).write_record(failed("unknown", 1))
    assert not is_done(study, turn)
    study.open_attempt(CASE.case_id)
    assert not is_done(study, turn)
    study.open_attempt(CASE.case_id).write_record(failed("config", 3))
    assert is_done(study, turn)


@pytest.mark.parametrize("cause", ["preempted", "cancelled", "node_fail"])
def test_a_requeue_makes_an_interruption_good(study: Study, cause: Cause) -> None:
    study.open_attempt(CASE.case_id).write_record(failed(cause))
    assert not is_done(study, JobCase(case_id=CASE.case_id, first_attempt=1))


def test_a_damaged_record_does_not_make_a_case_done(study: Study) -> None:
    study.open_attempt(CASE.case_id).record_file.write_text('{"schema_version": 1')
    assert not is_done(study, JobCase(case_id=CASE.case_id, first_attempt=1))


def test_a_job_leaves_a_case_to_a_later_submission(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """sbatch that outlived its `orch submit`, or an old job that is requeued behind a retry."""
    writer = LedgerWriter(study.ledger_file)
    writer.intend("old", "slurm", "slurm", [[Entry(CASE.case_id, 1)]])
    writer.refuse("old", "`orch submit` was interrupted before it was accepted")
    writer.intend("new", "slurm", "slurm", [[Entry(CASE.case_id, 1)]])
    turn = JobCase(case_id=CASE.case_id, first_attempt=1)
    assert not is_superseded(study, turn, "new")
    job = JobSpec(study=str(study.folder), key="old", cases=[turn])
    file = study.folder / "job.json"
    file.write_text(job.model_dump_json())
    assert main([str(file)]) == 0
    assert "left to the later submission new" in capsys.readouterr().out
    assert study.attempts(CASE.case_id) == []
    # Refused for good, the newer one has no claim on the case.
    writer.refuse("new", "invalid partition")
    assert not is_superseded(study, turn, "old")


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"study": "/x", "odd": 1}'])
def test_a_file_that_is_no_job_spec_is_refused(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "job.json").write_text(text)
    assert main([str(tmp_path / "job.json")]) == 2
    assert "must be a job spec that `orch submit` wrote" in capsys.readouterr().err


# ---- progress


def test_a_rank_notes_and_another_process_reads(tmp_path: Path) -> None:
    board = ProgressBoard.create(tmp_path, 2)
    reporter = ProgressBoard.open(tmp_path, 2).reporter(1)
    reporter.enter(LOADING)
    reporter.loaded(30, 120)
    reporter.enter(MEASURING, generation=4)
    reporter.token(6)
    first, second = board.rank_progress()
    assert (first.phase, first.updates) == ("starting", 0)
    assert (second.phase, second.generation, second.tokens) == ("measuring", 4, 7)
    assert second.loaded_percent == 25
    assert board.updates() == 4


def test_ranks_of_other_machines_are_left_out(tmp_path: Path) -> None:
    board = ProgressBoard.create(tmp_path, 4, one_node=False)
    assert len(board.rank_progress()) == 4
    board.reporter(2).enter(WARMING)
    assert [each.rank for each in board.rank_progress()] == [2]


def test_without_a_board_notes_go_nowhere(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        ProgressBoard.open(folder, 2).reporter(1).token(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("phase", "run", "said"),
    [
        (LOADING, 0, "loading 0 %"),
        (WARMING, 1, "warming up 2 of 2"),
        (MEASURING, 3, "measuring 2 of 3"),
    ],
)
def test_the_heartbeat_tells_how_far_the_last_rank_is(
    attempt: Attempt, tmp_path: Path, phase: int, run: int, said: str
) -> None:
    board = ProgressBoard.create(tmp_path, 2)
    for rank in (0, 1):
        board.reporter(rank).enter(phase, run)
    board.reporter(0).token(3)
    write_heartbeat(attempt, CASE, board.rank_progress(), NOW)
    beat = Heartbeat.model_validate_json(attempt.heartbeat_file.read_text())
    assert (beat.phase, beat.done, beat.total) == (said, run * 10, 50)
    assert beat.started_at == NOW


def test_a_heartbeat_that_cannot_be_written_harms_nobody(
    attempt: Attempt, tmp_path: Path
) -> None:
    attempt.folder.rmdir()
    board = ProgressBoard.create(tmp_path, 2)
    write_heartbeat(attempt, CASE, board.rank_progress(), NOW)


# ---- explanations


@pytest.fixture
def board(tmp_path: Path) -> ProgressBoard:
    board = ProgressBoard.create(tmp_path, 2)
    board.reporter(0).enter(MEASURING, 2)
    board.reporter(1).enter(MEASURING, 2)
    board.reporter(0).token(5)
    return board


def test_a_limit_that_ended_workers_is_the_cause(board: ProgressBoard) -> None:
    ending = Ending(exit_code=-9, elapsed_s=60.2, timed_out=True)
    finding = post_mortem.explain(ending, board.rank_progress(), Symptoms())
    assert (finding.cause, finding.retryable) == ("timeout", False)
    assert "60 s" in finding.evidence[0]
    assert "generation 3, token 0" in finding.evidence[1]


def test_a_rank_that_hangs_is_named(board: ProgressBoard) -> None:
    ending = Ending(exit_code=-9, elapsed_s=900, stalled=True)
    finding = post_mortem.explain(ending, board.rank_progress(), Symptoms(stall_s=42))
    assert finding.cause == "timeout"
    assert finding.evidence[0] == "no rank made progress for 42 s"
    assert "ORCH_STALL_S" in finding.remedy
    assert "rank 1 at measuring, generation 3, token 0" in finding.evidence[1]


ENDED = "SignalException: Process 9 got signal: 15\n"
SLURM = "slurmstepd: error: *** JOB 8 ON sg1 CANCELLED AT 2026-01-02T03:04:05{} ***\n"


@pytest.mark.parametrize(
    ("why", "cause"),
    [
        ("", "cancelled"),
        (" DUE TO TIME LIMIT", "timeout"),
        (" DUE TO PREEMPTION", "preempted"),
        (" DUE TO JOB REQUEUE", "preempted"),
    ],
)
@pytest.mark.parametrize("log", ["worker_log", "job_log"])
def test_slurm_tells_whose_wish_a_signal_was(
    board: ProgressBoard, why: str, cause: str, log: str
) -> None:
    logs = {"worker_log": ENDED, "job_log": ""}
    logs[log] += SLURM.format(why)
    told = Symptoms(received=signal.SIGTERM, **logs)
    finding = post_mortem.explain(
        Ending(exit_code=1, elapsed_s=5), board.rank_progress(), told
    )
    assert finding.cause == cause
    assert "generation 3" in finding.evidence[-1]


def test_a_signal_that_nobody_explains_is_somebodys_wish(board: ProgressBoard) -> None:
    told = Symptoms(received=signal.SIGTERM, worker_log=ENDED)
    finding = post_mortem.explain(
        Ending(exit_code=1, elapsed_s=5), board.rank_progress(), told
    )
    assert (finding.cause, finding.retryable) == ("cancelled", True)


def test_only_what_came_into_the_jobs_log_since_the_start_is_told(
    tmp_path: Path,
) -> None:
    with (tmp_path / "job.log").open("a") as stream:
        stream.write(SLURM.format(" DUE TO PREEMPTION"))
        stream.flush()
        log = JobLog(stream.fileno())
        assert log.since_start() == ""
        stream.write("and then\n")
        stream.flush()
        assert log.since_start() == "and then\n"


def test_a_job_without_a_log_file_is_told_nothing() -> None:
    read, write = os.pipe()
    log = JobLog(write)
    os.write(write, b"x")
    assert log.since_start() == ""
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("end", "cause"), [("1000", "timeout"), ("1020", "timeout"), ("2000", "cancelled")]
)
def test_a_signal_at_the_end_of_the_jobs_time_is_the_time_limit(
    board: ProgressBoard, end: str, cause: str
) -> None:
    environment = {"SLURM_JOB_END_TIME": end}
    rank_progress = board.rank_progress()
    finding = post_mortem.of_signal(signal.SIGTERM, rank_progress, environment, 1000.0)
    assert finding.cause == cause


def test_what_the_log_proves_is_the_cause(board: ProgressBoard) -> None:
    told = Symptoms(worker_log="[rank1]:torch.OutOfMemoryError: CUDA out of memory")
    finding = post_mortem.explain(
        Ending(exit_code=1, elapsed_s=5), board.rank_progress(), told
    )
    assert (finding.cause, len(finding.evidence)) == ("oom_gpu", 1)


def test_of_an_unknown_death_it_is_told_who_was_behind(board: ProgressBoard) -> None:
    ending = Ending(exit_code=-9, elapsed_s=5)
    finding = post_mortem.explain(ending, board.rank_progress(), Symptoms())
    assert finding.cause == "unknown"
    assert "rank 1" in finding.evidence[-1]
    killed = post_mortem.explain(ending, board.rank_progress(), Symptoms(oom_kills=1))
    assert killed.cause == "oom_host"


# ---- limits, nodes and kills


def test_a_variable_of_the_job_sets_a_limit() -> None:
    limits = Limits.from_environment({"ORCH_STALL_S": "1800", "PATH": "/bin"})
    assert limits == Limits(stall_s=1800)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "inf", "nan", ""])
def test_a_limit_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="ORCH_DISK_S must be a positive number"):
        Limits.from_environment({"ORCH_DISK_S": value})


def test_a_job_with_a_wrong_limit_exits_2_and_runs_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = JobCase(case_id=CASE.case_id, first_attempt=1)
    job = JobSpec(study=str(study.folder), key="k", cases=[turn])
    file = study.folder / "job.json"
    file.write_text(job.model_dump_json())
    monkeypatch.setenv("ORCH_STALL_S", "never")
    assert main([str(file)]) == 2
    assert "ORCH_STALL_S" in capsys.readouterr().err
    assert study.attempts(CASE.case_id) == []


def test_workers_of_an_earlier_attempt_cannot_join_a_later_one() -> None:
    environment = {
        "ORCH_NODES": "2", "ORCH_RENDEZVOUS": "node1:29500", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    first, second = (nodes_of(environment, 4, attempt) for attempt in (1, 2))
    assert first.job_id != second.job_id
    other_job = nodes_of(environment | {"SLURM_JOB_ID": "8"}, 4, 1)
    assert first.job_id != other_job.job_id


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/slurm/job_7/step_0", "slurm/job_7/step_0/memory.events"),
        ("4:memory:/slurm/job_7", "memory/slurm/job_7/memory.oom_control"),
    ],
)
def test_only_kills_since_the_attempt_began_are_counted(
    tmp_path: Path, line: str, file: str
) -> None:
    membership, count = tmp_path / "cgroup", tmp_path / file
    membership.write_text(f"9:name=systemd:/\n{line}\n")
    count.parent.mkdir(parents=True)
    count.write_text("oom 9\noom_kill 3\n")
    kills = OomKills(membership, tmp_path)
    assert kills.since_start() == 0
    count.write_text("oom 9\noom_kill 5\n")
    assert kills.since_start() == 2


def test_a_machine_without_control_groups_counts_no_kills(tmp_path: Path) -> None:
    assert OomKills(tmp_path / "none", tmp_path).since_start() == 0
