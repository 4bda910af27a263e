"""What a person sees: rich tables on stdout, messages on stderr. Nothing here decides anything."""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.commands.selection import short_names
from orchestrator.study.case_status import CaseStatus, Status
from orchestrator.submission.gpu_hours import gpu_hours
from orchestrator.units import counted

STYLES: dict[Status, str] = {
    "running": "cyan", "pending": "blue", "failed": "red", "invalid": "red",
    "lost": "magenta", "oom": "yellow", "pruned": "yellow", "new": "default", "ok": "green",
}  # fmt: skip
"""Statuses in the order they are shown, with their colours."""
ROWS_PER_STATUS = 25
_WIDE = 100_000
_NOTE = 40
"""Columns that a note needs beside its case; with fewer it goes below it."""
_LABEL = re.compile(r"^(\[\w+\]:\s*)?(orch: \w+: )?")
"""What torchrun and a worker put before a line that a person is meant to read."""


def stderr() -> Console:
    """Return the console for messages."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """Return the console for data; one that is piped never wraps or cuts."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(highlight=False, width=width)


def print_data(shown: RenderableType) -> None:
    """Print to stdout; where it is piped, lines are not padded either."""
    if sys.stdout.isatty():
        stdout().print(shown)
        return
    wide = Console(file=io.StringIO(), highlight=False, width=_WIDE)
    with wide.capture() as captured:
        wide.print(shown)
    lines = captured.get().splitlines()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    sys.stdout.flush()


def counts(found: Iterable[CaseStatus]) -> str:
    """`12 ok, 2 running, 1 failed`, in the order of STYLES."""
    number = Counter(each.status for each in found)
    return ", ".join(
        f"{number[status]} {status}" for status in STYLES if number[status]
    )


def duration(seconds: float | None) -> str:
    """`47 s`, `3 min 05 s`, `2 h 07 min` or `7 days`; empty where unknown."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    hours = round(whole / 3600)
    return f"{hours // 24} days" + (f" {hours % 24} h" if hours % 24 else "")


def note(each: CaseStatus) -> str:
    """Say in one line how far the case is, why it waits, or why it failed and what to do."""
    beat = each.heartbeat
    if beat is not None:
        share = (
            f", {100 * beat.done // beat.total} %" if beat.done and beat.total else ""
        )
        unsure = f"; {each.evidence[0]}" if each.evidence else ""
        return _printable(f"{beat.phase}{share}{unsure}")
    words = [each.cause] if each.cause and each.cause != each.status else []
    words += [_LABEL.sub("", line) for line in each.evidence[:1]]
    text = ": ".join(words)
    if each.status == "lost" and each.remedy:
        text += f"; {each.remedy}"
    return _printable(text)


def _printable(text: str) -> str:
    line = " ".join(text.split())[:400]
    # Log lines can hold a terminal's control sequences.
    return "".join(sign for sign in line if sign.isprintable())


def took(each: CaseStatus) -> str:
    """Return how long it took and, if it runs under a limit, how long it may take."""
    limit_s = each.job.limit_s if each.job and each.status == "running" else None
    of = f" of {duration(limit_s)}" if limit_s and each.elapsed_s is not None else ""
    return duration(each.elapsed_s) + of


def fits(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> bool:
    """Return whether the columns fit side by side; the last one, a note, may be folded."""
    *others, note = (
        max(map(cell_len, (name, *(cell.plain for cell in cells))))
        for name, *cells in zip(columns, *rows, strict=True)
    )
    return sum(others) + 2 * len(others) + min(note, _NOTE) <= width


def listing(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], below: int | None = None
) -> Table:
    """Return a table whose last column is a note, which may be folded; nothing is ever cut.

    Args:
        below: the column under whose cells the notes go, in lines of their own.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for index, name in enumerate(columns if below is None else columns[:-1]):
        folds = index == (len(columns) - 1 if below is None else below)
        table.add_column(name, no_wrap=not folds, overflow="fold")
    for row in rows:
        cells: list[RenderableType] = list(row)
        if below is not None and (note := cells.pop()):
            cells[below] = Group(cells[below], Padding(note, (0, 0, 0, 2)))
        table.add_row(*cells)
    return table


def status_table(
    title: str,
    found: Sequence[CaseStatus],
    *,
    width: int = _WIDE,
    most: int = ROWS_PER_STATUS,
) -> RenderableType:
    """Cases by status, at most so many of each, and a line that counts all of them.

    Args:
        width: of the terminal; in a narrow one names lose their hash and notes get lines of
            their own, so that no status, time or cause is cut.
    """
    columns: Sequence[str] = ("status", "case", "strategy", "time", "note")
    rows = _status_rows(found, most)
    below = None
    if not fits(columns, rows, width):
        names = short_names([each.case_id for each in found])
        columns, below = ("status", "case", "time", "note"), 1
        rows = [
            [status, Text(names.get(case.plain, case.plain)), *others]
            for status, case, _, *others in rows
        ]
    hours = gpu_hours(found)
    summary = Text.assemble(
        (title, "bold"),
        f": {counted(len(found), 'case')}: {counts(found)}",
        f"; {hours}" if hours else "",
    )
    return Group(listing(columns, rows, below), summary) if found else summary


def _status_rows(found: Sequence[CaseStatus], most: int) -> list[list[Text]]:
    rows = []
    for status, style in STYLES.items():
        these = [each for each in found if each.status == status]
        for each in these[:most]:
            label = each.case.label if each.case else ""
            texts = map(Text, (each.case_id, label, took(each), note(each)))
            rows.append([Text(status, style), *texts])
        if len(these) > most:
            more = f"… and {len(these) - most} more; --json lists all"
            rows.append([Text(status, style), Text(more), Text(), Text(), Text()])
    return rows


def fitting_table(
    title: str, found: Sequence[CaseStatus], console: Console
) -> RenderableType:
    """Return the table of `status_table` with so few rows that a terminal shows all of it."""
    for most in (ROWS_PER_STATUS, 12, 6, 3, 1, 0):
        shown = status_table(title, found, width=console.width, most=most)
        if len(console.render_lines(shown)) < console.height:
            break
    return shown
