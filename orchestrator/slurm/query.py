"""What Slurm says of jobs: one squeue and one sacct for all of them, read into plain values.

Knows no study and no cache. A command that is missing, fails or hangs is an answer too: None.
"""

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.causes.slurm_states import known_state, phase_of
from orchestrator.slurm.submit import clean_environment
from orchestrator.units import slurm_seconds

TIMEOUT_S = 60
# The reason comes last: it is the only one that may hold the separator.
_SQUEUE = ("%i", "%T", "%M", "%l", "%N", "%j", "%r")
_SACCT = ("JobID", "State", "Elapsed", "Timelimit", "NodeList", "JobName", "ExitCode")
_MANY = 400
_INDICES = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True, kw_only=True)
class SlurmJobInfo:
    """What one of Slurm's commands says of one job."""

    state: str
    """A base state or flag, one word."""
    name: str
    elapsed_s: int | None = None
    limit_s: int | None = None
    nodes: str = ""
    reason: str = ""
    exit_code: str = ""
    out_of_memory: bool = False
    """A step of the job ended so, whatever the job's own state."""

    @property
    def is_active(self) -> bool:
        """It waits or runs; a word that is not known counts as that, not as an end."""
        return phase_of(self.state) != "ended"


@dataclass(frozen=True)
class Answer:
    """The answer of one command, or why there is none."""

    jobs: Mapping[str, SlurmJobInfo] | None
    problem: str = ""

    def of(self, job_id: str) -> SlurmJobInfo | None:
        """Return the answer about a job. Of an array that never began, Slurm keeps one line."""
        jobs = self.jobs or {}
        return jobs.get(job_id) or jobs.get(job_id.partition("_")[0])


def expand(job_id: str) -> list[str]:
    """Return the ids of single jobs that one of Slurm's ids stands for.

    >>> expand("12_[1-3,7%4]")
    ['12_1', '12_2', '12_3', '12_7']
    >>> expand("12_7"), expand("12")
    (['12_7'], ['12'])
    """
    base, _, tasks = job_id.partition("_")
    if not tasks.startswith("["):
        return [job_id]
    listed = tasks.strip("[]").split("%")[0]
    indices: list[int] = []
    for part in listed.split(","):
        if found := _INDICES.fullmatch(part):
            first = int(found[1])
            indices += range(first, int(found[2] or first) + 1, int(found[3] or 1))
    return [f"{base}_{index}" for index in indices]


def squeue(job_ids: Iterable[str]) -> Answer:
    """Return what the controller knows: all that wait or run, and what ended a few minutes ago."""
    bases = _bases(job_ids)
    # Thousands of ids would not fit on a command line: then all jobs of this user are listed.
    which = ["--me"] if len(bases) > _MANY else ["-j", ",".join(bases)]
    answer = _squeue(*which)
    if "Invalid job id specified" in answer.problem:
        return Answer({})  # the only one it was asked about is long gone
    return answer


def sacct(job_ids: Iterable[str], since: str) -> Answer:
    """Return what the accounting knows.

    Args:
        since: date of the oldest job; sacct looks no further back than today by itself.
    """
    return _sacct(since, "-j", ",".join(_bases(job_ids)))


def jobs_named(names: Iterable[str], since: str) -> tuple[Answer, Answer]:
    """Ask squeue and sacct for the jobs of these names."""
    listed = ",".join(names)
    return _squeue("-n", listed), _sacct(since, "--name", listed)


def _squeue(*which: str) -> Answer:
    # -a: also of hidden partitions. -t all: also those that ended, for as long as it knows them.
    command = ["squeue", "-h", "-a", "-t", "all", "-o", "|".join(_SQUEUE), *which]
    answer = _ask(command)
    return Answer(parse_squeue(answer)) if isinstance(answer, str) else answer


def _sacct(since: str, *which: str) -> Answer:
    command = ["sacct", "-n", "-P", "-S", since, "-o", ",".join(_SACCT), *which]
    answer = _ask(command)
    return Answer(parse_sacct(answer)) if isinstance(answer, str) else answer


def parse_squeue(text: str) -> dict[str, SlurmJobInfo]:
    """Map job ids to what squeue printed of them."""
    jobs: dict[str, SlurmJobInfo] = {}
    for line in text.splitlines():
        fields = line.split("|", len(_SQUEUE) - 1)
        if len(fields) < len(_SQUEUE):
            continue  # a site's banner
        job_id, state, elapsed, limit, nodes, name, reason = fields
        one = SlurmJobInfo(
            state=known_state(state),
            name=name,
            elapsed_s=slurm_seconds(elapsed),
            limit_s=slurm_seconds(limit),
            nodes=nodes,
            reason=reason,
        )
        jobs |= dict.fromkeys(expand(job_id), one)
    return jobs


def parse_sacct(text: str) -> dict[str, SlurmJobInfo]:
    """Map job ids to what sacct printed; a step that ran out of memory counts for its job."""
    jobs: dict[str, SlurmJobInfo] = {}
    starved: set[str] = set()
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < len(_SACCT):
            continue
        job_id, state, elapsed, limit, nodes, *name, exit_code = fields
        job, _, step = job_id.partition(".")
        if step:
            # The job itself may only be FAILED: the kernel killed a rank of its step.
            starved |= {job} if known_state(state) == "OUT_OF_MEMORY" else set()
            continue
        one = SlurmJobInfo(
            state=known_state(state),
            name="|".join(name),
            elapsed_s=slurm_seconds(elapsed),
            limit_s=slurm_seconds(limit),
            nodes="" if nodes == "None assigned" else nodes,
            exit_code=exit_code,
        )
        jobs |= dict.fromkeys(expand(job_id), one)
    for job in starved & jobs.keys():
        jobs[job] = replace(jobs[job], out_of_memory=True)
    return jobs


def _bases(job_ids: Iterable[str]) -> list[str]:
    return sorted({job_id.partition("_")[0] for job_id in job_ids})


def _ask(command: list[str]) -> str | Answer:
    """Return what the command prints, or an answer that says why it printed nothing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=clean_environment(),
        )
    except FileNotFoundError:
        return Answer(None, f"there is no {command[0]} here")
    except subprocess.TimeoutExpired:
        return Answer(None, f"{command[0]} did not answer in {TIMEOUT_S} s")
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        return Answer(None, f"{command[0]}: {said}")
    return done.stdout
