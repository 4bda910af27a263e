"""Commands that draw; `orchestrator.cli` adds them to `orch`."""

from pathlib import Path

import click

from orchestrator.commands.options import results_folder, results_option, study_option


@click.command()
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option(
    "--heat-map", "picture", type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE", help="Draw who computed when: .png, .svg or .pdf.",
)  # fmt: skip
@click.option(
    "--tokens", default="0-3", show_default=True, metavar="N|N-M|all",
    help="Which tokens to draw; 0 is the prefill.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A list of rows on stdout.")
@study_option
@results_option
def trace(
    cases: tuple[str, ...],
    picture: Path | None,
    tokens: str,
    as_json: bool,
    study: str | None,
    results: Path | None,
) -> None:
    """Who computed when, of the cases that ran with `trace: true`."""
    from orchestrator.commands import trace as verb

    folder = results_folder(results)
    verb.trace(folder, study, cases, picture=picture, tokens=tokens, as_json=as_json)


FIGURE_COMMANDS = (trace,)
