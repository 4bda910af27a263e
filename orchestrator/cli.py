"""The program `orch`: its commands, loaded when they are called, and how errors are printed.

Data goes to stdout, messages to stderr. Exit 2 for misuse, 1 for failure.
"""

import importlib
import io
import os
import sys
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from orchestrator.checkout import checkout
from orchestrator.errors import OrchError, explained


class Verb(NamedTuple):
    """What `orch --help` says of a command without loading it."""

    summary: str
    example: str


VERBS = {
    "submit": Verb(
        "Submit the cases of a grid that have no result yet.",
        "orch submit --grid jobs/grids/demo.yaml --dry-run",
    ),
    "status": Verb(
        "Show what runs, what waits, and what failed and why.",
        "orch status --watch",
    ),
    "collect": Verb(
        "Print the comparison table.",
        "orch collect --metric ttft_s --format markdown",
    ),
    "logs": Verb(
        "Print what the workers of a case wrote.",
        "orch logs llama-2-7b_tensor_2x --follow",
    ),
    "retry": Verb(
        "Run failed cases again where that can help.",
        "orch retry --cause timeout --case-time 2h",
    ),
    "cancel": Verb(
        "End the jobs of cases that wait or run.",
        "orch cancel '*70b*' --status pending",
    ),
    "trace": Verb(
        "Show when each rank was computing.",
        "orch trace --heat-map turns.png --tokens 0-3",
    ),
    "clusters": Verb(
        "List known sites, or show everything about one.",
        "orch clusters sol",
    ),
    "doctor": Verb(
        "Check that everything a study needs is in place.",
        "orch doctor --cluster sol --job",
    ),
}
"""In the order of work; each is a function of that name in `orchestrator.commands`."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and lists all without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        checkout()  # before the command imports what lies there
        module = importlib.import_module(f"orchestrator.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        command.epilog = f"\b\nExample:\n  {VERBS[cmd_name].example}"
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])
        with formatter.section("Examples"):
            for verb in VERBS.values():
                formatter.write(f"{'':{formatter.current_indent}}{verb.example}\n")

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[CompletionItem]:
        verbs = [
            CompletionItem(name, help=verb.summary)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


_EPILOG = """\b
Shell completion, for bash (zsh and fish alike):
  eval "$(_ORCH_COMPLETE=bash_source orch)"
"""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(package_name="orch-bench", prog_name="orch")
def orch() -> None:
    """Benchmark parallel strategies for Llama inference: a grid in, a table out."""


def _streams() -> None:
    """Open standard streams that are closed, and let stdout print what it cannot encode."""
    # Else the next file opened takes a closed one's number, and what is printed goes into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run `orch`; an error becomes a line on stderr and an exit code."""
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
