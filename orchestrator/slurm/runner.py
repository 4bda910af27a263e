"""Runs jobs on a Slurm cluster: a script per shape, an array where there are several jobs.

    batches → resources (one shape a batch) → script → slurm_submit (sbatch)
    states  → slurm_query (squeue, sacct)   → slurm_words (plain words)

A job's name and comment carry the key of its submission: so a crash between sbatch and the
ledger is mended by asking for the name, and a job id that Slurm has given out again is not
taken for ours.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.case import Case
from orchestrator.clusters.cluster import Cluster
from orchestrator.errors import InputError, OrchError
from orchestrator.job_spec import JobSpec
from orchestrator.runner import JobBatch, JobState, Unanswered
from orchestrator.slurm import query as slurm_query
from orchestrator.slurm.answers import Memory, judge
from orchestrator.slurm.resources import Resources, resources
from orchestrator.slurm.script import SCRIPT, job_name, render
from orchestrator.slurm.submit import clean_environment, submit_packs
from orchestrator.study.files import Study, write_whole
from orchestrator.study.ledger import Submission, read_ledger
from orchestrator.units import slurm_time

_PER_CALL = 2000
"""Ids of one scancel, for the length of its command line."""


class SlurmRunner:
    """Jobs of one Slurm cluster."""

    name = "slurm"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def batches(self, cases: Sequence[Case]) -> list[JobBatch]:
        """Cases of one shape together, in the order of their first; as arrays where allowed."""
        shapes: dict[Resources, list[Case]] = {}
        for case in cases:
            need = resources(self.cluster, case, self.cluster.pack)
            shapes.setdefault(need, []).append(case)
        at_once = self.cluster.max_array if self.cluster.arrays else 1
        return [
            self._batch(jobs[start : start + at_once])
            for alike in shapes.values()
            for jobs in [_chunks(alike, self.cluster.pack)]
            for start in range(0, len(jobs), at_once)
        ]

    def _batch(self, jobs: list[tuple[Case, ...]]) -> JobBatch:
        need = self._need(jobs)
        facts = {
            "partition": need.partition or "(default)",
            "qos": need.qos or "(default)",
            "nodes": str(need.nodes),
            "device": f"{need.ranks_per_node} × {need.device} a node",
            "time": slurm_time(need.time_s),
            "script": self._script(need, "KEY", len(jobs), _summary("STUDY", jobs)),
        }
        return JobBatch(tuple(jobs), facts)

    def _need(self, jobs: Sequence[Sequence[Case]]) -> Resources:
        return resources(self.cluster, jobs[0][0], max(map(len, jobs)))

    def _script(self, need: Resources, key: str, jobs: int, summary: str) -> str:
        return render(self.cluster, need, key=key, jobs=jobs, summary=summary)

    def timeout_s(self, case: Case) -> int | None:
        """Less than the case's share of the job, so that we end it, and not Slurm."""
        share = self.cluster.case_time_s
        return share - min(60, share // 10)

    def submit(self, study: Study, packs: Sequence[JobSpec]) -> list[str]:
        """File the packs and submit them by one sbatch."""
        key = packs[0].key
        folder = study.job_dir(key)
        _refuse_placeholders(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, pack in enumerate(packs):
            file = study.job_spec_file(key, index)
            write_whole(file, pack.model_dump_json(indent=1) + "\n", durable=False)
        first = [study.read_case(each.case_id) for each in packs[0].cases]
        sizes = [tuple(first)] * len(packs)
        need = resources(self.cluster, first[0], max(len(p.cases) for p in packs))

        def script(jobs: int) -> str:
            text = self._script(need, key, jobs, _summary(study.name, sizes))
            write_whole(folder / SCRIPT, text, durable=False)
            return text

        return submit_packs(
            folder,
            [study.job_spec_file(key, index) for index in range(len(packs))],
            self.cluster.python or sys.executable,
            script,
            self.cluster.submit_s,
        )

    def find(self, study: Study, keys: Iterable[str]) -> dict[str, list[str]]:
        """Asks by job name, which squeue and sacct always keep."""
        wanted = list(keys)
        if not wanted:
            return {}
        submissions = read_ledger(study.ledger_file).submissions
        since = _since(submissions[key] for key in wanted if key in submissions)
        queued, known = slurm_query.jobs_named(map(job_name, wanted), since)
        told = {**(known.jobs or {}), **(queued.jobs or {})}
        found = {}
        for key in wanted:
            bases = sorted(
                int(job_id.partition("_")[0])
                for job_id, each in told.items()
                if each.name == job_name(key)
            )
            if bases:
                count = len(submissions[key].jobs) if key in submissions else 1
                # The first one: a person may have submitted the script again by hand.
                found[key] = _ids(str(bases[0]), count)
        if queued.jobs is None and len(found) < len(wanted):
            raise Unanswered(f"Slurm does not say what it accepted: {queued.problem}")
        return found

    def states(self, study: Study, job_ids: Iterable[str]) -> dict[str, JobState]:
        """From squeue, of what it no longer has from sacct, of what neither tells from memory."""
        ids = list(job_ids)
        memory = Memory(study.answers_file)
        if not ids or (fresh := memory.fresh(ids, self.cluster.poll_s)) is None:
            return self._ask(study, ids, memory) if ids else {}
        return fresh

    def _ask(self, study: Study, ids: list[str], memory: Memory) -> dict[str, JobState]:
        submissions = read_ledger(study.ledger_file).submissions.values()
        key_of = {job_id: each.key for each in submissions for job_id in each.job_ids}
        ours = {job_id: job_name(key_of[job_id]) for job_id in ids if job_id in key_of}
        queued = slurm_query.squeue(ids)
        gone = [job_id for job_id in ids if not _is_active(queued, job_id)]
        known = slurm_query.Answer({})
        if gone:
            since = _since(each for each in submissions if set(each.job_ids) & {*gone})
            known = slurm_query.sacct(gone, since)
        states = {
            job_id: judge(job_id, ours.get(job_id), queued, known, memory)
            for job_id in ids
        }
        if queued.jobs is not None:
            memory.keep(states)
        return states

    def cancel(self, study: Study, job_ids: Iterable[str]) -> None:
        """One scancel for all."""
        ids = list(job_ids)
        Memory(study.answers_file).forget()
        for start in range(0, len(ids), _PER_CALL):
            _scancel(ids[start : start + _PER_CALL])

    def test(self, batch: JobBatch) -> tuple[bool, str]:
        """Ask Slurm itself whether it would take the batch, and when; submits nothing."""
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=batch.facts["script"],
                capture_output=True,
                text=True,
                env=clean_environment(),
                timeout=self.cluster.submit_s,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, f"sbatch did not answer: {error}"
        said = " ".join(done.stderr.replace("sbatch: ", "").split())
        return done.returncode == 0, said


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
    """A day before the oldest submission: clocks and time zones differ."""
    times = [datetime.fromisoformat(each.at) for each in submissions]
    oldest = min(times, default=datetime.now(UTC)) - timedelta(days=1)
    return f"{oldest:%Y-%m-%d}"


def _is_active(queued: slurm_query.Answer, job_id: str) -> bool:
    told = queued.of(job_id)
    return told is not None and told.is_active


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
