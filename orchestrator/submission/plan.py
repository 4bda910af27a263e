"""What one `orch submit` would do with each case of its grid; decides, and changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.case import Case
from orchestrator.clusters.cluster import Cluster, load_cluster
from orchestrator.clusters.detect import detect
from orchestrator.grids.grid import Grid, load_grid, names_a_file
from orchestrator.runner import Runner
from orchestrator.study.case_status import MISSING, CaseStatus, case_statuses
from orchestrator.study.files import Study
from orchestrator.study.find import named_study
from orchestrator.study.ledger import Ledger
from orchestrator.submission.job_states import RunnerOf, asker, runner_for, runner_of


@dataclass(frozen=True)
class Request:
    """What was typed after `orch submit`."""

    grid: Path
    results: Path
    cluster: str | None = None
    study: str | None = None
    subset: str | None = None
    cases_per_job: int | None = None
    """Cases of one job, where it is not to be the profile's number."""


@dataclass(frozen=True)
class Target:
    """What a request means: which cases go where."""

    request: Request
    grid: Grid
    study: Study
    cluster: Cluster
    cluster_name: str
    """Name or absolute file of the profile, as the ledger keeps it."""
    runner: Runner


@dataclass(frozen=True)
class Plan:
    """What is to be done with each case."""

    statuses: Mapping[str, CaseStatus]
    """Of every case of the grid, in its order."""
    pruned: Mapping[str, str]
    """Case id → why it cannot fit."""
    todo: tuple[Case, ...]
    """What is to be submitted."""
    others: int = 0
    """Cases that the study has of earlier grids."""


def read_target(request: Request, *, dry_run: bool) -> Target:
    """Read the grid and the cluster's profile.

    Raises:
        InputError: one of them cannot be right.
    """
    grid = load_grid(request.grid, dry_run=dry_run, subset=request.subset)
    name = grid.study if request.study is None else request.study
    study = named_study(request.results, name)
    cluster, called = _cluster(request.cluster or grid.cluster, request.cases_per_job)
    return Target(request, grid, study, cluster, called, runner_for(cluster))


def _cluster(name: str | None, cases_per_job: int | None) -> tuple[Cluster, str]:
    name = name or detect().name
    cluster = load_cluster(
        name, {"cases_per_job": cases_per_job} if cases_per_job else None
    )
    if names_a_file(name):
        name = str(Path(name).expanduser().absolute())
    return cluster, name


def plan(target: Target, ledger: Ledger, runner_of: RunnerOf = runner_of) -> Plan:
    """Decide for each case of the grid."""
    cases = {case.case_id: case for case in target.grid.cases}
    known = set(target.study.case_ids())
    ids = [case_id for case_id in cases if case_id in known]
    found = {
        each.case_id: each
        for each in case_statuses(
            target.study, ledger, asker(target.study, runner_of), ids
        )
    }
    statuses = {
        case_id: found.get(case_id)
        or CaseStatus(case_id=case_id, status="new", case=case)
        for case_id, case in cases.items()
    }
    missing = [
        case
        for case_id, case in cases.items()
        if statuses[case_id].status in MISSING | {"pruned"}
    ]
    pruned = {
        case.case_id: reason
        for case in missing
        if (reason := target.runner.misfit(case))
    }
    todo = tuple(case for case in missing if case.case_id not in pruned)
    return Plan(statuses, pruned, todo, len(known - cases.keys()))


def file_plan(target: Target, plan: Plan) -> None:
    """Write the cases, the forecast's refusals and the study's facts; under its lock."""
    study = target.study
    for case in target.grid.cases:
        study.file_case(case)
    for case_id, reason in plan.pruned.items():
        study.prune(case_id, reason)
    for case in plan.todo:
        if plan.statuses[case.case_id].status == "pruned":
            study.unprune(case.case_id)
    study.write_grid(target.grid.text)
    study.write_facts(
        {
            "cases": _in_order(target, list(plan.statuses)),
            "cluster": target.cluster_name,
            "grid": str(target.request.grid.absolute()),
            "submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _in_order(target: Target, ids: list[str]) -> list[str]:
    """The grid's cases in its order, then those of earlier grids; a subset changes no order."""
    before = target.study.ordered_ids()
    first, second = (ids, before) if target.request.subset is None else (before, ids)
    known = set(first)
    return [*first, *(case_id for case_id in second if case_id not in known)]
