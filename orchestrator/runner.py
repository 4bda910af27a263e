"""The interface to whatever runs jobs: this machine (`orchestrator.local`) or Slurm.

A runner knows jobs, not results: whether a case is done is in its records alone. For each batch
(one call of the scheduler), `orch submit` does, under the study's lock:

    ledger: intent (key, cases)  →  runner.submit  →  ledger: accepted (key, job ids)

so that after a crash between the two, `runner.find` tells whether the batch was accepted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from orchestrator.case import Case
from orchestrator.errors import OrchError
from orchestrator.job_spec import JobSpec
from orchestrator.slurm.resources import Resources
from orchestrator.study.files import Study
from orchestrator.study.ledger import Submission

State = Literal["pending", "running", "ended", "unknown"]
"""`ended`: the job is over, however it ended, or the scheduler no longer knows it.
`unknown`: nobody answered, so nothing may be concluded."""


class Unanswered(OrchError):
    """The scheduler did not answer: what was asked for may or may not have happened."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What the scheduler says of one job."""

    state: State
    reason: str = ""
    """In plain words: why it waits, how it ended, or why nothing is known."""
    slurm_state: str = ""
    """Slurm's own word (`OUT_OF_MEMORY`); empty for the local runner."""
    cause: str | None = None
    """A cause, if the scheduler's state alone proves it."""
    elapsed_s: float | None = None
    limit_s: float | None = None
    hosts: str = ""
    as_of: datetime | None = None
    """If nobody answered just now: the time of this last known state."""


@dataclass(frozen=True, kw_only=True)
class JobBatch:
    """Cases that go out in one call of the scheduler, and what was decided for them."""

    jobs: tuple[tuple[Case, ...], ...]
    """The cases of each job."""
    timeout_s: int
    """Seconds after which the workers of a case are ended."""
    resources: Resources | None = None
    """What each job asks for; None on this machine."""


class Runner(Protocol):
    """Runs jobs. Every method may be called on any machine that sees the study."""

    name: str
    """`local` or `slurm`, as in the ledger."""

    def misfit(self, case: Case) -> str | None:
        """Return why the case cannot fit there, however long it waits; None if it may."""

    def batches(self, cases: Sequence[Case]) -> list[JobBatch]:
        """Group cases into jobs and batches. Writes and starts nothing."""

    def described(self, batch: JobBatch, study: str) -> dict[str, str]:
        """Return what a dry run shows of a batch: partition, time, script …"""

    def test(self, batch: JobBatch, study: str) -> tuple[bool, str]:
        """Ask whether the scheduler would accept the batch, and what it says. Submits nothing."""

    def submit(
        self, study: Study, batch: JobBatch, specs: Sequence[JobSpec]
    ) -> list[str]:
        """Submit a batch in one call.

        Args:
            study: whose jobs they are.
            batch: from `batches`.
            specs: what each job of the batch runs; they share their key.

        Returns:
            The job id of each job, in order. It stays valid when this process ends.

        Raises:
            Unanswered: it may have been accepted; `find` will tell.
            OrchError: it was refused, and certainly no job was accepted.
        """

    def find(
        self, study: Study, submissions: Sequence[Submission]
    ) -> dict[str, list[str]]:
        """Map key → job ids of those submissions that were accepted; the others are left out.

        Raises:
            Unanswered: they may have been accepted.
        """

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        """Return the state of each job, in one question for all. Never raises for an outage.

        Args:
            study: whose jobs they are.
            jobs: job id → the submission that it belongs to.
        """

    def cancel(self, study: Study, job_ids: Iterable[str]) -> None:
        """End these jobs, and no others."""
