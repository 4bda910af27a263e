"""`orch logs`: the right file, and following it to the end."""

import io
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from orchestrator.commands.logs import print_log
from orchestrator.errors import InputError
from orchestrator.local.runner import TURN
from orchestrator.processes import start_time
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter
from tests.orchestrator.made import a_case, a_record

CASE = a_case()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One case, whose job is this very process, so that it runs."""
    study = Study(tmp_path / "results" / "one")
    study.create()
    study.file_case(CASE)
    study.write_facts({"cases": [CASE.case_id], "cluster": "local"})
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


def read(study: Study, name: str = "toy", **how: object) -> str:
    out = io.StringIO()
    assert print_log(study, name, out=out, **how) == 0  # type: ignore[arg-type]
    return out.getvalue()


def test_the_latest_attempt_is_shown_and_an_earlier_one_by_its_number(
    study: Study,
) -> None:
    for text in ("first\n", "second\n"):
        study.open_attempt(CASE.case_id).log_file.write_text(text)
    assert read(study) == "second\n"
    assert read(study, attempt=1) == "first\n"
    with pytest.raises(InputError, match="no attempt 3; there are: 1, 2"):
        read(study, attempt=3)


def test_where_the_workers_wrote_nothing_their_job_is_shown(study: Study) -> None:
    study.open_attempt(CASE.case_id)
    (study.job_dir("key") / "key_0_log.out").write_text("slurmstepd: no\n")
    assert read(study) == "slurmstepd: no\n"


def test_a_case_that_is_not_there_is_answered_with_the_nearest(study: Study) -> None:
    with pytest.raises(InputError, match="no case 'yot' in this study"):
        read(study, "yot")


def test_following_shows_all_and_ends_with_the_case(study: Study) -> None:
    attempt = study.open_attempt(CASE.case_id)

    def work() -> None:
        with attempt.log_file.open("w") as log:
            for index in range(5):
                log.write(f"line {index}\n")
                log.flush()
                time.sleep(0.1)
        attempt.write_record(a_record(CASE))

    worker = threading.Thread(target=work)
    worker.start()
    text = read(study, follow=True)
    worker.join()
    assert text == "".join(f"line {index}\n" for index in range(5))
