"""Kills `orch submit` at every instant, and submits again: a program of its own.

    python tests/orchestrator/kill_sweep.py FOLDER

An instant is the moment before a call that changes something outside the process (a file that
is opened for writing, linked, renamed or removed, a folder made, a process started). The n-th
submit dies by SIGKILL before its n-th such call; the last one lives. Jobs are processes of their
own that go on. Prints how many instants there were.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.case import Case
from orchestrator.clusters.cluster import load_cluster
from orchestrator.commands.submit import submit_target
from orchestrator.grids.grid import Grid
from orchestrator.job_spec import JobSpec
from orchestrator.runner import JobBatch, JobState
from orchestrator.study.files import Study
from orchestrator.study.ledger import Submission
from orchestrator.submission.plan import Request, Target
from tests.orchestrator.made import a_case
from tests.orchestrator.quick_launch import work

CASES = [a_case(gpus=gpus) for gpus in (1, 2, 4)]
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.fork", "os.utime")


class ForkRunner:
    """Two jobs per submission, forked, one at a time; a job is known by a file it makes."""

    name = "fork"

    def misfit(self, _case: Case) -> str | None:
        return None

    def batches(self, cases: Sequence[object]) -> list[JobBatch]:
        jobs = tuple(filter(None, (tuple(cases[:1]), tuple(cases[1:]))))
        return [JobBatch(jobs=jobs, timeout_s=60)] if jobs else []

    def submit(
        self, study: Study, batch: JobBatch, specs: Sequence[JobSpec]
    ) -> list[str]:
        for index, spec in enumerate(specs):
            file = study.job_spec_file(spec.key, index)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(spec.model_dump_json())
        if os.fork() == 0:
            os.setsid()
            self._jobs(study, specs)
            os._exit(0)
        return [f"{spec.key}.{index}" for index, spec in enumerate(specs)]

    def _jobs(self, study: Study, specs: Sequence[JobSpec]) -> None:
        (study.job_dir(specs[0].key) / "started").touch()
        with (study.folder / "machine").open("w") as machine:
            fcntl.flock(machine, fcntl.LOCK_EX)
            for index, spec in enumerate(specs):
                work(study.job_spec_file(spec.key, index))
        (study.job_dir(specs[0].key) / "ended").touch()

    def find(
        self, study: Study, submissions: Sequence[Submission]
    ) -> dict[str, list[str]]:
        return {
            each.key: [f"{each.key}.{i}" for i in range(len(each.jobs))]
            for each in submissions
            if (study.job_dir(each.key) / "started").exists()
        }

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        return {job_id: self._state(study, job_id) for job_id in jobs}

    def _state(self, study: Study, job_id: str) -> JobState:
        over = (study.job_dir(job_id.rpartition(".")[0]) / "ended").exists()
        return JobState(state="ended" if over else "running")

    def cancel(self, study: Study, job_ids: Sequence[str]) -> None:
        raise AssertionError


def submit(results: Path) -> None:
    """What `orch submit` does once the grid is read."""
    grid = Grid(study="swept", cluster="local", cases=CASES, text="", notes=[])
    runner = ForkRunner()
    request = Request(Path("grid.yaml"), results)
    study = Study(results / "swept")
    local = load_cluster("local")
    target = Target(request, grid, study, local, "local", runner)
    submit_target(target, lambda name: runner)


def submit_and_die(results: Path, instant: int) -> bool:
    """Submit in a process that dies before its `instant`-th change; whether it died."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if _is_change(event, arguments):
                count += 1
                if count == instant and os.getpid() == me:
                    os.kill(me, signal.SIGKILL)

        me = os.getpid()
        sys.addaudithook(hook)
        submit(results)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, instant
    return os.WIFSIGNALED(status)


def _is_change(event: str, arguments: tuple[object, ...]) -> bool:
    if event != "open":
        return event in CHANGES
    flags = arguments[2]
    return isinstance(flags, int) and bool(
        flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )


def settle(results: Path) -> None:
    """Submit again until nothing is missing: once, unless a job is still at work."""
    deadline = time.monotonic() + 60
    submit_and_die(results, -1)
    study = Study(results / "swept")
    while not all(
        (study.case_dir(case.case_id) / "attempt-1" / "record.json").exists()
        for case in CASES
    ):
        assert time.monotonic() < deadline, f"{results}: cases are missing"
        time.sleep(0.01)


def main(folder: Path) -> None:
    """Sweep until a submit outlives all its instants."""
    instant = 0
    died = True
    while died:
        instant += 1
        results = folder / f"at-{instant}"
        results.mkdir()
        died = submit_and_die(results, instant)
        settle(results)
    print(instant - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
