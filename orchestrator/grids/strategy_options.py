"""The options of each part of a strategy, as a grid writes them.

A new option is a field here, a field of the same name in `kernels.placement.Strategy`, and,
where it has a short form, a line in `SHORT`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from orchestrator.units import num_bytes

Degree = Annotated[int | None, Field(default=None, ge=1)]
Count = Annotated[int, Field(ge=1)]


def _bytes(value: Any) -> Any:
    return num_bytes(value) if isinstance(value, str) else value


def _resident(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a share of the layers from 0 to 1, or auto")
    if not 0 <= value <= 1:
        raise ValueError("must be a share of the layers from 0 to 1, or auto")
    return float(value)


_RESIDENT_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "auto"}]
}
_BYTES_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}


class Options(BaseModel):
    """Options of one part of a strategy."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Degrees(Options):
    """Options of a part that is a number of ways."""

    degree: Degree = None
    """How many ways; open: what the other parts leave of `gpus`."""


class ModelOptions(Degrees):
    """Whole layers on each GPU, one GPU at work at a time."""

    split: Annotated[list[Count] | None, Field(min_length=1)] = None
    """Layers of each stage; default: as equal as can be."""
    balance: Literal["equal", "profiled"] = "equal"
    """How layers are shared out: equal counts, or PipeDream's partition of a profile."""

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.split and self.balance != "equal":
            raise ValueError("split says the layers of each stage: leave balance out")
        if self.split and self.degree not in (None, len(self.split)):
            raise ValueError(
                f"split must give the layers of each of {self.degree} stages, got "
                f"{len(self.split)} numbers"
            )
        return self


class PipelineOptions(ModelOptions):
    """Whole layers on each GPU, micro-batches so that all are at work."""

    schedule: Literal["gpipe", "async"] = "gpipe"
    """gpipe: fill and drain for each token. async: a micro-batch's next token at once."""
    micro_batches: Count | None = None
    """Parts the sequences are cut into; default: the degree, or the sequences where fewer."""
    prefill_micro_batches: Count | None = None
    """The same for the prompts; default: micro_batches."""
    in_flight: Count | None = None
    """Sequences in flight at once, a multiple of batch_size; default: batch_size."""


class OffloadOptions(Options):
    """Weights streamed to the GPU layer by layer; on several GPUs each streams its tensor shard."""

    resident: Annotated[
        float | Literal["auto"],
        BeforeValidator(_resident),
        WithJsonSchema(_RESIDENT_SCHEMA),
    ] = 0.0
    """Share of the layers that stays on the GPU; auto: as many as fit."""
    source: Literal["host", "disk"] = "host"
    """Where the streamed weights wait: in host memory, or in files."""
    kv: Literal["device", "host"] = "device"
    """Where keys and values are kept."""
    memory_budget_bytes: (
        Annotated[Count, BeforeValidator(_bytes), WithJsonSchema(_BYTES_SCHEMA)] | None
    ) = None
    """What one device may hold, such as 8GiB: weights, cache and activations; on a CPU the whole
    process, whose weights then wait on disk. Default: no limit."""


SHORT = {
    "micro_batches": "m{}",
    "prefill_micro_batches": "prefill m{}",
    "in_flight": "{} in flight",
    "resident": "resident {}",
    "kv": "KV on {}",
    "memory_budget_bytes": "budget {}",
    "split": "split {}",
}
"""How a label shows an option that is not at its default; others by their value alone."""
