"""Runs jobs on this machine, one at a time.

A job is a process in a session of its own, which no closed terminal and no Ctrl-C reaches. It
waits for the machine-wide lock, so that no two jobs measure beside each other, and then becomes
`jobs.launch` by exec: its number and start time are the job's for life.
"""

import json
import os
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
from orchestrator.clusters.hardware import gpu_memory_bytes, host_memory_bytes
from orchestrator.errors import OrchError
from orchestrator.files import write_whole
from orchestrator.forecast import forecast, misfit
from orchestrator.job_spec import JobSpec
from orchestrator.models import shape_of
from orchestrator.processes import is_running, still_runs
from orchestrator.runner import JobBatch, JobState
from orchestrator.study.files import Study
from orchestrator.study.ledger import Submission

TURN = "turn.json"
LOG = "job.log"
_PROGRAM = "orchestrator.local.turn"


@dataclass(frozen=True)
class Turn:
    """The process of a local job, as it noted itself."""

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


def read_turn(folder: Path) -> Turn | None:
    """Return the note of the job in `folder`; None if there is none yet."""
    try:
        return Turn(**json.loads((folder / TURN).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class LocalRunner:
    """One job per submission, with all its cases."""

    name = "local"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def misfit(self, case: Case) -> str | None:
        gpu_bytes, host_bytes = gpu_memory_bytes(), host_memory_bytes()
        return misfit(
            forecast(case, shape_of(case)),
            gpu_bytes or host_bytes // case.gpus,
            host_bytes,
            device="GPU" if gpu_bytes else "worker",
        )

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
            turn = read_turn(study.job_dir(job_id))
            if turn is not None and not turn.is_here:
                raise OrchError(f"job {job_id} runs on {turn.host}: cancel it there")
            if turn is not None and turn.runs:
                os.kill(turn.pid, signal.SIGTERM)


def _start(spec: Path) -> None:
    """Start the job and wait until it has noted itself."""
    log = spec.parent / LOG
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(spec)],
            cwd=checkout(), env=_with_checkout(os.environ),
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    while read_turn(spec.parent) is None:
        if process.poll() is not None:
            raise OrchError(f"the local job did not start: {_last_line(log)} ({log})")
        time.sleep(0.02)


def _with_checkout(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the checkout first on Python's path."""
    path = [str(checkout()), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _was_started(folder: Path) -> bool:
    return (folder / TURN).exists() or _starts(folder)


def _starts(folder: Path) -> bool:
    """Return whether its process is there and has not noted itself yet."""
    return is_running("-m", _PROGRAM, str(folder / "job-0.json"))


def _state(folder: Path) -> JobState:
    turn = read_turn(folder)
    if turn is None:
        if _starts(folder):
            return JobState(state="pending", reason="starting")
    elif not turn.is_here:
        return JobState(
            state="unknown",
            reason=f"it was started on {turn.host}: ask there, or remove {folder} if that "
            f"host is gone for good",
        )
    elif turn.runs:
        waits = turn.state == "waiting"
        return JobState(
            state="pending" if waits else "running",
            reason=f"waits for {turn.behind}" if waits else "",
            elapsed_s=max(0.0, time.time() - turn.since),
            hosts=turn.host,
        )
    return JobState(state="ended", reason=_last_words(folder / LOG))


def _last_words(log: Path) -> str:
    """Return what is known of a job that left no record."""
    gone = "its process is gone: killed, or this machine was restarted"
    line = _last_line(log)
    return f"{gone}; last words: {line} ({log})" if line else gone


def _last_line(log: Path) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return text.splitlines()[-1][:400] if text else ""
