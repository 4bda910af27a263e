"""Options that several commands have, and what the shell completes them with."""

import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from orchestrator.checkout import checkout
from orchestrator.errors import InputError


def _resolve_results(
    context: click.Context, parameter: click.Parameter, given: Path | None
) -> Path:
    return (given or checkout() / "results").resolve()


def _begins(names: list[str], typed: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(typed)]


def complete_study(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Complete the name of a study."""
    results = context.params.get("results") or checkout() / "results"
    return _begins([file.parent.name for file in results.glob("*/study.json")], typed)


def complete_cluster(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Complete the name of a cluster profile."""
    profiles = checkout().glob("jobs/clusters/*.yaml")
    return _begins([file.stem for file in profiles], typed)


def complete_case(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Complete the id of a case of the study that is meant."""
    from orchestrator.study.find import find_study

    results = context.params.get("results") or checkout() / "results"
    try:
        study = find_study(results, context.params.get("study"))
    except InputError:
        return []
    return _begins(study.case_ids(), typed)


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path),
    envvar="ORCH_RESULTS", show_envvar=True, is_eager=True, callback=_resolve_results,
    help="Folder of the studies.  [default: results/ of the checkout]",
)  # fmt: skip
study_option = click.option(
    "--study", metavar="NAME", shell_complete=complete_study,
    help="Which study.  [default: the one last submitted to]",
)  # fmt: skip
cases_argument = click.argument(
    "cases", nargs=-1, metavar="[CASE]...", shell_complete=complete_case
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a list of rows as JSON."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask, however many.")


def confirm(question: str) -> bool:
    """Ask on the terminal; without a terminal the answer is no."""
    return sys.stdin.isatty() and click.confirm(question, err=True)
