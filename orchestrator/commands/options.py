"""Options that several commands have, and what the shell completes them with."""

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from orchestrator.checkout import checkout


def complete_study(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Names of studies, for the shell."""
    folder = context.params.get("results") or os.environ.get("ORCH_RESULTS")
    results = Path(folder) if folder else checkout() / "results"
    names = sorted(file.parent.name for file in results.glob("*/study.json"))
    return [CompletionItem(name) for name in names if name.startswith(typed)]


def complete_cluster(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Names of profiles, for the shell."""
    names = sorted(file.stem for file in checkout().glob("jobs/clusters/*.yaml"))
    return [CompletionItem(name) for name in names if name.startswith(typed)]


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path),
    envvar="ORCH_RESULTS", show_envvar=True, is_eager=True,
    help="Folder of the studies.  [default: results/ of the checkout]",
)  # fmt: skip
study_option = click.option(
    "--study", metavar="NAME", shell_complete=complete_study,
    help="Which study.  [default: the one last submitted to]",
)  # fmt: skip


def results_folder(given: Path | None) -> Path:
    """The folder of the studies."""
    root = checkout()
    return (given or root / "results").resolve()
