"""`orch submit --wait`: how often it looks, and what it says of the cases that ended."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.commands.wait import wait_for
from orchestrator.local.runner import TURN
from orchestrator.processes import start_time
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter
from tests.orchestrator.made import a_case, a_failure, a_record, a_study

CASE = a_case()
POLL_S = 7.0
Sleeps = Callable[[Callable[[], object]], list[float]]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One case, whose job is this very process, so that it runs."""
    study = a_study(tmp_path, [CASE])
    ledger = LedgerWriter(study.ledger_file)
    ledger.intend("key", "local", "local", [[Entry(CASE.case_id, 1)]])
    ledger.accept("key", ["key"])
    study.job_dir("key").mkdir(parents=True)
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
    }
    (study.job_dir("key") / TURN).write_text(json.dumps(me))
    return study


@pytest.fixture
def sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> Sleeps:
    """A clock of ours: sleeping takes no time, and in the third sleep something happens."""

    def install(in_the_third: Callable[[], object]) -> list[float]:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                in_the_third()

        monkeypatch.setattr(time, "sleep", sleep)
        return slept

    return install


def test_it_looks_no_more_often_than_the_cluster_allows(
    study: Study, sleeps: Sleeps
) -> None:
    attempt = study.open_attempt(CASE.case_id)
    slept = sleeps(lambda: attempt.write_record(a_record(CASE)))
    assert wait_for(study, [CASE.case_id], POLL_S) == 0
    assert len(slept) == 3
    assert min(slept) >= POLL_S


def test_a_case_that_failed_is_told_with_its_cause(
    study: Study,
    sleeps: Sleeps,
    capsys: pytest.CaptureFixture[str],
) -> None:
    attempt = study.open_attempt(CASE.case_id)
    sleeps(lambda: attempt.write_record(a_failure(CASE)))
    assert wait_for(study, [CASE.case_id], POLL_S) == 1
    said = capsys.readouterr().err
    assert f"failed  {CASE.case_id}  1 min 00 s  timeout: still running" in said
    assert said.endswith("made: 1 failed\n")


def test_a_job_that_is_gone_ends_the_waiting_with_1(
    study: Study,
    sleeps: Sleeps,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study.open_attempt(CASE.case_id)
    turn = study.job_dir("key") / TURN
    gone = json.loads(turn.read_text()) | {"started": -1}
    sleeps(lambda: turn.write_text(json.dumps(gone)))
    assert wait_for(study, [CASE.case_id], POLL_S) == 1
    assert capsys.readouterr().err.endswith("made: 1 lost\n")
