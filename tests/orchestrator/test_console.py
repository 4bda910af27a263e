"""What a person reads: one line per case, safe to print, durations in words."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from orchestrator.commands.console import (
    ROWS_PER_STATUS,
    counts,
    duration,
    fitting_table,
    note,
    status_table,
    stderr,
)
from orchestrator.commands.selection import matching, short_names
from orchestrator.commands.wait import pause_s
from orchestrator.record import Heartbeat
from orchestrator.study.case_status import CaseStatus
from orchestrator.units import counted
from tests.orchestrator.made import a_case


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


def shown(found: list[CaseStatus], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(status_table("study", found, width=width))
    return [line.rstrip() for line in captured.get().splitlines()]


LONG = CaseStatus(
    case_id="llama-2-70b_zero-offload_4x_b16_bf16-0123456789",
    status="failed", case=a_case(), cause="nccl", elapsed_s=7620.0,
    evidence=("rank 3 did not answer within the ten minutes that it is given to do so",),
)  # fmt: skip


def test_a_wide_terminal_shows_a_case_on_one_line() -> None:
    head, row, summary = shown([LONG], 200)
    assert head.split() == ["status", "case", "strategy", "time", "note"]
    assert row.endswith(f"  tensor    2 h 07 min  nccl: {LONG.evidence[0]}")
    assert LONG.case_id in row
    assert summary == "study: 1 case: 1 failed"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_narrow_terminal_cuts_no_status_time_or_cause(width: int) -> None:
    lines = shown([LONG], width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    joined = "".join("".join(lines).split())
    for word in ("failed", "2h07min", f"nccl:{LONG.evidence[0]}".replace(" ", "")):
        assert word in joined


def test_a_name_keeps_as_much_of_its_hash_as_it_needs_to_be_found() -> None:
    ids = [
        "toy_1x-aabbccddee",
        "toy_1x-aabbccff00",
        "toy_2x-0011223344",
        "toy_2",
        "odd",
    ]
    assert short_names(ids) == {
        "toy_1x-aabbccddee": "toy_1x-aabbccd", "toy_1x-aabbccff00": "toy_1x-aabbccf",
        "toy_2x-0011223344": "toy_2x", "toy_2": "toy_2", "odd": "odd",
    }  # fmt: skip
    for case_id, name in short_names(ids).items():
        assert matching(ids, name) == [case_id]


def test_a_heartbeat_is_shown_as_a_phase_and_the_percent_that_is_done() -> None:
    beat = Heartbeat(at=datetime.now(UTC), phase="measuring", done=1, total=8)
    each = CaseStatus(case_id="x", status="running", heartbeat=beat)
    assert note(each) == "measuring, 12 %"
    unknown = Heartbeat(at=datetime.now(UTC), phase="loading")
    assert note(replace(each, heartbeat=unknown)) == "loading"


def test_what_is_watched_fits_its_screen_with_the_summary() -> None:
    found = [
        replace(LONG, case_id=f"case-{index}", status=status)
        for status in ("running", "pending", "failed")
        for index in range(40)
    ]
    for height in (12, 24, 60):
        console = Console(width=80, height=height, file=io.StringIO())
        lines = [
            "".join(segment.text for segment in line).rstrip()
            for line in console.render_lines(fitting_table("study", found, console))
        ]
        assert len(lines) < height
        assert lines[-1] == "study: 120 cases: 40 running, 40 pending, 40 failed", lines


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
