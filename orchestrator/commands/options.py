"""Options that several commands have, and what the shell completes them with."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def complete_subset(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Complete the name of a subset of the grid that is given before it."""
    import yaml

    grid = context.params.get("grid")
    try:
        subsets = yaml.safe_load(grid.read_bytes())["subsets"] if grid else {}
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []  # `orch submit` says what is wrong with it
    return _begins([*subsets], typed) if isinstance(subsets, dict) else []


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
yes_option = click.option(
    "--yes", "-y", is_flag=True, help="Do not ask for confirmation."
)


def checked_by(parse: Callable[[str], object]) -> Callable[..., Any]:
    """Return a callback that blames an option for text which `parse` refuses."""

    def check(
        context: click.Context, parameter: click.Parameter, given: str | None
    ) -> str | None:
        try:
            if given is not None:
                parse(given)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error
        return given

    return check


def confirm(question: str) -> bool:
    """Ask on the terminal; without a terminal the answer is no."""
    return sys.stdin.isatty() and click.confirm(question, err=True)
