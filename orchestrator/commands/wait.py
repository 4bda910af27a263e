"""Wait until the cases of a study have ended, and show each as it ends."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from orchestrator.commands.console import STYLES, counts, duration, note, stderr
from orchestrator.study.case_status import ACTIVE, CaseStatus, case_statuses
from orchestrator.study.files import Study
from orchestrator.study.ledger import read_ledger
from orchestrator.submission.job_states import asker

GOOD = frozenset({"ok", "oom", "pruned"})
"""Statuses that are results: what does not fit is one too."""


def wait_for(study: Study, case_ids: Sequence[str], poll_s: float) -> int:
    """Show the cases as they end. Return 0 if each has a result, 1 if one failed or was lost."""
    console = stderr()
    ended: dict[str, CaseStatus] = {}
    try:
        with _progress(console) as progress:
            task = progress.add_task("", total=len(case_ids))
            while len(ended) < len(case_ids):
                began = time.monotonic()
                active = _look(study, case_ids, ended, console)
                progress.update(task, completed=len(ended), description=_now(active))
                if active:
                    time.sleep(pause_s(poll_s, time.monotonic() - began))
    except KeyboardInterrupt:
        console.print(f"the jobs go on; `orch status --study {study.name}` shows them")
        return 130
    console.print(f"{study.name}: {counts(ended.values())}")
    return 0 if all(each.status in GOOD for each in ended.values()) else 1


def pause_s(poll_s: float, look_s: float) -> float:
    """Return the seconds until the next look, which may share cores with what is measured."""
    return max(poll_s, 20 * look_s)


def _look(
    study: Study,
    case_ids: Sequence[str],
    ended: dict[str, CaseStatus],
    console: Console,
) -> list[CaseStatus]:
    """Show which cases ended since the last look. Return the active ones."""
    open_ids = [case_id for case_id in case_ids if case_id not in ended]
    found = case_statuses(study, read_ledger(study.ledger_file), asker(study), open_ids)
    for each in found:
        if each.status not in ACTIVE:
            ended[each.case_id] = each
            _show(console, each)
    return [each for each in found if each.status in ACTIVE]


def _show(console: Console, each: CaseStatus) -> None:
    took = f"  {duration(each.elapsed_s)}" if each.elapsed_s is not None else ""
    why = f"  {note(each)}" if each.status != "ok" else ""
    status = (f"{each.status:8}", STYLES[each.status])
    console.print(Text.assemble(status, f"{each.case_id}{took}{why}"))


def _now(active: Sequence[CaseStatus]) -> str:
    running = [each for each in active if each.status == "running"]
    if not running:
        return "waiting" if active else ""
    return f"{running[0].case_id} {note(running[0])}".strip()


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False), console=console, transient=True,
        refresh_per_second=1,  # it may share the cores with what is measured
        disable=not console.is_terminal,
    )  # fmt: skip
