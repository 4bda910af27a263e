"""Commands about jobs and the machines they run on; `orchestrator.cli` adds them to `orch`."""

import sys
from pathlib import Path

import click

from orchestrator.commands.options import (
    complete_cluster,
    results_folder,
    results_option,
    study_option,
)

STATUSES = ("pending", "running", "lost", "failed", "invalid", "oom")
CAUSES = ("oom_gpu", "oom_host", "timeout", "preempted", "node_fail", "nccl", "launch",
          "config", "invalid_result", "cancelled", "lost", "unknown")  # fmt: skip

_cases = click.argument("cases", nargs=-1, metavar="[CASE]...")
_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask, however many.")


def _confirm(question: str) -> bool:
    return sys.stdin.isatty() and click.confirm(question, err=True)


@click.command()
@click.argument("case", metavar="CASE")
@click.option("--follow", "-f", is_flag=True, help="Go on until the case ended.")
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="[default: latest]"
)
@study_option
@results_option
def logs(
    case: str,
    follow: bool,
    attempt: int | None,
    study: str | None,
    results: Path | None,
) -> None:
    """What the workers of CASE wrote (a case id, or a part of one that fits no other)."""
    from orchestrator.commands import logs as verb

    folder = results_folder(results)
    sys.exit(verb.logs(folder, study, case, attempt=attempt, follow=follow))


@click.command()
@_cases
@click.option("--all", "everything", is_flag=True, help="Every job of the study.")
@click.option(
    "--status", "statuses", type=click.Choice(("pending", "running")), multiple=True,
    help="Only these.",
)  # fmt: skip
@_yes
@study_option
@results_option
def cancel(
    cases: tuple[str, ...],
    everything: bool,
    statuses: tuple[str, ...],
    yes: bool,
    study: str | None,
    results: Path | None,
) -> None:
    """End the jobs of CASEs that wait or run (case ids, parts of them, or patterns)."""
    from orchestrator.commands import cancel as verb
    from orchestrator.commands.selection import Choice

    choice = Choice(cases, statuses)
    sys.exit(
        verb.cancel(
            results_folder(results), study, choice,
            everything=everything, yes=yes, confirm=_confirm,
        )
    )  # fmt: skip


@click.command()
@_cases
@click.option(
    "--cause", "causes", type=click.Choice(CAUSES), multiple=True,
    help="Only what failed by this.",
)  # fmt: skip
@click.option(
    "--status", "statuses", type=click.Choice(STATUSES[2:]), multiple=True,
    help="Only these.",
)  # fmt: skip
@click.option("--case-time", metavar="TIME", help="Time for each case, such as 2h.")
@click.option(
    "--host-memory", metavar="SIZE", help="Main memory for each GPU, such as 64GiB."
)
@click.option("--pack", type=click.IntRange(1), metavar="N", help="Cases of one job.")
@click.option("--exclude", metavar="NODE", multiple=True, help="Not on this node.")
@click.option("--anyway", is_flag=True, help="Also what will fail again the same way.")
@_yes
@study_option
@results_option
def retry(
    cases: tuple[str, ...],
    causes: tuple[str, ...],
    statuses: tuple[str, ...],
    case_time: str | None,
    host_memory: str | None,
    pack: int | None,
    exclude: tuple[str, ...],
    anyway: bool,
    yes: bool,
    study: str | None,
    results: Path | None,
) -> None:
    """Run failed CASEs again where that can help; all of the study's where none is named."""
    from orchestrator.commands import retry as verb
    from orchestrator.commands.selection import Choice

    choice = Choice(cases, statuses, causes)
    change = verb.Change(case_time, host_memory, pack, exclude, anyway)
    folder = results_folder(results)
    sys.exit(verb.retry(folder, study, choice, change, yes=yes, confirm=_confirm))


@click.command()
@click.argument("cluster", required=False, shell_complete=complete_cluster)
@click.option("--json", "as_json", is_flag=True, help="A list of rows on stdout.")
@click.option(
    "--schema", is_flag=True, help="The JSON Schema of a profile, for editors."
)
def clusters(cluster: str | None, as_json: bool, schema: bool) -> None:
    """The sites that are known; of CLUSTER (a name or a profile's file) all that is."""
    from orchestrator.commands import clusters as verb

    sys.exit(verb.clusters(cluster, as_json=as_json, schema=schema))


@click.command()
@click.option(
    "--cluster", metavar="NAME", shell_complete=complete_cluster,
    help="A profile of jobs/clusters or a file.  [default: the one detected]",
)  # fmt: skip
@click.option("--job", is_flag=True, help="Also run a job of a minute on the cluster.")
@results_option
def doctor(cluster: str | None, job: bool, results: Path | None) -> None:
    """Look whether everything is here that a study needs, and say what to do."""
    from orchestrator.commands import doctor as verb

    sys.exit(verb.doctor(results_folder(results), cluster, job=job))


JOB_COMMANDS = (logs, cancel, retry, clusters, doctor)
"""In the order `orch --help` should think of them."""
