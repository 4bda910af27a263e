"""The commands a person types: parse, call one function, say what it returns.

Data goes to stdout, talk and progress to stderr. Exit 2 for misuse, 1 for failure. Everything
heavy is imported by the command that needs it.
"""

import gc
import io
import os
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from orchestrator.checkout import checkout
from orchestrator.cli_figures import FIGURE_COMMANDS
from orchestrator.cli_jobs import JOB_COMMANDS
from orchestrator.commands.options import (
    complete_cluster,
    complete_study,
    results_folder,
    results_option,
    study_option,
)
from orchestrator.errors import OrchError, explained

FORMATS = ("csv", "markdown", "latex", "json", "parquet")


def _complete_metric(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    checkout()  # no command runs that would put it on the path
    from orchestrator.tables.metrics import FACTS, METRICS

    names = (*METRICS, *FACTS)
    return [CompletionItem(name) for name in names if name.startswith(typed)]


_EPILOG = """\b
Shell completion, for bash (zsh and fish alike):
  eval "$(_ORCH_COMPLETE=bash_source orch)"
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(package_name="orch-bench", prog_name="orch")
def orch() -> None:
    """Measure ways of spreading a Llama over GPUs: a grid in, a comparison table out."""
    checkout()  # before the commands import what lies there


@orch.command()
@click.option(
    "--grid", required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file: axes, fixed values, cluster.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Show what would be submitted; do nothing."
)
@click.option(
    "--cluster", metavar="NAME", shell_complete=complete_cluster,
    help="Where to run: a profile of jobs/clusters or a file.  [default: the grid's]",
)  # fmt: skip
@click.option(
    "--study", metavar="NAME", shell_complete=complete_study,
    help="Folder under the results.  [default: the grid's]",
)  # fmt: skip
@click.option("--subset", metavar="NAME", help="Only this named subset of the grid.")
@click.option(
    "--pack", type=click.IntRange(1), metavar="N",
    help="Cases that one job works through.  [default: the cluster's]",
)  # fmt: skip
@click.option(
    "--test-only", is_flag=True,
    help="As --dry-run, and ask Slurm itself whether it would take each kind of job.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Stay until every case ended.")
@results_option
def submit(
    grid: Path,
    dry_run: bool,
    cluster: str | None,
    study: str | None,
    subset: str | None,
    pack: int | None,
    test_only: bool,
    wait: bool,
    results: Path | None,
) -> None:
    """Submit the cases of a grid that are not done yet."""
    from orchestrator.commands import submit as verb
    from orchestrator.submission.plan import Request

    request = Request(grid, results_folder(results), cluster, study, subset, pack)
    if dry_run or test_only:
        sys.exit(verb.dry_run(request, ask=test_only))
    sys.exit(verb.submit(request, wait=wait))


@orch.command()
@study_option
@click.option(
    "--watch", is_flag=True, help="Show it again as it changes, until all ended."
)
@click.option("--json", "as_json", is_flag=True, help="A list of rows on stdout.")
@results_option
def status(study: str | None, watch: bool, as_json: bool, results: Path | None) -> None:
    """What runs, what waits, what failed and why."""
    from orchestrator.commands import status as verb

    if watch and as_json:
        raise click.UsageError("--watch is for people: take it or --json, not both")
    folder = results_folder(results)
    if not watch:
        gc.disable()  # a third of the time of reading 10,000 records
    sys.exit(verb.show(folder, study, watch=watch, as_json=as_json))


@orch.command()
@study_option
@click.option("--long", is_flag=True, help="One row per case with every metric.")
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="csv", show_default=True,
    help="How stdout is written.",
)  # fmt: skip
@click.option(
    "--metric", metavar="NAME", default="output_tok_per_s", show_default=True,
    shell_complete=_complete_metric, help="What the cells of the table show.",
)  # fmt: skip
@results_option
def collect(
    study: str | None, long: bool, kind: str, metric: str, results: Path | None
) -> None:
    """The comparison table: a row per model and strategy, a column per GPU count."""
    from orchestrator.commands import collect as verb

    folder = results_folder(results)
    gc.disable()  # see `status`
    verb.collect(folder, study, long=long, kind=kind, metric=metric)


for command in (*JOB_COMMANDS, *FIGURE_COMMANDS):
    orch.add_command(command)


def _streams() -> None:
    """Have all three standard streams, and none that stops at a sign it cannot show."""
    # Else the next file opened takes a closed one's number, and what is printed goes into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """The `orch` program."""
    _streams()
    try:
        orch(prog_name="orch")
    except OrchError as error:
        click.echo(f"orch: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"orch: {explained(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
