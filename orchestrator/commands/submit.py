"""`orch submit`: submit the cases of a grid that are not done yet, each exactly once."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from orchestrator.commands.console import (
    STYLES,
    fits,
    listing,
    note,
    print_data,
    stdout,
)
from orchestrator.commands.options import (
    complete_cluster,
    complete_study,
    complete_subset,
    results_option,
)
from orchestrator.commands.selection import short_names
from orchestrator.commands.wait import wait_for
from orchestrator.study.case_status import ACTIVE, CaseStatus, Status
from orchestrator.study.ledger import read_ledger
from orchestrator.study.lock import Holder, locked
from orchestrator.submission.job_states import RunnerOf, runner_of
from orchestrator.submission.plan import (
    Plan,
    Request,
    Target,
    file_plan,
    plan,
    read_target,
)
from orchestrator.submission.submit import (
    Outcome,
    entry_of,
    settle_interrupted,
    submit_cases,
)
from orchestrator.units import counted


@click.command()
@click.option(
    "--grid", required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The grid, a YAML file.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Show every case and script; submit nothing."
)
@click.option(
    "--cluster", metavar="NAME", shell_complete=complete_cluster,
    help="Where to run: a site of `orch clusters`, or a file.  [default: the grid's]",
)  # fmt: skip
@click.option(
    "--study", metavar="NAME", shell_complete=complete_study,
    help="Name of the study.  [default: the grid's]",
)  # fmt: skip
@click.option(
    "--subset", metavar="NAME", shell_complete=complete_subset,
    help="Only this named subset of the grid.",
)  # fmt: skip
@click.option(
    "--cases-per-job", type=click.IntRange(1), metavar="N",
    help="Cases that one job runs in turn.  [default: the cluster's]",
)  # fmt: skip
@click.option(
    "--test-only", is_flag=True,
    help="Like --dry-run, and ask Slurm whether it would accept each kind of job.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Stay until every case has ended.")
@results_option
def submit(
    grid: Path,
    dry_run: bool,
    cluster: str | None,
    study: str | None,
    subset: str | None,
    cases_per_job: int | None,
    test_only: bool,
    wait: bool,
    results: Path,
) -> None:
    """Submit the cases of a grid that have no result yet.

    Cases that are pending, running, measured or failed are left alone, so you can give the
    same command again at any time.
    """
    if wait and (dry_run or test_only):
        raise click.UsageError(
            "nothing is submitted that --wait could wait for: leave it"
        )
    request = Request(grid, results, cluster, study, subset, cases_per_job)
    if dry_run or test_only:
        sys.exit(_dry_run(request, ask=test_only))
    sys.exit(_submit(request, wait=wait))


def _dry_run(request: Request, *, ask: bool = False) -> int:
    """Show every case, its state and whether it would be submitted; change nothing.

    Args:
        ask: ask Slurm whether it would take each kind of job; exit code 1 where it would not.
    """
    target = read_target(request, dry_run=True)
    plans = plan(target, read_ledger(target.study.ledger_file))
    print_data(_table(plans))
    all_taken = True
    for batch in target.runner.batches(plans.todo):
        described = target.runner.described(batch, target.study.name)
        if described:
            print_data("")
        for name, value in described.items():
            start = "\n" if "\n" in value else " "
            print_data(Text(f"{name}:{start}{value}"))
        if ask:
            taken, said = target.runner.test(batch, target.study.name)
            print_data(
                Text(f"\nSlurm would {'accept' if taken else 'refuse'} it: {said}")
            )
            all_taken &= taken
    _say(
        [
            *target.grid.notes,
            _summary(target, plans),
            "a dry run: nothing was submitted",
        ]
    )
    return 0 if all_taken else 1


def _submit(request: Request, *, wait: bool) -> int:
    """Submit what is missing; the exit code."""
    target = read_target(request, dry_run=False)
    done = submit_target(target)
    _say([*target.grid.notes, _summary(target, done.plan), *done.says])
    if wait:
        return wait_for(target.study, list(done.plan.statuses), target.cluster.poll_s)
    return 1 if done.failed else 0


@dataclass
class Done:
    """What was done, and the messages about it."""

    plan: Plan
    says: list[str] = field(default_factory=list)
    failed: bool = False


def submit_target(target: Target, runner_of: RunnerOf = runner_of) -> Done:
    """Submit the cases that have no result yet, under the study's lock."""
    study = target.study
    study.create()
    with locked(study.lock_file, on_wait=_say_waiting):
        ledger = settle_interrupted(study, runner_of)
        plans = plan(target, ledger, runner_of)
        file_plan(target, plans)
        entries = {
            case.case_id: entry_of(study, plans.statuses[case.case_id])
            for case in plans.todo
        }
        outcome = submit_cases(
            study, plans.todo, entries, target.runner, target.cluster_name
        )
    says = _says(target, plans, outcome)
    if ledger.damaged_lines:
        says.append(
            f"{study.ledger_file}: {counted(ledger.damaged_lines, 'line')} cannot be read; jobs "
            f"that only such a line names are not known: look for them (on Slurm, with squeue)"
        )
    return Done(plans, says, bool(outcome.problems))


def _say_waiting(holder: Holder) -> None:
    _say([f"another orch works on this study ({holder}); waiting for it"])


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line, err=True)


def _says(target: Target, plans: Plan, outcome: Outcome) -> list[str]:
    """Return the messages after a submit."""
    says = [f"refused: {problem}" for problem in outcome.problems]
    if outcome.problems:
        says.append(
            f"{len(plans.todo) - outcome.accepted} cases were not accepted; the same command "
            f"submits them again"
        )
    bad = [each for each in plans.statuses.values() if each.status in _FAILED]
    if bad:
        says.append(
            f"{len(bad)} failed before and stay as they are; `orch retry` runs them again "
            f"(`orch status` says why they failed)"
        )
    says.append(f"`orch status --study {target.study.name}` shows how it goes")
    return says


_FAILED = frozenset({"failed", "invalid"})


def _summary(target: Target, plans: Plan) -> str:
    found = plans.statuses.values()
    active = sum(each.status in ACTIVE for each in found)
    recorded = sum(each.record is not None for each in found)
    parts = [
        f"{len(plans.todo)} to submit to {target.cluster.name}" if plans.todo else "",
        f"{recorded} recorded already" if recorded else "",
        f"{active} pending or running" if active else "",
        f"{len(plans.pruned)} cannot fit" if plans.pruned else "",
    ]
    cases = counted(len(found), "case")
    summary = f"{target.study.name}: {cases}: {', '.join(filter(None, parts))}"
    if plans.others and target.request.subset is None:
        summary += (
            f"; the study keeps {plans.others} more, of earlier grids (--study NAME keeps "
            f"grids apart)"
        )
    return summary


def _table(plans: Plan) -> Table:
    columns: Sequence[str] = ("case", "strategy", "status", "action", "note")
    todo = {case.case_id for case in plans.todo}
    rows = [
        _row(each, each.case_id in todo, plans.pruned.get(each.case_id))
        for each in plans.statuses.values()
    ]
    if fits(columns, rows, stdout().width):
        return listing(columns, rows)
    names = short_names(list(plans.statuses))
    narrow = [_narrow_row(names[row[0].plain], row) for row in rows]
    return listing(("case", *columns[2:]), narrow, below=0)


def _row(each: CaseStatus, goes: bool, misfit: str | None) -> list[Text]:
    status: Status = "pruned" if misfit else each.status
    return [
        Text(each.case_id), Text(each.case.label if each.case else ""),
        Text(status, STYLES[status]), Text("submit" if goes else "skip"),
        Text(misfit or note(each)),
    ]  # fmt: skip


def _narrow_row(name: str, row: Sequence[Text]) -> list[Text]:
    """Return the row without its strategy, unless the name leaves something of it out."""
    _, label, status, action, why = row
    in_name = f"_{label.plain}_" in name
    parts = [part.plain for part in ((why,) if in_name else (label, why)) if part]
    return [Text(name), status, action, Text("; ".join(parts))]
