"""What an attempt reports: a versioned JSON file, strict to read.

Numbers carry their unit in their name. What can be computed from others (tokens per second,
means, intervals) is not stored; `orchestrator.tables.metrics` derives it, one definition each.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kernels.shapes import ModelShape
from orchestrator.case import Case
from orchestrator.environment import Bandwidths, Environment
from orchestrator.errors import OrchError

Status = Literal["ok", "oom", "invalid", "failed"]
Cause = Literal[
    "oom_gpu", "oom_host", "timeout", "preempted", "node_fail", "nccl", "launch", "config",
    "invalid_result", "cancelled", "lost", "unknown",
]  # fmt: skip

INTERRUPTED: frozenset[Cause] = frozenset(
    {"cancelled", "lost", "node_fail", "preempted"}
)
"""Causes that lie outside the case: a requeued job makes the attempt again."""

Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class RecordError(OrchError):
    """A record file that is not a whole, valid record; the message names the file and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sample(_Strict):
    """One measured generation of the whole batch."""

    token_s: list[Seconds]
    """Seconds from the common start to each token of the batch, on the slowest rank; the first
    is the prefill's."""
    skew_s: Seconds
    """Slowest rank's last token minus the fastest rank's."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.token_s or self.token_s != sorted(self.token_s):
            raise ValueError("token_s must hold at least one time and never go back")
        return self


class RankFacts(_Strict):
    """What one rank saw."""

    rank: int
    host: str
    device: str
    """Model name of the GPU or CPU."""
    device_kind: Literal["cpu", "cuda"] = "cpu"
    device_memory_bytes: int | None = None
    """Of the GPU; a CPU rank has no memory of its own."""
    load_s: Seconds
    peak_memory_bytes: int
    """CUDA: peak allocated; CPU: peak resident set of the process."""
    peak_reserved_bytes: int
    """CUDA: peak reserved by the allocator; CPU: the same as peak_memory_bytes."""
    weight_bytes: int
    """Bytes of the parameters this rank holds."""


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TraceFacts(_Strict):
    """Who computed when in the traced repetition: decode, from its first computation to its
    last on any rank."""

    window_s: Seconds
    idle_share: Share
    """Of all ranks' time in it, the part in which they did not compute: the bubble."""
    idle_share_of_ranks: list[Share]
    schedule_idle_share: Share
    """What the schedule alone would cost: equal stages, communication free."""


class Heartbeat(_Strict):
    """Progress of a running attempt: heartbeat.json, replaced as the attempt goes on."""

    at: datetime
    phase: Annotated[str, Field(min_length=1, max_length=40)]
    """What it does now: loading, warm-up, measuring …"""
    done: int = Field(default=0, ge=0)
    total: int = Field(default=0, ge=0)
    """Steps of the whole attempt, where they are known: `done` of them are behind it."""
    host: str = ""
    started_at: datetime | None = None
    """When the attempt was opened."""


class Record(_Strict):
    """The outcome of one attempt of one case."""

    schema_version: Literal[1] = 1
    case: Case
    attempt: int = Field(ge=1)
    status: Status
    cause: Cause | None = None
    """Why it failed; None exactly when status is ok."""
    evidence: list[str] = []
    """The log lines that prove the cause, earliest first."""
    remedy: str | None = None
    """What a person can do about it."""
    retryable: bool = False
    """Whether the same case can succeed when it is run again unchanged."""
    started_at: datetime
    ended_at: datetime
    samples: list[Sample] = []
    ranks: list[RankFacts] = []
    prompt_lengths: list[int] = []
    """Tokens of each prompt of the batch before padding."""
    output_tokens: int = 0
    """Tokens one sample generated over all sequences, none counted after an end token."""
    ids_digest: str | None = None
    """SHA-256 of the generated ids, row by row."""
    trace: TraceFacts | None = None
    """Where the case asks for a trace."""
    shape: ModelShape | None = None
    """The model's; None if the attempt failed before it was read."""
    split: list[int] = []
    """Layers of each stage, as they were."""
    weights_wait: str | None = None
    """Where zero-offload kept streamed weights, and how it read them."""
    cluster: str = ""
    """Profile that the case was submitted to; empty if it was run by hand."""
    environment: Environment | None = None
    """Machines, software, code and job; None if the attempt failed before it was known."""
    bandwidths: Bandwidths | None = None
    """What the machine was measured to do; None if it was not measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.status == "ok") != (self.cause is None):
            raise ValueError(
                f"status {self.status} does not go with cause {self.cause}"
            )
        if self.status == "ok" and not (
            self.samples and self.ranks and self.ids_digest
        ):
            raise ValueError("an ok record needs samples, ranks and ids_digest")
        if self.status == "ok" and self.output_tokens < 1:
            raise ValueError("an ok record needs at least one output token")
        return self


def read_record(text: str, source: str) -> Record:
    """Return the record in `text`.

    Args:
        text: JSON.
        source: named in the error.

    Raises:
        RecordError: it is not JSON, not this schema version, or contradicts itself.
    """
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        raise RecordError(
            f"{source} is not a valid record: {where}: {first['msg']}"
        ) from error
