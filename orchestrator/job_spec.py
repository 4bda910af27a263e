"""What one job works through: a list of cases in turn, written by `orch submit`, read by
`jobs.launch`. Text, so that a requeued job just starts again.
"""

from pydantic import BaseModel, ConfigDict, Field


class JobCase(BaseModel):
    """One case of a pack."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    case_id: str
    first_attempt: int = Field(ge=1)
    """The case is done when an attempt of this number or a later one has a valid record: a
    requeue skips it, a retry does not."""
    timeout_s: int | None = Field(default=None, ge=1)
    """Workers still running after this are ended; None: no limit but the job's."""


class JobSpec(BaseModel):
    """The cases of one job, worked through one after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    study: str
    """Absolute path of the study's folder."""
    key: str
    """Names the submission in the ledger and in Slurm's job comment."""
    cluster: str = ""
    """Profile that the job was submitted to, as records name it."""
    cases: list[JobCase]
