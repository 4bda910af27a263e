"""`orch cancel`: end the jobs of cases, by job id only."""

import sys
from collections import defaultdict
from pathlib import Path

import click

from orchestrator.commands.options import (
    cases_argument,
    confirm,
    results_option,
    study_option,
    yes_option,
)
from orchestrator.commands.selection import Choice, Confirm, agree, choose, of_status
from orchestrator.errors import InputError
from orchestrator.study.case_status import CaseStatus
from orchestrator.study.files import Study
from orchestrator.study.find import find_study
from orchestrator.study.ledger import LedgerWriter
from orchestrator.study.lock import locked
from orchestrator.submission.job_states import runner_of, study_statuses
from orchestrator.submission.submit import settle_interrupted
from orchestrator.units import counted


@click.command()
@cases_argument
@click.option("--all", "everything", is_flag=True, help="Every job of the study.")
@click.option(
    "--status", "statuses", type=click.Choice(("pending", "running")), multiple=True,
    help="Only cases of this status.",
)  # fmt: skip
@yes_option
@study_option
@results_option
def cancel(
    cases: tuple[str, ...],
    everything: bool,
    statuses: tuple[str, ...],
    yes: bool,
    study: str | None,
    results: Path,
) -> None:
    """End the jobs of cases that wait or run.

    CASE is a case id, a part of one, or a pattern such as '*70b*'.
    """
    if everything and cases:
        raise click.UsageError("--all is every job: name cases or take --all, not both")
    choice = Choice(cases, statuses)
    sys.exit(
        cancel_cases(
            results, study, choice, everything=everything, yes=yes, confirm=confirm
        )
    )


def cancel_cases(
    results: Path,
    name: str | None,
    choice: Choice,
    *,
    everything: bool,
    yes: bool,
    confirm: Confirm,
) -> int:
    """End the jobs of the chosen cases that wait or run; the exit code.

    Raises:
        InputError: nothing was chosen, or it was not confirmed.
    """
    if choice.is_open and not everything:
        raise InputError("name the cases to cancel, or filter them, or say --all")
    study = find_study(results, name)
    with locked(study.lock_file):
        settle_interrupted(study)  # what an interrupted submit left behind counts too
        found = study_statuses(study)
        active = of_status(choose(found, choice), "pending", "running")
        if not active:
            click.echo("nothing to cancel: none of these cases waits or runs", err=True)
            return 0
        jobs = _jobs(active)
        alive = of_status(found, "pending", "running")
        cases = [each for each in alive if each.job_id in jobs]
        what = f"{counted(len(jobs), 'job')} with {counted(len(cases), 'case')}"
        agree(f"cancel {what}", len(cases), yes=yes, confirm=confirm)
        _end(study, jobs)
    click.echo(f"cancelled {what}", err=True)
    return 0


def _jobs(active: list[CaseStatus]) -> dict[str, CaseStatus]:
    """Job id → a case of it."""
    return {each.job_id: each for each in active if each.job_id is not None}


def _end(study: Study, jobs: dict[str, CaseStatus]) -> None:
    by_key: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for job_id, each in jobs.items():
        if each.asked is not None:
            submission = each.asked.submission
            by_key[submission.cluster, submission.key].append(job_id)
    ledger = LedgerWriter(study.ledger_file)
    by_cluster: defaultdict[str, list[str]] = defaultdict(list)
    for (cluster, key), job_ids in by_key.items():
        ledger.cancel(key, job_ids)
        by_cluster[cluster] += job_ids
    for cluster, job_ids in by_cluster.items():
        runner_of(cluster).cancel(study, job_ids)
