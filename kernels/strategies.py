"""Strategies: how a case runs on its GPUs, as typed options. No torch.

The options of each strategy are the fields of one small dataclass. The grid's schema, the labels,
the case ids, the columns of tables and the forecast are derived from these fields, so that a new
option is written here once (and where the engine acts on it). A label shows an option that is not
at its default by its value, or as `label` in the field's metadata says.

    Parallel(tensor=TensorParallel(degree=2), pipeline=PipelineParallel(schedule="async"))

A strategy of a grid may leave one degree open; `resolve` fills it in for a number of GPUs.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_type_hints

from annotated_types import Ge, Le, MinLen

# How pydantic, which kernels do not import, validates these classes.
_STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}
_STRICT_BY_GRID_NAME = _STRICT | {
    "alias_generator": lambda name: name.replace("_", "-"),
    "populate_by_name": True,
}

Count = Annotated[int, Ge(1)]


class StrategyError(ValueError):
    """A strategy that contradicts itself, the number of GPUs, or the model."""


class _Options:
    __pydantic_config__ = _STRICT


@dataclass(frozen=True, kw_only=True)
class Single(_Options):
    """One GPU, the whole model."""


@dataclass(frozen=True, kw_only=True)
class ModelParallel(_Options):
    """Whole layers on each GPU, one GPU at work at a time."""

    degree: Count | None = None
    """Number of stages; default: what the other parts leave of `gpus`."""
    split: Annotated[tuple[Count, ...], MinLen(1)] | None = field(
        default=None, metadata={"label": "split {}"}
    )
    """Layers of each stage; default: as equal as can be."""
    balance: Literal["equal", "profiled"] = "equal"
    """How layers are shared out: equal counts, or PipeDream's partition of a profile."""

    def __post_init__(self) -> None:
        if self.split and self.balance != "equal":
            raise StrategyError(
                "split says the layers of each stage: leave balance out"
            )
        if self.split and self.degree not in (None, len(self.split)):
            raise StrategyError(
                f"split must give the layers of each of {self.degree} stages, got "
                f"{len(self.split)} numbers"
            )


@dataclass(frozen=True, kw_only=True)
class PipelineParallel(ModelParallel):
    """Whole layers on each GPU, and micro-batches so that all GPUs are at work."""

    schedule: Literal["gpipe", "async"] = "gpipe"
    """gpipe: fill and drain for each token. async: a micro-batch's next token at once."""
    micro_batches: Count | None = field(default=None, metadata={"label": "m{}"})
    """Parts the sequences are cut into; default: the degree, or the sequences if fewer."""
    prefill_micro_batches: Count | None = field(
        default=None, metadata={"label": "prefill m{}"}
    )
    """The same for the prompts; default: micro_batches."""
    in_flight: Count | None = field(default=None, metadata={"label": "{} in flight"})
    """Sequences in flight at once, a multiple of batch_size; default: batch_size."""


@dataclass(frozen=True, kw_only=True)
class TensorParallel(_Options):
    """Heads, feed-forward columns and vocabulary rows of each layer over the GPUs."""

    degree: Count | None = None
    """Number of shards; default: what the other parts leave of `gpus`."""


@dataclass(frozen=True, kw_only=True)
class ZeroOffload(_Options):
    """Weights streamed to the GPU layer by layer; on several GPUs each streams its shard."""

    resident: Annotated[float, Ge(0), Le(1)] | Literal["auto"] = field(
        default=0.0, metadata={"label": "resident {}"}
    )
    """Share of the layers that stays on the GPU; auto: as many as fit."""
    source: Literal["host", "disk"] = "host"
    """Where the streamed weights wait: in host memory, or in files."""
    kv: Literal["device", "host"] = field(
        default="device", metadata={"label": "KV on {}"}
    )
    """Where keys and values are kept."""
    memory_budget_bytes: Count | None = field(
        default=None, metadata={"label": "budget {}"}
    )
    """What one device may hold, such as 8GiB: weights, cache and activations; on a CPU the whole
    process, whose weights then wait on disk. Default: no limit."""


@dataclass(frozen=True, kw_only=True)
class DataParallel(_Options):
    """Independent replicas, each with a batch of its own."""

    degree: Count | None = None
    """Number of replicas; default: what the other parts leave of `gpus`."""


Part = Single | ModelParallel | TensorParallel | ZeroOffload | DataParallel


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Our engine, with one strategy or a combination of several."""

    __pydantic_config__: ClassVar[Any] = _STRICT_BY_GRID_NAME

    single: Single | None = None
    model: ModelParallel | None = None
    pipeline: PipelineParallel | None = None
    tensor: TensorParallel | None = None
    zero_offload: ZeroOffload | None = None
    data: DataParallel | None = None

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise StrategyError("a strategy needs at least one part")
        # A pipeline would need each streamed layer once a micro-batch.
        for one, other in (("model", "pipeline"), ("pipeline", "zero-offload")):
            if one in names and other in names:
                raise StrategyError(
                    f"{one} does not go together with {other}; take one of them"
                )
        if "single" in names and len(names) > 1:
            raise StrategyError(
                f"single goes with nothing else; leave it out of {'+'.join(names)}"
            )
        if len(self.open_degrees) > 1:
            first, second, *_ = self.open_degrees
            raise StrategyError(
                f"at most one part may leave its degree open, got "
                f"{' and '.join(self.open_degrees)}; write the degree of all but one: "
                f"{{{first}: 2, {second}: {{}}}}"
            )

    @property
    def parts(self) -> dict[str, Part]:
        """Name as in a grid → options, in the order of `NAMES`."""
        found = {name: getattr(self, attribute(name)) for name in NAMES}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its parts."""
        return tuple(self.parts)

    # What every kind of strategy tells a case, a peer engine's too.

    @property
    def world_size(self) -> int:
        """Number of ranks, one per GPU. All degrees must be known."""
        return self.replicas * self.stages * self.shards

    def sequences(self, batch_size: int) -> int:
        """Return all sequences of one generation: those in flight in every replica."""
        return self.replicas * (self.in_flight or batch_size)

    def options(self) -> dict[str, dict[str, Any]]:
        """Part → its options that are not at their defaults: how a grid would write it."""
        return {
            name: {each: getattr(part, each) for each in _changed(part)}
            for name, part in self.parts.items()
        }

    # Degrees.

    @property
    def open_degrees(self) -> list[str]:
        """Parts whose degree depends on the number of GPUs."""
        degrees = degrees_of(self)
        closed = None not in degrees.values() and "tensor" not in degrees
        if "zero-offload" in self.names and closed:
            return ["tensor"]  # plain zero-offload on several GPUs
        return [name for name, degree in degrees.items() if degree is None]

    @property
    def replicas(self) -> int:
        """Degree of data parallelism."""
        return (self.data and self.data.degree) or 1

    @property
    def stages(self) -> int:
        """Degree of model or pipeline parallelism."""
        staged = self._staged
        return (staged.degree or len(staged.split or (0,))) if staged else 1

    @property
    def shards(self) -> int:
        """Degree of tensor parallelism."""
        return (self.tensor and self.tensor.degree) or 1

    # What the engine reads, whatever the parts are.

    @property
    def _staged(self) -> ModelParallel | None:
        return self.pipeline or self.model

    @property
    def schedule(self) -> str:
        """`gpipe` or `async`; `sequential` without a pipeline."""
        return self.pipeline.schedule if self.pipeline else "sequential"

    @property
    def micro_batches(self) -> int:
        """Parts that the sequences in flight are cut into while decoding."""
        return (self.pipeline and self.pipeline.micro_batches) or 1

    @property
    def prefill_micro_batches(self) -> int:
        """The same during the prefill."""
        asked = self.pipeline and self.pipeline.prefill_micro_batches
        return asked or self.micro_batches

    @property
    def in_flight(self) -> int | None:
        """Sequences in flight in each replica; None: the batch."""
        return self.pipeline.in_flight if self.pipeline else None

    @property
    def split(self) -> tuple[int, ...]:
        """Layers of each stage; empty if they are equal or to be profiled."""
        return (self._staged and self._staged.split) or ()

    @property
    def needs_profile(self) -> bool:
        """Whether the split follows from a profile of the layers on the devices."""
        profiled = self._staged is not None and self._staged.balance == "profiled"
        return profiled and self.stages > 1

    def with_split(self, split: tuple[int, ...]) -> Self:
        """Return the same strategy with these layers for each stage."""
        if self.pipeline:
            pipeline = replace(self.pipeline, split=split, balance="equal")
            return replace(self, pipeline=pipeline)
        assert self.model is not None
        return replace(self, model=replace(self.model, split=split, balance="equal"))


def attribute(name: str) -> str:
    """Return the field of `Parallel` for a name in a grid."""
    return name.replace("-", "_")


Strategy = Parallel
"""What runs a case. A peer engine, with options of its own, is one more member of a union."""

NAMES = tuple(each.name.replace("_", "-") for each in fields(Parallel))
PARTS: dict[str, type[Any]] = {
    name: get_args(get_type_hints(Parallel)[attribute(name)])[0] for name in NAMES
}
"""Name as in a grid → its options."""


def has_degree(name: str) -> bool:
    """Return whether the part of that name has a degree."""
    return name in PARTS and "degree" in {each.name for each in fields(PARTS[name])}


def _changed(part: Part) -> list[str]:
    return [
        each.name for each in fields(part) if getattr(part, each.name) != each.default
    ]


def degrees_of(strategy: Parallel) -> dict[str, int | None]:
    """Part → its degree, or None if it is open; parts without a degree are left out."""
    degrees: dict[str, int | None] = {}
    for name, part in strategy.parts.items():
        if has_degree(name):
            split = getattr(part, "split", None)
            degree = getattr(part, "degree", None)
            degrees[name] = degree or (len(split) if split else None)
    return degrees
