"""`orch retry`: run failed cases again where that can help.

cause                       retried by default?         otherwise with
lost preempted cancelled
launch nccl unknown         if the record says so       --cause or its name
node_fail                   yes, on other nodes
timeout                     no                          --case-time
oom_host                    no                          --host-memory
oom_gpu invalid_result
config                      no, it would fail again     --anyway
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from orchestrator.case import Case
from orchestrator.clusters.cluster import load_cluster
from orchestrator.clusters.parts import size_bytes
from orchestrator.commands.options import (
    cases_argument,
    checked_by,
    confirm,
    results_option,
    study_option,
    yes_option,
)
from orchestrator.commands.selection import Choice, Confirm, agree, choose, of_status
from orchestrator.study.case_status import CaseStatus, case_statuses
from orchestrator.study.files import Study
from orchestrator.study.find import find_study
from orchestrator.study.lock import locked
from orchestrator.submission.job_states import asker, runner_for
from orchestrator.submission.submit import (
    entry_of,
    settle_interrupted,
    submit_cases,
)
from orchestrator.units import counted, seconds

_MENDED_BY = {"timeout": "case_time", "oom_host": "host_memory"}
_OPTION = {"timeout": "--case-time 2h", "oom_host": "--host-memory 64GiB"}


STATUSES = ("lost", "failed", "invalid", "oom")
CAUSES = ("oom_gpu", "oom_host", "timeout", "preempted", "node_fail", "nccl", "launch",
          "config", "invalid_result", "cancelled", "lost", "unknown")  # fmt: skip


@click.command()
@cases_argument
@click.option(
    "--cause", "causes", type=click.Choice(CAUSES), multiple=True, metavar="CAUSE",
    help=f"Only this cause: {', '.join(CAUSES)}.",
)  # fmt: skip
@click.option(
    "--status", "statuses", type=click.Choice(STATUSES), multiple=True,
    help="Only cases of this status.",
)  # fmt: skip
@click.option(
    "--case-time", metavar="TIME", callback=checked_by(seconds),
    help="Time for each case, such as 2h.",
)  # fmt: skip
@click.option(
    "--host-memory", metavar="SIZE", callback=checked_by(size_bytes),
    help="Main memory for each GPU, such as 64GiB.",
)  # fmt: skip
@click.option(
    "--cases-per-job",
    type=click.IntRange(1),
    metavar="N",
    help="Cases that one job runs in turn.",
)
@click.option("--exclude", metavar="NODE", multiple=True, help="Avoid this node.")
@click.option(
    "--anyway", is_flag=True, help="Retry also what is expected to fail again."
)
@yes_option
@study_option
@results_option
def retry(
    cases: tuple[str, ...],
    causes: tuple[str, ...],
    statuses: tuple[str, ...],
    case_time: str | None,
    host_memory: str | None,
    cases_per_job: int | None,
    exclude: tuple[str, ...],
    anyway: bool,
    yes: bool,
    study: str | None,
    results: Path,
) -> None:
    """Run failed cases again where that can help.

    CASE is a case id, a part of one, or a pattern such as '*70b*'; by default
    all failed cases of the study.
    """
    choice = Choice(cases, statuses, causes)
    change = Change(case_time, host_memory, cases_per_job, exclude, anyway)
    sys.exit(retry_cases(results, study, choice, change, yes=yes, confirm=confirm))


@dataclass(frozen=True)
class Change:
    """What is different this time."""

    case_time: str | None = None
    host_memory: str | None = None
    """Per device."""
    cases_per_job: int | None = None
    exclude: tuple[str, ...] = ()
    anyway: bool = False
    """Retry also what is expected to fail again."""

    def of_profile(self, device: str | None, nodes: Iterable[str]) -> dict[str, Any]:
        """Return the change as keys of a cluster's profile."""
        changes: dict[str, Any] = {}
        if self.case_time:
            changes["case_time"] = self.case_time
        if self.cases_per_job:
            changes["cases_per_job"] = self.cases_per_job
        if self.host_memory and device:
            changes["devices"] = {device: {"host_memory": self.host_memory}}
        if avoided := sorted({*self.exclude, *nodes}):
            changes["exclude_nodes"] = avoided
        return changes


@dataclass
class _Sorted:
    again: list[CaseStatus] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """For each other case, why it is not run again."""


def retry_cases(
    results: Path,
    name: str | None,
    choice: Choice,
    change: Change,
    *,
    yes: bool,
    confirm: Confirm,
) -> int:
    """Submit the chosen failed cases again. Return the exit code.

    Raises:
        InputError: it was not confirmed, or a change cannot be right.
    """
    study = find_study(results, name)
    with locked(study.lock_file):
        found = case_statuses(study, settle_interrupted(study), asker(study))
        failed = of_status(choose(found, choice), "failed", "lost", "invalid", "oom")
        split = _sort(failed, choice, change)
        for line in split.left:
            click.echo(line, err=True)
        if not split.again:
            click.echo("nothing to run again", err=True)
            return 0
        what = f"run {counted(len(split.again), 'case')} again"
        agree(what, len(split.again), yes=yes, confirm=confirm)
        problems = _submit(study, split.again, change)
    for problem in problems:
        click.echo(f"refused: {problem}", err=True)
    if not problems:
        click.echo(f"submitted {counted(len(split.again), 'case')} again", err=True)
    return 1 if problems else 0


def _sort(failed: list[CaseStatus], choice: Choice, change: Change) -> _Sorted:
    split = _Sorted()
    for each in failed:
        reason = why_not(each, choice, change)
        if reason:
            split.left.append(f"{each.case_id}: {reason}")
        else:
            split.again.append(each)
    return split


def why_not(each: CaseStatus, choice: Choice, change: Change) -> str | None:
    """Return why the case is not run again, or None if it is."""
    cause = each.cause or "unknown"
    if change.anyway or (each.status == "lost" and cause not in _MENDED_BY):
        return None
    if cause in _MENDED_BY:
        if getattr(change, _MENDED_BY[cause]):
            return None
        return f"{cause} would fail again: give {_OPTION[cause]} (or --anyway)"
    named = bool(choice.names) or cause in choice.causes
    if each.retryable or (named and each.status == "failed"):
        return None
    return f"{cause} would fail again: {each.remedy or 'change the case'} (or --anyway)"


def _submit(study: Study, again: list[CaseStatus], change: Change) -> list[str]:
    problems: list[str] = []
    by_cluster: dict[str, list[CaseStatus]] = {}
    for each in again:
        if each.asked is None:
            problems.append(
                f"{each.case_id}: it was never submitted; `orch submit` does"
            )
        else:
            by_cluster.setdefault(each.asked.submission.cluster, []).append(each)
    for cluster, group in by_cluster.items():
        problems += _submit_to(study, cluster, group, change)
    return problems


def _submit_to(
    study: Study, name: str, group: list[CaseStatus], change: Change
) -> tuple[str, ...]:
    profile = load_cluster(name)
    nodes = {
        node for each in group if each.cause == "node_fail" for node in _nodes(each)
    }
    changed = load_cluster(name, change.of_profile(profile.device, nodes))
    cases = [case for each in group if (case := _case(study, each)) is not None]
    entries = {each.case_id: entry_of(study, each) for each in group}
    return submit_cases(study, cases, entries, runner_for(changed), name).problems


def _case(study: Study, each: CaseStatus) -> Case | None:
    return each.case or study.read_case(each.case_id)


def _nodes(each: CaseStatus) -> set[str]:
    """Return the nodes that the case ran on; of a job without a record, Slurm's list."""
    if each.record is not None and each.record.ranks:
        return {rank.host for rank in each.record.ranks}
    hosts = each.job.hosts if each.job else ""
    return {hosts} if hosts else set()
