"""`orch logs`: print what the workers of a case wrote or, if nothing, the log of its job."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from orchestrator.commands.options import complete_case, results_option, study_option
from orchestrator.commands.selection import matching
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.study.files import Attempt, Study

POLL_S = 0.5


@click.command()
@click.argument("case", metavar="CASE", shell_complete=complete_case)
@click.option("--follow", "-f", is_flag=True, help="Go on until the case has ended.")
@click.option(
    "--attempt",
    type=click.IntRange(1),
    metavar="N",
    help="Which run of the case.  [default: the latest]",
)
@study_option
@results_option
def logs(
    case: str, follow: bool, attempt: int | None, study: str | None, results: Path
) -> None:
    """Print what the workers of a case wrote.

    CASE is a case id, or any unambiguous part of one. If the workers wrote nothing, the
    log of their job is printed.
    """
    from orchestrator.study.find import find_study

    named = find_study(results, study)
    sys.exit(print_log(named, case, attempt=attempt, follow=follow, out=sys.stdout))


def print_log(
    study: Study,
    case: str,
    *,
    attempt: int | None = None,
    follow: bool = False,
    out: TextIO,
) -> int:
    """Print the log of a case's latest attempt, or of the one that is numbered; the exit code.

    Raises:
        InputError: no such case or attempt, or several cases are meant.
    """
    case_id = _one(study.case_ids(), case)
    one = _attempt(study, case_id, attempt)
    if one is None:
        _say(f"{case_id}: no attempt yet")
        return _print_all(_job_logs(study, case_id), out)
    if follow:
        return _follow(study, one, out)
    _say(f"{case_id}: attempt {one.number}, {one.log_file}")
    if not _has_text(one.log_file):
        _say("the workers wrote nothing; the log of their job:")
        return _print_all(_job_logs(study, case_id), out)
    return _print_all([one.log_file], out)


def _say(message: str) -> None:
    click.echo(message, err=True)


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
    from orchestrator.study.ledger import read_ledger

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
            _say(f"== {file}")
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
    from orchestrator.study.case_status import ACTIVE
    from orchestrator.submission.job_states import study_statuses

    return any(
        each.case_id == case_id and each.status in ACTIVE
        for each in study_statuses(study)
    )
