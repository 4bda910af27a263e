"""What `orch` asks of whatever runs jobs: this machine (`orchestrator.local.runner`) or Slurm.

A runner knows jobs, never cases' results: whether a case is done stands in its records alone.
`orch submit` goes, under the study's lock, for each batch (one call of the scheduler):

    ledger: intent (key, cases)  →  runner.submit  →  ledger: accepted (key, job ids)

so that after a crash between the two, `runner.find` tells whether the key was accepted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from orchestrator.case import Case
from orchestrator.errors import OrchError
from orchestrator.job_spec import JobSpec
from orchestrator.study.files import Study

State = Literal["pending", "running", "ended", "unknown"]
"""`ended`: it runs no more, however it ended, or the scheduler answers and knows it no more.
`unknown`: nobody answered, so nothing may be concluded."""


class Unanswered(OrchError):
    """The scheduler did not answer: what was asked may have happened, or not."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What the scheduler says of one job."""

    state: State
    reason: str = ""
    """Plain words: why it waits, how it ended, or why nothing is known."""
    slurm_state: str = ""
    """Slurm's own word (`OUT_OF_MEMORY`); empty for the local runner."""
    cause: str | None = None
    """One of the record's causes, where the scheduler's word alone proves it."""
    elapsed_s: float | None = None
    limit_s: float | None = None
    hosts: str = ""
    as_of: datetime | None = None
    """When nobody answered now: the time of this last known state."""


@dataclass(frozen=True)
class JobBatch:
    """The cases of one call of the scheduler: a tuple of cases per job."""

    jobs: tuple[tuple[Case, ...], ...]
    facts: dict[str, str] = field(default_factory=dict)
    """What the runner wants to show of the batch (partition, time, script) in a dry run."""


class Runner(Protocol):
    """Runs packs of cases; every method may be called on any machine that sees the study."""

    name: str
    """`local` or `slurm`; stands in the ledger."""

    def batches(self, cases: Sequence[Case]) -> list[JobBatch]:
        """How the cases would go out; writes and starts nothing."""

    def test(self, batch: JobBatch) -> tuple[bool, str]:
        """Whether the batch would be taken, and what the scheduler says; submits nothing."""

    def timeout_s(self, case: Case) -> int | None:
        """Seconds after which the workers of one case are ended; None: the job's limit alone."""

    def submit(self, study: Study, packs: Sequence[JobSpec]) -> list[str]:
        """Hand the packs of one batch over, in one call; they share their key.

        Returns:
            The job id of each pack, in order. It stays valid when this process ends.

        Raises:
            Unanswered: it may have accepted them; `find` will tell.
            OrchError: it refused, and certainly accepted none of them.
        """

    def find(self, study: Study, keys: Iterable[str]) -> dict[str, list[str]]:
        """Job ids of those keys that were accepted; a key that was not is left out.

        Raises:
            Unanswered: the keys may have been accepted.
        """

    def states(self, study: Study, job_ids: Iterable[str]) -> dict[str, JobState]:
        """The state of each job, in one question for all; never raises for a job or an outage."""

    def cancel(self, study: Study, job_ids: Iterable[str]) -> None:
        """End these jobs, by id only."""
