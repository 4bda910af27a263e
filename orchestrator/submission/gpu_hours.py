"""GPU-hours of a study's jobs on Slurm: used so far, and at most to come."""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.study.case_status import ACTIVE, CaseStatus


@dataclass(frozen=True)
class GpuHours:
    """One worker's hour counts as a GPU's."""

    used: float
    """By the last attempt of each case."""
    to_come: float
    """If every job that waits or runs takes all its time."""

    def __str__(self) -> str:
        come = f", at most {_hours(self.to_come)} to come" if self.to_come else ""
        return f"GPU-hours: {_hours(self.used)} used{come}"


def gpu_hours(found: Iterable[CaseStatus]) -> GpuHours | None:
    """Return what the cases took and can still take; None if none of them went to Slurm."""
    used_s = to_come_s = 0.0
    any_slurm = False
    jobs: set[str] = set()
    for each in found:
        if each.case is None or each.asked is None:
            continue
        if each.asked.submission.runner != "slurm":
            continue
        any_slurm = True
        gpus = each.case.gpus
        if each.status != "pending":
            used_s += gpus * (each.elapsed_s or 0.0)
        if each.status in ACTIVE and each.job and each.job_id not in jobs:
            jobs.add(each.job_id or "")
            limit_s, elapsed_s = each.job.limit_s or 0.0, each.job.elapsed_s or 0.0
            to_come_s += gpus * max(0.0, limit_s - elapsed_s)
    return GpuHours(used_s / 3600, to_come_s / 3600) if any_slurm else None


def _hours(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
