"""`orch collect`: read the records, write the table to stdout."""

import gc
import sys
from pathlib import Path

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from pandas import DataFrame

from orchestrator.commands.options import results_option, study_option
from orchestrator.errors import InputError
from orchestrator.study.find import find_study
from orchestrator.submission.job_states import study_statuses
from orchestrator.tables.agreement import complaint, ids_agree, void
from orchestrator.tables.formats import four_digits, parquet_bytes, shown, text_of
from orchestrator.tables.long import long_frame
from orchestrator.tables.table import comparison, means

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

    It has a row per model and strategy and a column per number of GPUs. A case that does not
    fit in memory shows #, one that failed its cause.
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
        _print(long_frame(found, agrees), kind)
    else:
        table = comparison(found, metric, no_number)
        _print(_for_eyes(means(table.frame), kind), kind)
        print(f"{study.name}: {table.about}", file=sys.stderr)
    if differing := complaint(agrees, no_number):
        print(f"{study.name}: {differing}", file=sys.stderr)


def _for_eyes(frame: DataFrame, kind: str) -> DataFrame:
    """Round the comparison table; JSON and --long keep all digits."""
    if kind == "csv":
        return frame.map(four_digits)
    if kind == "parquet":
        # Its columns cannot hold numbers and words side by side.
        return frame.map(shown, na_action="ignore").astype("string")
    return frame


def _print(frame: DataFrame, kind: str) -> None:
    if kind != "parquet":
        sys.stdout.write(text_of(frame, kind))
        sys.stdout.flush()
        return
    if sys.stdout.isatty():
        raise InputError(
            "Parquet is not for terminals: orch collect --format parquet > table.parquet"
        )
    sys.stdout.buffer.write(parquet_bytes(frame))
    sys.stdout.buffer.flush()
