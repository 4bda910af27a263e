"""`orch collect`: read the records, write the table to stdout."""

import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from orchestrator.commands.options import results_option, study_option
from orchestrator.errors import InputError
from orchestrator.study.find import find_study
from orchestrator.submission.job_states import study_statuses
from orchestrator.tables.agreement import complaint, ids_agree, void
from orchestrator.tables.columns import COLUMNS, Kind
from orchestrator.tables.formats import Rows, four_digits, parquet_bytes, shown, text_of
from orchestrator.tables.long import long_rows
from orchestrator.tables.table import Table, comparison

FORMATS = ("csv", "markdown", "latex", "json", "parquet")


def _complete_metric(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    from orchestrator.tables.metrics import FACTS, METRICS

    names = (*METRICS, *FACTS)
    return [CompletionItem(name) for name in names if name.startswith(typed)]


@click.command()
@study_option
@click.option("--long", is_flag=True, help="One row per case with every metric.")
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="csv", show_default=True,
    help="How the table is written.",
)  # fmt: skip
@click.option(
    "--metric", metavar="NAME", default="output_tok_per_s", show_default=True,
    shell_complete=_complete_metric, help="What the cells of the table show.",
)  # fmt: skip
@results_option
@click.pass_context
def collect(
    context: click.Context,
    study: str | None,
    long: bool,
    kind: str,
    metric: str,
    results: Path,
) -> None:
    """Print the comparison table.

    A row per model and strategy, a column per number of GPUs. A case that does not fit in
    memory is a #; one that failed shows its cause.
    """
    metric_given = context.get_parameter_source("metric") is not ParameterSource.DEFAULT
    if long and metric_given:
        raise click.UsageError("--long has every metric: leave --metric or --long")
    gc.disable()  # a third of the time of reading 10,000 records
    print_table(results, study, long=long, kind=kind, metric=metric)


def print_table(
    results: Path, name: str | None, *, long: bool, kind: str, metric: str
) -> None:
    """Print the comparison table, or every case with every metric."""
    study = find_study(results, name)
    found = study_statuses(study)
    agrees = ids_agree(found)
    no_number = void(found, agrees)
    if long:
        _write(COLUMNS, long_rows(found, agrees), kind)
    else:
        _compare(study.name, comparison(found, metric, no_number), kind)
    if said := complaint(agrees, no_number):
        print(f"{study.name}: {said}", file=sys.stderr)


def _compare(name: str, table: Table, kind: str) -> None:
    if kind == "parquet":
        _write_parquet(*_as_text(table.columns, table.rows))
    else:
        _print(table.columns, _rounded(table.rows, kind), kind)
    print(f"{name}: {table.about}", file=sys.stderr)


def _write(kinds: Mapping[str, Kind], rows: Rows, kind: str) -> None:
    if kind == "parquet":
        _write_parquet(kinds, rows)
    else:
        _print(list(kinds), rows, kind)


def _print(columns: Sequence[str], rows: Rows, kind: str) -> None:
    sys.stdout.write(text_of(columns, rows, kind))
    sys.stdout.flush()


def _write_parquet(kinds: Mapping[str, Kind], rows: Rows) -> None:
    if sys.stdout.isatty():
        raise InputError(
            "Parquet is not for terminals: orch collect --format parquet > table.parquet"
        )
    sys.stdout.buffer.write(parquet_bytes(kinds, rows))
    sys.stdout.buffer.flush()


def _rounded(rows: Rows, kind: str) -> Rows:
    # The comparison table is for eyes; --long and JSON have the digits.
    if kind != "csv":
        return rows
    return [{name: four_digits(value) for name, value in row.items()} for row in rows]


def _as_text(columns: Sequence[str], rows: Rows) -> tuple[Mapping[str, Kind], Rows]:
    """Cells hold numbers and words side by side, which Parquet's columns cannot."""
    kinds: dict[str, Kind] = dict.fromkeys(columns, "text")
    texts = [
        {name: None if row[name] is None else shown(row[name]) for name in columns}
        for row in rows
    ]
    return kinds, texts
