"""`orch trace`: the traced cases of a study, their idle shares, and the heat map of them."""

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import click

from kernels.spans import Span, of_events
from orchestrator.case import Case
from orchestrator.commands.console import talk
from orchestrator.commands.options import (
    cases_argument,
    json_option,
    results_option,
    study_option,
)
from orchestrator.commands.selection import matching
from orchestrator.errors import InputError, OrchError
from orchestrator.record import Record, RecordError
from orchestrator.study.files import Attempt, Study
from orchestrator.study.find import find_study

COLUMNS = (
    "case_id", "idle_share", "schedule_idle_share", "window_s", "idle_share_of_ranks", "trace",
    "flame",
)  # fmt: skip
_PANELS = 12
_TOKENS = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_ALL = range(10**6)


@click.command()
@cases_argument
@click.option(
    "--heat-map", "picture", type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE", help="Draw devices over time: .png, .svg or .pdf.",
)  # fmt: skip
@click.option(
    "--tokens", default="0-3", show_default=True, metavar="N|N-M|all",
    help="Which tokens to draw; 0 is the prefill.",
)  # fmt: skip
@json_option
@study_option
@results_option
def trace(
    cases: tuple[str, ...],
    picture: Path | None,
    tokens: str,
    as_json: bool,
    study: str | None,
    results: Path,
) -> None:
    """Show when each rank was computing.

    Lists the cases that ran with `trace: true`: the share of time their ranks were idle,
    beside the share that the schedule alone explains.
    """
    found = traced_cases(find_study(results, study), cases)
    shown = tokens_of(tokens)
    if picture is not None:
        _draw(found, shown, picture)
    rows = [each.row() for each in found]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    _print_table(rows)


@dataclass(frozen=True)
class TracedCase:
    """A case, and the latest attempt of it that left a trace."""

    case: Case
    attempt: Attempt
    record: Record | None

    def row(self) -> dict[str, object]:
        """What is told of it."""
        facts = self.record.trace if self.record else None
        told = facts.model_dump() if facts else {}
        flame = self.attempt.flame_file()
        return {name: told.get(name) for name in COLUMNS} | {
            "case_id": self.case.case_id,
            "trace": str(self.attempt.trace_file),
            "flame": str(flame) if flame.is_file() else None,
        }

    def title(self) -> str:
        """Over its panel."""
        case, facts = self.case, self.record.trace if self.record else None
        text = f"{case.model}, {case.label}, {case.gpus} × {case.dtype}"
        if facts is None:
            return text
        return (
            f"{text}: idle {facts.idle_share:.0%} of decode, "
            f"the schedule alone {facts.schedule_idle_share:.0%}"
        )


def traced_cases(study: Study, names: tuple[str, ...]) -> list[TracedCase]:
    """The cases meant that have a trace, in grid order.

    Raises:
        InputError: a name fits no case, or none of them has a trace.
    """
    ids = study.case_ids()
    meant = {case_id for name in names for case_id in matching(ids, name)}
    chosen = [case_id for case_id in ids if not names or case_id in meant]
    found = [traced for case_id in chosen if (traced := _traced(study, case_id))]
    if not found:
        raise InputError(
            f"no trace in study {study.name!r}{' of these cases' * bool(names)}; put "
            f"`trace: true` under `fixed` of its grid and submit it again"
        )
    return found


def _traced(study: Study, case_id: str) -> TracedCase | None:
    for attempt in reversed(study.attempts(case_id)):
        if attempt.trace_file.is_file():
            return TracedCase(study.read_case(case_id), attempt, _record(attempt))
    return None


def _record(attempt: Attempt) -> Record | None:
    try:
        return attempt.read_record()
    except RecordError:
        return None


def read_spans(file: Path) -> list[Span]:
    """The spans of a trace file.

    Raises:
        OrchError: it cannot be read, or is no trace of ours.
    """
    try:
        return of_events(json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise OrchError(f"{file} cannot be read as a trace: {error!r}") from error


def tokens_of(text: str) -> range:
    """Which tokens to draw: `3`, `0-3`, or `all`.

    Raises:
        InputError: it is none of these.
    """
    if text == "all":
        return _ALL
    found = _TOKENS.fullmatch(text)
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else -1
    if last < first:
        raise InputError(
            f"tokens are given as 3, 0-3 (0 is the prefill) or all, got {text!r}"
        )
    return range(first, last + 1)


def _draw(found: list[TracedCase], tokens: range, picture: Path) -> None:
    from orchestrator.figures.heat_map import Panel, draw

    if len(found) > _PANELS:
        raise InputError(
            f"a figure holds at most {_PANELS} heat maps, {len(found)} cases have a trace; "
            f"name the cases to draw"
        )
    panels = [
        Panel(title=each.title(), spans=read_spans(each.attempt.trace_file))
        for each in found
    ]
    try:
        draw(panels, tokens, picture)
    except ValueError as error:
        raise InputError(str(error)) from error
    talk().print(f"heat map: {picture}", markup=False)


def _print_table(rows: list[dict[str, object]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from orchestrator.commands.console import put

    table = Table(box=None, pad_edge=False)
    table.add_column("case")
    table.add_column("idle", justify="right")
    table.add_column("schedule alone", justify="right")
    table.add_column("trace")
    for row in rows:
        cells = (row["case_id"], _percent(row["idle_share"]),
                 _percent(row["schedule_idle_share"]), row["trace"])  # fmt: skip
        table.add_row(*(Text(str(cell)) for cell in cells))
    put(table)


def _percent(share: object) -> str:
    return f"{share:.1%}" if isinstance(share, float) else "-"
