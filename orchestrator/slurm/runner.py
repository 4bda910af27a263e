"""Runs jobs on a Slurm cluster: cases that ask for the same go out as one array.

    batches → resources (what a job asks for) → script → submit (sbatch)
    states  → query (squeue, sacct) → answers (what follows from them)

A job's name and comment contain the key of its submission: after a crash between sbatch and the
ledger the job is found by its name, and a job id that Slurm has given out again is not taken for
ours.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.case import Case
from orchestrator.clusters.cluster import Cluster
from orchestrator.errors import InputError, OrchError
from orchestrator.forecast import forecast, misfit
from orchestrator.job_spec import JobSpec
from orchestrator.models import shape_of
from orchestrator.runner import JobBatch, JobState, Unanswered
from orchestrator.slurm import query as slurm_query
from orchestrator.slurm.answers import LastAnswer, job_state
from orchestrator.slurm.resources import Resources, resources
from orchestrator.slurm.script import SCRIPT, job_name, render
from orchestrator.slurm.submit import clean_environment, submit_jobs
from orchestrator.study.files import Study, write_whole
from orchestrator.study.ledger import Submission
from orchestrator.units import slurm_time

_PER_CALL = 2000
"""Ids of one scancel, for the length of its command line."""


class SlurmRunner:
    """Jobs of one Slurm cluster."""

    name = "slurm"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def misfit(self, case: Case) -> str | None:
        cluster = self.cluster
        return cluster.unsuitable(case) or misfit(
            forecast(case, shape_of(case)),
            cluster.device_memory_bytes,
            cluster.host_memory_bytes(case),
            device="GPU" if cluster.devices[cluster.device or ""].is_gpu else "worker",
            nodes=cluster.nodes(case.gpus),
        )

    def batches(self, cases: Sequence[Case]) -> list[JobBatch]:
        # Cases that ask for the same go out as one array, in the order of their first.
        size = self.cluster.cases_per_job
        alike: dict[Resources, list[Case]] = {}
        for case in cases:
            alike.setdefault(resources(self.cluster, case, size), []).append(case)
        at_once = self.cluster.max_array if self.cluster.arrays else 1
        return [
            self._batch(jobs[start : start + at_once])
            for group in alike.values()
            for jobs in [_chunks(group, size)]
            for start in range(0, len(jobs), at_once)
        ]

    def _batch(self, jobs: list[tuple[Case, ...]]) -> JobBatch:
        # The last jobs of a group may hold fewer cases, and then need less time.
        need = resources(self.cluster, jobs[0][0], max(map(len, jobs)))
        share_s = self.cluster.case_time_s
        # Less than the case's share of the job, so that we end it, and not Slurm.
        limit_s = share_s - min(60, share_s // 10)
        return JobBatch(jobs=tuple(jobs), timeout_s=limit_s, resources=need)

    def described(self, batch: JobBatch, study: str) -> dict[str, str]:
        need = _need(batch)
        return {
            "partition": need.partition or "(default)",
            "qos": need.qos or "(default)",
            "nodes": str(need.nodes),
            "device": f"{need.ranks_per_node} × {need.device} a node",
            "time": slurm_time(need.time_s),
            "script": self._script(batch, "KEY", study),
        }

    def _script(self, batch: JobBatch, key: str, study: str) -> str:
        summary = _summary(study, batch.jobs)
        return render(
            self.cluster, _need(batch), key=key, jobs=len(batch.jobs), summary=summary
        )

    def submit(
        self, study: Study, batch: JobBatch, specs: Sequence[JobSpec]
    ) -> list[str]:
        key = specs[0].key
        folder = study.job_dir(key)
        _refuse_placeholders(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [study.job_spec_file(key, index) for index in range(len(specs))]
        for file, spec in zip(files, specs, strict=True):
            write_whole(file, spec.model_dump_json(indent=1) + "\n", durable=False)
        script = self._script(batch, key, study.name)
        write_whole(folder / SCRIPT, script, durable=False)
        python = self.cluster.python or sys.executable
        return submit_jobs(folder, files, python, script, self.cluster.submit_s)

    def find(
        self, study: Study, submissions: Sequence[Submission]
    ) -> dict[str, list[str]]:
        # By job name, which squeue and sacct always keep.
        if not submissions:
            return {}
        names = [job_name(each.key) for each in submissions]
        queued, known = slurm_query.jobs_named(names, _since(submissions))
        jobs = {**(known.jobs or {}), **(queued.jobs or {})}
        found = {}
        for each in submissions:
            bases = sorted(
                int(job_id.partition("_")[0])
                for job_id, job in jobs.items()
                if job.name == job_name(each.key)
            )
            if bases:
                # The first one: a person may have submitted the script again by hand.
                found[each.key] = _ids(str(bases[0]), len(each.jobs))
        if queued.jobs is None and len(found) < len(submissions):
            raise Unanswered(f"Slurm does not say what it accepted: {queued.problem}")
        return found

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        # From squeue; of jobs it no longer has from sacct; of others from the last answer.
        if not jobs:
            return {}
        last = LastAnswer(study.answers_file)
        fresh = last.fresh(jobs, self.cluster.poll_s)
        return self._ask(jobs, last) if fresh is None else fresh

    def _ask(
        self, jobs: Mapping[str, Submission], last: LastAnswer
    ) -> dict[str, JobState]:
        queued = slurm_query.squeue(jobs)
        gone = [job_id for job_id in jobs if not _is_active(queued, job_id)]
        known = slurm_query.Answer({})
        if gone:
            known = slurm_query.sacct(gone, _since(jobs[job_id] for job_id in gone))
        states = {
            job_id: job_state(job_id, job_name(submission.key), queued, known, last)
            for job_id, submission in jobs.items()
        }
        if queued.jobs is not None:
            last.keep(states)
        return states

    def cancel(self, study: Study, job_ids: Iterable[str]) -> None:
        ids = list(job_ids)
        LastAnswer(study.answers_file).forget()
        for start in range(0, len(ids), _PER_CALL):
            _scancel(ids[start : start + _PER_CALL])

    def test(self, batch: JobBatch, study: str) -> tuple[bool, str]:
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=self._script(batch, "KEY", study),
                capture_output=True,
                text=True,
                env=clean_environment(),
                timeout=self.cluster.submit_s,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, f"sbatch did not answer: {error}"
        said = " ".join(done.stderr.replace("sbatch: ", "").split())
        return done.returncode == 0, said


def _need(batch: JobBatch) -> Resources:
    assert batch.resources is not None  # `batches` gave it
    return batch.resources


def _refuse_placeholders(folder: Path) -> None:
    if "%" in str(folder) or "\\" in str(folder):
        raise InputError(
            f"Slurm writes no log into a folder with % or \\ in its name: {str(folder)!r}; take "
            f"another results folder with --results"
        )


def _chunks(cases: list[Case], size: int) -> list[tuple[Case, ...]]:
    return [tuple(cases[start : start + size]) for start in range(0, len(cases), size)]


def _ids(base: str, count: int) -> list[str]:
    return [base] if count == 1 else [f"{base}_{index}" for index in range(count)]


def _summary(study: str, jobs: Sequence[Sequence[Case]]) -> str:
    size = max(map(len, jobs))
    many = f"{len(jobs)} jobs" if len(jobs) > 1 else "one job"
    return f"Study {study}: {many} of {size} case{'s' if size > 1 else ''}"


def _since(submissions: Iterable[Submission]) -> str:
    """Return a day before the oldest submission: clocks and time zones differ."""
    times = [datetime.fromisoformat(each.at) for each in submissions]
    oldest = min(times, default=datetime.now(UTC)) - timedelta(days=1)
    return f"{oldest:%Y-%m-%d}"


def _is_active(queued: slurm_query.Answer, job_id: str) -> bool:
    job = queued.of(job_id)
    return job is not None and job.is_active


def _scancel(ids: list[str]) -> None:
    try:
        done = subprocess.run(
            ["scancel", *ids],
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=slurm_query.TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OrchError(f"scancel did not answer: {error}") from error
    problems = [
        line for line in done.stderr.splitlines() if "Invalid job id" not in line
    ]
    if done.returncode and problems:
        raise OrchError(f"Slurm did not cancel: {' '.join(problems)}")
