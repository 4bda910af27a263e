"""Runs jobs on this machine, one at a time, through submitit's local executor.

    orch submit ─ local_job start ─ submitit's controller ─ local_job turn ⇒ jobs.launch
                  (a session of its own: closing the terminal or Ctrl-C does not reach it)

`turn` waits for the machine-wide lock, so that no two jobs measure beside each other, and then
becomes `jobs.launch` by exec: its process, known by number and start time, is the job's life.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.case import Case
from orchestrator.checkout import checkout
from orchestrator.clusters.cluster import Cluster
from orchestrator.errors import OrchError
from orchestrator.job_spec import JobSpec
from orchestrator.processes import is_running, still_runs
from orchestrator.runner import JobBatch, JobState
from orchestrator.study.files import Study, write_whole
from orchestrator.study.ledger import Submission

CONTROLLER = "controller.json"
TURN = "turn.json"


@dataclass(frozen=True)
class Life:
    """One process of a local job, as it noted itself."""

    host: str
    pid: int
    started: float
    state: str = "running"
    since: float = 0.0
    """When it began to wait or run, seconds since the epoch."""
    behind: str = ""
    """What it waits for."""

    @property
    def is_here(self) -> bool:
        """Whether this host can tell if it runs."""
        return self.host == socket.gethostname()

    @property
    def runs(self) -> bool:
        """Whether it runs; only where `is_here`."""
        return still_runs(self.pid, self.started)


def read_life(file: Path) -> Life | None:
    """The note in `file`; None where there is none yet."""
    try:
        return Life(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class LocalRunner:
    """One job per submission, with all its cases."""

    name = "local"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def batches(self, cases: Sequence[Case]) -> list[JobBatch]:
        # One job with all cases: nothing is gained by several, which would run in turn too.
        # Its limit is per case, because nothing else ends a local job that hangs.
        limit_s = self.cluster.case_time_s
        return [JobBatch(jobs=(tuple(cases),), timeout_s=limit_s)] if cases else []

    def described(self, batch: JobBatch, study: str) -> dict[str, str]:
        return {}

    def test(self, batch: JobBatch, study: str) -> tuple[bool, str]:
        return True, "it runs here"

    def submit(
        self, study: Study, batch: JobBatch, specs: Sequence[JobSpec]
    ) -> list[str]:
        # A job is known by the folder of its submission: there is one per batch.
        (spec,) = specs
        file = study.job_spec_file(spec.key, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, spec.model_dump_json(indent=1) + "\n", durable=False)
        _start(file)
        return [spec.key]

    def find(
        self, study: Study, submissions: Sequence[Submission]
    ) -> dict[str, list[str]]:
        keys = [each.key for each in submissions]
        return {key: [key] for key in keys if _was_started(study.job_dir(key))}

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        return {job_id: _state(study.job_dir(job_id)) for job_id in jobs}

    def cancel(self, study: Study, job_ids: Iterable[str]) -> None:
        # SIGTERM: the supervisor then files a record for the case it is working on.
        for job_id in job_ids:
            folder = study.job_dir(job_id)
            for life in (read_life(folder / TURN), read_life(folder / CONTROLLER)):
                if life is None:
                    continue
                if not life.is_here:
                    raise OrchError(
                        f"job {job_id} runs on {life.host}: cancel it there"
                    )
                if life.runs:
                    os.kill(life.pid, signal.SIGTERM)
                    break


def _start(spec: Path) -> None:
    log = spec.parent / "start.log"
    with log.open("ab") as stream:
        run = subprocess.run(
            [sys.executable, "-m", "orchestrator.local.job", "start", str(spec)],
            cwd=checkout(), env=with_checkout(os.environ),
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    if run.returncode and not _was_started(spec.parent):
        raise OrchError(f"the local job did not start; {log} says why")


def with_checkout(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the checkout first on Python's path."""
    path = [str(checkout()), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _was_started(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONTROLLER, TURN)) or _starts(
        folder
    )


def _starts(folder: Path) -> bool:
    """Whether a process that has not noted itself yet is at work on the job."""
    return any(
        is_running("-m", module, str(argument))
        for module, argument in (
            ("orchestrator.local.job", folder / "job-0.json"),
            ("submitit.local._local", folder),
            ("submitit.core._submit", folder),
        )
    )


def _state(folder: Path) -> JobState:
    turn, controller = read_life(folder / TURN), read_life(folder / CONTROLLER)
    for life in (turn, controller):
        if life is not None and not life.is_here:
            return JobState(
                state="unknown",
                reason=f"it was started on {life.host}: ask there, or remove {folder} if that "
                f"host is gone for good",
            )
    if turn is not None and turn.runs:
        waits = turn.state == "waiting"
        return JobState(
            state="pending" if waits else "running",
            reason=f"waits for {turn.behind}" if waits else "",
            elapsed_s=max(0.0, time.time() - turn.since),
            hosts=turn.host,
        )
    starting = controller.runs if controller else _starts(folder)
    if starting and turn is None:
        return JobState(state="pending", reason="starting")
    return JobState(state="ended", reason=_last_words(folder))


def _last_words(folder: Path) -> str:
    """The last line its processes wrote, for a job that left no record."""
    for log in sorted(folder.glob("*_log.err")):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        if said:
            return f"{_telling(said)[:300]} ({log})"
    return f"see {folder}"


_ENDED = re.compile(r"CalledProcessError: .* (died with|returned non-zero) (.+)\.$")


def _telling(said: list[str]) -> str:
    # submitit's log has how the process ended above a copy of what it wrote, or of nothing.
    found = next(filter(None, map(_ENDED.search, said)), None)
    return said[-1] if found is None else f"its process {found[1]} {found[2]}"
