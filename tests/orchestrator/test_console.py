"""What a person reads: one line per case, safe to print, durations in words."""

import pytest

from orchestrator.commands.console import (
    ROWS_PER_STATUS,
    counts,
    duration,
    note,
    status_table,
    stderr,
)
from orchestrator.commands.wait import pause_s
from orchestrator.study.case_status import CaseStatus
from orchestrator.units import counted


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (7620, "2 h 07 min"), (90000, "25 h 00 min"), (7 * 86400, "7 days"), (183600, "2 days 3 h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_a_note_is_one_line_that_no_terminal_obeys() -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 \r\n\tnext [bold]line[/]"
    said = note(
        CaseStatus(
            case_id="x", status="failed", cause="nccl", evidence=(hostile, "two")
        )
    )
    assert said == "nccl: [31mred]0;title next [bold]line[/]"


def test_markup_in_evidence_is_shown_and_not_obeyed() -> None:
    each = CaseStatus(
        case_id="[red]x", status="failed", cause="nccl", evidence=("[/] [blink]y",)
    )
    console = stderr()
    with console.capture() as captured:
        console.print(status_table("study", [each]))
    assert "[red]x" in captured.get()
    assert "[/] [blink]y" in captured.get()


def test_many_cases_of_one_status_are_counted_and_not_all_listed() -> None:
    found = [
        CaseStatus(case_id=f"case-{i}", status="new")
        for i in range(ROWS_PER_STATUS + 7)
    ]
    console = stderr()
    with console.capture() as captured:
        console.print(status_table("study", found))
    assert "… and 7 more" in captured.get()
    assert f"{len(found)} cases: {len(found)} new" in captured.get()


def test_counts_leave_out_what_there_is_none_of() -> None:
    found = [
        CaseStatus(case_id="x", status="ok"),
        CaseStatus(case_id="y", status="oom"),
    ]
    assert counts(found) == "1 oom, 1 ok"


def test_looking_takes_at_most_a_twentieth_of_the_time() -> None:
    assert pause_s(1.0, 0.01) == 1.0
    assert pause_s(1.0, 2.0) == 40.0


def test_one_is_singular() -> None:
    assert [counted(number, "case") for number in (0, 1, 2)] == [
        "0 cases", "1 case", "2 cases",
    ]  # fmt: skip
