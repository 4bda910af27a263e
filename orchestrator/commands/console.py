"""What a person sees: rich tables on stdout, talk on stderr. Nothing here decides anything."""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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
_LABEL = re.compile(r"^(\[\w+\]:\s*)?(orch: \w+: )?")
"""What torchrun and a worker put before a line that a person is meant to read."""


def talk() -> Console:
    """Where messages go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def paper() -> Console:
    """Where data for people goes."""
    return Console(highlight=False)


def put(shown: RenderableType) -> None:
    """Print data; where it is piped, lines are never wrapped, cut or padded."""
    if sys.stdout.isatty():
        paper().print(shown)
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
    """`47 s`, `3 min 05 s` or `2 h 07 min`; empty where unknown."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def note(each: CaseStatus) -> str:
    """One line: how far it is, why it waits, or why it failed and what to do."""
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
    """How long it took; of what runs under a limit, how long it may."""
    limit_s = each.job.limit_s if each.job and each.status == "running" else None
    of = f" of {duration(limit_s)}" if limit_s and each.elapsed_s is not None else ""
    return duration(each.elapsed_s) + of


def sections(title: str, found: Sequence[CaseStatus]) -> RenderableType:
    """Cases by status, each status with its count and at most ROWS_PER_STATUS of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("status", "case", "strategy", "took"):
        table.add_column(column, no_wrap=True)
    table.add_column("note", overflow="fold")
    for status, style in STYLES.items():
        rows = [each for each in found if each.status == status]
        for each in rows[:ROWS_PER_STATUS]:
            table.add_row(
                Text(status, style), escape(each.case_id),
                escape(each.case.label if each.case else ""),
                took(each), escape(note(each)),
            )  # fmt: skip
        if len(rows) > ROWS_PER_STATUS:
            more = f"… and {len(rows) - ROWS_PER_STATUS} more; --json lists all"
            table.add_row(Text(status, style), more)
    hours = gpu_hours(found)
    summary = Text.assemble(
        (title, "bold"),
        f": {counted(len(found), 'case')}: {counts(found)}",
        f"; {hours}" if hours else "",
    )
    return Group(table, summary) if found else summary
