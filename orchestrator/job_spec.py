"""The spec of a job: which cases it runs, one after the other.

Written by `orch submit` and read by `jobs.launch`. It is a file, so a requeued job starts again.
"""

from pydantic import BaseModel, ConfigDict, Field


class JobCase(BaseModel):
    """One case of a job, and when it counts as done."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    case_id: str
    first_attempt: int = Field(ge=1)
    """The case is done when this attempt or a later one has a valid record: a requeue skips it, a
    retry does not."""
    timeout_s: int | None = Field(default=None, ge=1)
    """Workers still running after this are ended; None: only the job's limit."""


class JobSpec(BaseModel):
    """The cases of one job, in the order they run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    study: str
    """Absolute path of the study's folder."""
    key: str
    """Names the submission in the ledger and in Slurm's job name and comment."""
    cluster: str = ""
    """Profile that the job was submitted to, as records name it."""
    cases: list[JobCase]
