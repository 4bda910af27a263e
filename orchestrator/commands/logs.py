"""`orch logs`: what a case's workers wrote, and where nothing came from them, its job."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from orchestrator.commands.console import talk
from orchestrator.commands.options import results_option, study_option
from orchestrator.commands.selection import matching
from orchestrator.commands.status import look
from orchestrator.errors import InputError
from orchestrator.study.case_status import ACTIVE, CaseStatus
from orchestrator.study.files import Attempt, Study
from orchestrator.study.find import find_study
from orchestrator.study.ledger import read_ledger

POLL_S = 0.5


@click.command()
@click.argument("case", metavar="CASE")
@click.option("--follow", "-f", is_flag=True, help="Go on until the case has ended.")
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="[default: latest]"
)
@study_option
@results_option
def logs(
    case: str, follow: bool, attempt: int | None, study: str | None, results: Path
) -> None:
    """Print what the workers of a case wrote.

    CASE is a case id, or any unambiguous part of one. Where the workers wrote nothing, the
    log of their job is printed.
    """
    sys.exit(print_log(results, study, case, attempt=attempt, follow=follow))


def print_log(
    results: Path,
    name: str | None,
    case: str,
    *,
    attempt: int | None = None,
    follow: bool = False,
    out: TextIO | None = None,
) -> int:
    """Print the log of a case's latest attempt, or of the one that is numbered; the exit code.

    Raises:
        InputError: no such case or attempt, or several cases are meant.
    """
    study = find_study(results, name)
    case_id = _one(study.case_ids(), case)
    paper = out or sys.stdout
    one = _attempt(study, case_id, attempt)
    files = _job_logs(study, case_id)
    if one is None:
        talk().print(f"{case_id}: no attempt yet", markup=False)
        return _print_all(files, paper)
    if follow:
        return _follow(study, one, paper)
    talk().print(f"{case_id}: attempt {one.number}, {one.log_file}", markup=False)
    if not _has_text(one.log_file):
        talk().print("the workers wrote nothing; their job did:", markup=False)
        return _print_all(files, paper)
    return _print_all([one.log_file], paper)


def _one(ids: list[str], name: str) -> str:
    found = matching(ids, name)
    if len(found) > 1:
        listed = ", ".join(found[:8]) + (" …" if len(found) > 8 else "")
        raise InputError(
            f"{name!r} fits {len(found)} cases: {listed}; name one of them"
        )
    return found[0]


def _attempt(study: Study, case_id: str, number: int | None) -> Attempt | None:
    attempts = study.attempts(case_id)
    if number is None:
        return attempts[-1] if attempts else None
    for each in attempts:
        if each.number == number:
            return each
    known = ", ".join(str(each.number) for each in attempts) or "none"
    raise InputError(f"{case_id} has no attempt {number}; there are: {known}")


def _job_logs(study: Study, case_id: str) -> list[Path]:
    """Logs of the job that had the case last."""
    asked = read_ledger(study.ledger_file).asked().get(case_id)
    if asked is None:
        return []
    folder = study.job_dir(asked.submission.key)
    own = sorted(folder.glob(f"{asked.job_id}_*log.*")) if asked.job_id else []
    return own or sorted(folder.glob("*.log")) + sorted(folder.glob("*_log.*"))


def _has_text(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _print_all(files: list[Path], out: TextIO) -> int:
    for file in filter(_has_text, files):
        if len(files) > 1:
            talk().print(f"== {file}", markup=False)
        with file.open(encoding="utf-8", errors="replace") as stream:
            shutil.copyfileobj(stream, out)
    return 0


def _follow(study: Study, attempt: Attempt, out: TextIO) -> int:
    """Print as it grows, until the case ended."""
    try:
        for text in _growing(study, attempt):
            out.write(text)
            out.flush()
    except KeyboardInterrupt:
        return 130
    return 0


def _growing(study: Study, attempt: Attempt) -> Iterator[str]:
    ended = False
    place = 0
    while True:
        if attempt.log_file.exists():
            with attempt.log_file.open(encoding="utf-8", errors="replace") as stream:
                stream.seek(place)
                if text := stream.read():
                    yield text
                place = stream.tell()
        if ended:
            return
        # The rest is read once more after the end was seen.
        ended = attempt.record_file.exists() or not _goes_on(study, attempt.case_id)
        if not ended:
            time.sleep(POLL_S)


def _goes_on(study: Study, case_id: str) -> bool:
    now: list[CaseStatus] = [each for each in look(study) if each.case_id == case_id]
    return bool(now) and now[0].status in ACTIVE
