"""One frozen point of a grid: all that is measured, and nothing about where it runs.

A case is written as JSON by `orch submit` and read by every rank of a job.
"""

import hashlib
import json
import re
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from kernels.shapes import DTYPE_BYTES, ModelShape
from kernels.strategies import Strategy

DType = Literal["float64", "float32", "bfloat16", "float16"]
assert set(DTYPE_BYTES) == set(DType.__args__)  # type: ignore[attr-defined]

_SHORT_DTYPE = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}


class Case(BaseModel):
    """What is measured. A new field must default to what was done before it existed, so that
    the ids of finished cases stay what they are."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    model: str = Field(min_length=1)
    """The name the grid gives it."""
    path: str | None = None
    """Checkpoint folder as the grid writes it (`$USER` and `~` not expanded)."""
    random: ModelShape | None = None
    """Shape of a model with seeded random weights, where there is no checkpoint."""
    model_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of random weights."""
    label: str
    """Readable label, the same for every GPU count of a row; not part of the identity."""
    strategy: Strategy
    """The strategy with every degree resolved for `gpus`."""
    gpus: int = Field(ge=1)
    """Ranks: one GPU each, or one worker process where there is none."""
    dtype: DType = "bfloat16"
    batch_size: int = Field(default=4, ge=1)
    """Sequences in one batch."""
    prompts: str = "random"
    """File in Alpaca's schema, or `random`: seeded ids."""
    prompt_tokens: int | None = Field(default=64, ge=1)
    """Tokens a prompt is left-padded or cut to; None: the longest of the batch, nothing cut."""
    new_tokens: int = Field(default=128, ge=1)
    """Tokens generated per sequence, the first one (of the prefill) included."""
    warmup: int = Field(default=1, ge=0)
    """Generations before the clock counts."""
    repeats: int = Field(default=3, ge=1)
    """Generations measured."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of random prompts and of sampling."""
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 is greedy."""
    stop_at_eos: bool = False
    """End a sequence at its end token; off while measuring, so that the work is fixed."""
    trace: bool | Literal["flame"] = False
    """Generate once more, outside the measurement, and note who computed when; `flame`: and draw
    flame graphs of where the time goes."""

    @field_serializer("strategy")
    def _as_written(self, strategy: Strategy) -> dict[str, Any]:
        return strategy.options()

    @field_serializer("random")
    def _as_given(self, shape: ModelShape | None) -> dict[str, Any] | None:
        return None if shape is None else _without_defaults(shape)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy.world_size != self.gpus:
            raise ValueError(
                f"the degrees must multiply to gpus: {self.strategy.world_size} and {self.gpus}"
            )
        if self.path is not None and self.random is not None:
            raise ValueError("weights come from path or are random, not both")
        return self

    @property
    def case_id(self) -> str:
        """Readable slug and a short hash of all that is measured; stable across machines."""
        names = "+".join(self.strategy.names)
        words = (self.model, names, f"{self.gpus}x", f"b{self.batch_size}")
        slug = "_".join(_slug(word) for word in (*words, _SHORT_DTYPE[self.dtype]))
        return f"{slug[:80]}-{_digest(self)}"


@lru_cache(maxsize=4096)
def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "x"


def _digest(case: Case) -> str:
    # Defaults are left out, so that a field added later does not rename finished cases.
    measured = case.model_dump(mode="json", exclude_defaults=True, exclude={"label"})
    text = json.dumps(
        measured, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _without_defaults(shape: ModelShape) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies deeply, and `orch status` asks for 10,000 ids.
    changed = {
        field.name: getattr(shape, field.name)
        for field in fields(ModelShape)
        if getattr(shape, field.name) != field.default
    }
    return {
        name: asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in changed.items()
    }
