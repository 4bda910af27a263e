"""`orch trace`: list a study's traced cases and their idle shares, or draw their heat map."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from orchestrator.commands.options import (
    cases_argument,
    json_option,
    results_option,
    study_option,
)
from orchestrator.commands.selection import matching
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.figures.traced import TracedCase
    from orchestrator.study.files import Study

_PANELS = 12


@click.command()
@cases_argument
@click.option(
    "--heat-map", "picture", type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE", help="Draw devices over time: .png, .svg or .pdf.",
)  # fmt: skip
@click.option(
    "--tokens", default="0-3", show_default=True, metavar="N|N-M|all",
    help="Which tokens the heat map shows; 0 is the prefill.",
)  # fmt: skip
@json_option
@study_option
@results_option
@click.pass_context
def trace(
    context: click.Context,
    cases: tuple[str, ...],
    picture: Path | None,
    tokens: str,
    as_json: bool,
    study: str | None,
    results: Path,
) -> None:
    """Show when each rank was computing.

    Lists the cases that ran with `trace: true`: the share of decode in which their ranks
    were idle, the share that the schedule alone explains, and the files of the trace, for
    Perfetto.
    """
    from orchestrator.study.find import find_study

    tokens_given = context.get_parameter_source("tokens") is not ParameterSource.DEFAULT
    if picture is None and tokens_given:
        raise click.UsageError("--tokens chooses what --heat-map draws: give both")
    found = _chosen(find_study(results, study), cases)
    if picture is not None:
        _draw(found, tokens, picture)
    if as_json:
        print(json.dumps([each.row() for each in found], indent=1))
    else:
        _print_table(found)


def _chosen(study: Study, names: Sequence[str]) -> list[TracedCase]:
    """Return the cases that are meant and have a trace, in grid order."""
    from orchestrator.figures.traced import traced_cases

    ids = study.case_ids()
    meant = {case_id for name in names for case_id in matching(ids, name)}
    found = traced_cases(study, [each for each in ids if not names or each in meant])
    if not found:
        raise InputError(
            f"no trace in study {study.name!r}{' of these cases' * bool(names)}; put "
            f"`trace: true` under `fixed` of its grid and submit it again"
        )
    return found


def _draw(found: Sequence[TracedCase], tokens: str, picture: Path) -> None:
    from orchestrator.figures.heat_map import Panel, draw
    from orchestrator.figures.traced import read_spans, tokens_of

    if len(found) > _PANELS:
        raise InputError(
            f"a figure holds at most {_PANELS} heat maps, {len(found)} cases have a trace; "
            f"name the cases to draw"
        )
    shown = tokens_of(tokens)
    panels = [
        Panel(title=each.title(), spans=read_spans(each.attempt.trace_file))
        for each in found
    ]
    try:
        draw(panels, shown, picture)
    except ValueError as error:
        raise InputError(str(error)) from error
    click.echo(f"heat map: {picture}", err=True)


def _print_table(found: Sequence[TracedCase]) -> None:
    from rich.text import Text

    from orchestrator.commands.console import fits, listing, print_data, stdout

    columns = ("case", "strategy", "idle", "schedule alone", "files")
    rows = []
    for each in found:
        row = each.row()
        shares = (_percent(row[name]) for name in ("idle_share", "schedule_idle_share"))
        files = "\n".join(_near(row[name]) for name in ("trace", "flame") if row[name])
        rows.append(
            [
                Text(text)
                for text in (each.case.case_id, each.case.label, *shares, files)
            ]
        )
    below = None if fits(columns, rows, stdout().width) else 0
    print_data(listing(columns, rows, below))


def _near(file: object) -> str:
    """Return the path from here, where the file lies below this folder."""
    near = os.path.relpath(str(file))
    return str(file) if near.startswith("..") else near


def _percent(share: object) -> str:
    return f"{share:.1%}" if isinstance(share, float) else "-"
