"""Strategies: how a case runs on its GPUs, as typed options. No torch.

The options of each strategy are the fields of one small dataclass. The grid's schema, the labels,
the case ids, the columns of tables and the forecast are derived from these fields, so that a new
option is written here once (and where the engine acts on it). A label shows an option that is not
at its default by its value, or as `label` in the field's metadata says.

    Parallel(tensor=TensorParallel(degree=2), pipeline=PipelineParallel(schedule="async"))

A strategy of a grid may leave one degree open; `resolve` fills it in for a number of GPUs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_type_hints

from annotated_types import Ge, Le, MinLen

# pydantic, which kernels do not import, validates these classes by this configuration.
_VALIDATION = {
    "strict": True,
    "extra": "forbid",
    "use_attribute_docstrings": True,
    "alias_generator": lambda name: name.replace("_", "-"),
    "populate_by_name": True,
}
_OPTIONS_VALIDATION = {
    "strict": True,
    "extra": "forbid",
    "use_attribute_docstrings": True,
}

Count = Annotated[int, Ge(1)]


class StrategyError(ValueError):
    """A strategy that contradicts itself, the number of GPUs, or the model."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """One GPU, the whole model."""

    __pydantic_config__: ClassVar[Any] = _OPTIONS_VALIDATION


@dataclass(frozen=True, kw_only=True)
class ModelParallel:
    """Whole layers on each GPU, one GPU at work at a time."""

    __pydantic_config__: ClassVar[Any] = _OPTIONS_VALIDATION

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
class TensorParallel:
    """Heads, feed-forward columns and vocabulary rows of each layer over the GPUs."""

    __pydantic_config__: ClassVar[Any] = _OPTIONS_VALIDATION

    degree: Count | None = None
    """Number of shards; default: what the other parts leave of `gpus`."""


@dataclass(frozen=True, kw_only=True)
class ZeroOffload:
    """Weights streamed to the GPU layer by layer; on several GPUs each streams its shard."""

    __pydantic_config__: ClassVar[Any] = _OPTIONS_VALIDATION

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
class DataParallel:
    """Independent replicas, each with a batch of its own."""

    __pydantic_config__: ClassVar[Any] = _OPTIONS_VALIDATION

    degree: Count | None = None
    """Number of replicas; default: what the other parts leave of `gpus`."""


Part = (
    Single
    | ModelParallel
    | PipelineParallel
    | TensorParallel
    | ZeroOffload
    | DataParallel
)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Our engine, with one strategy or a combination of several."""

    __pydantic_config__: ClassVar[Any] = _VALIDATION

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
        found = {name: getattr(self, _attribute(name)) for name in NAMES}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its parts."""
        return tuple(self.parts)

    @property
    def label(self) -> str:
        """What tables show: the same for every number of GPUs and order of writing."""
        parts = self.parts
        words = (_label(name, parts[name]) for name in _LABEL_ORDER if name in parts)
        return "+".join(words)

    # What every kind of strategy tells a case, a peer engine's too.

    @property
    def world_size(self) -> int:
        """Number of ranks, one per GPU. All degrees must be known."""
        return self.replicas * self.stages * self.shards

    def sequences(self, batch_size: int) -> int:
        """All sequences of one generation: those in flight in every replica."""
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
        degrees = _degrees(self)
        closed = None not in degrees.values() and "tensor" not in degrees
        if "zero-offload" in self.names and closed:
            return ["tensor"]  # plain zero-offload on several GPUs
        return [name for name, degree in degrees.items() if degree is None]

    def resolve(self, gpus: int, batch_size: int) -> Self:
        """The strategy on this many GPUs: every degree, and what follows from the batch, set.

        What equals the default stays at the default, so that it does not change a case id.

        Raises:
            StrategyError: the degrees cannot multiply to `gpus`.
        """
        degrees = _closed_degrees(self, gpus)
        parts: dict[str, Any] = dict(self.parts)
        for name, degree in degrees.items():
            if name in parts or degree > 1:
                parts[name] = replace(parts.get(name, PARTS[name]()), degree=degree)
        if self.pipeline is not None:
            stages = degrees["pipeline"]
            parts["pipeline"] = _with_batch(self.pipeline, stages, batch_size)
        return type(self)(**{_attribute(name): part for name, part in parts.items()})

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
        """Layers of each stage; empty: what `balance` says."""
        return (self._staged and self._staged.split) or ()

    @property
    def balance(self) -> str:
        """`equal` or `profiled`."""
        return self._staged.balance if self._staged else "equal"

    def with_split(self, split: tuple[int, ...]) -> Self:
        """The same with these layers for each stage."""
        staged = self._staged
        assert staged is not None
        part = replace(staged, split=split, balance="equal")
        return replace(self, **{_name_of(part): part})  # type: ignore[arg-type]


def _attribute(name: str) -> str:
    return name.replace("-", "_")


Strategy = Parallel
"""What runs a case. A peer engine, with options of its own, is one more member of a union."""

NAMES = tuple(each.name.replace("_", "-") for each in fields(Parallel))
_LABEL_ORDER = ("single", "data", "tensor", "model", "pipeline", "zero-offload")
PARTS: dict[str, type[Any]] = {
    name: get_args(get_type_hints(Parallel)[_attribute(name)])[0] for name in NAMES
}
"""Name as in a grid → its options."""


def spelled_out(given: Any) -> Mapping[str, Any]:
    """A strategy as a grid may write it, with every short form written out.

    >>> spelled_out("tensor"), spelled_out({"tensor": 2, "pipeline": None})
    ({'tensor': {}}, {'tensor': {'degree': 2}, 'pipeline': {}})

    Raises:
        StrategyError: it is neither a name nor a mapping.
    """
    if isinstance(given, str):
        return {given: {}}
    if not isinstance(given, Mapping):
        raise StrategyError(
            "a strategy is a name, {name: degree} or {name: {option: value}}"
        )
    return {name: _spelled_out_part(name, options) for name, options in given.items()}


def _spelled_out_part(name: str, options: Any) -> Any:
    if options is None:
        return {}
    if has_degree(name) and isinstance(options, int):
        return {"degree": options}
    return options


def has_degree(name: str) -> bool:
    """Whether the part of that name has a degree."""
    return name in PARTS and "degree" in {each.name for each in fields(PARTS[name])}


def _name_of(part: Part) -> str:
    return next(name for name, kind in PARTS.items() if kind is type(part))


def _changed(part: Part) -> list[str]:
    return [
        each.name for each in fields(part) if getattr(part, each.name) != each.default
    ]


def _degrees(strategy: Parallel) -> dict[str, int | None]:
    degrees: dict[str, int | None] = {}
    for name, part in strategy.parts.items():
        if has_degree(name):
            split = getattr(part, "split", None)
            degree = getattr(part, "degree", None)
            degrees[name] = degree or (len(split) if split else None)
    return degrees


def _closed_degrees(strategy: Parallel, gpus: int) -> dict[str, int]:
    degrees = {name: degree for name, degree in _degrees(strategy).items() if degree}
    known = prod(degrees.values())
    product = " × ".join(f"{name} {degree}" for name, degree in degrees.items())
    still_open = strategy.open_degrees
    if strategy.single and gpus > 1:
        raise StrategyError(f"single runs on one GPU, and gpus is {gpus}")
    if gpus % known or (not still_open and known != gpus):
        rule = "divide" if still_open else "multiply to"
        raise StrategyError(f"the degrees must {rule} gpus: {product} for gpus {gpus}")
    return degrees | dict.fromkeys(still_open, gpus // known)


def _with_batch(
    pipeline: PipelineParallel, stages: int, batch_size: int
) -> PipelineParallel:
    in_flight = pipeline.in_flight if pipeline.in_flight != batch_size else None
    micro = pipeline.micro_batches or min(stages, in_flight or batch_size)
    prefill = pipeline.prefill_micro_batches
    return replace(
        pipeline,
        degree=stages,
        micro_batches=micro,
        prefill_micro_batches=None if prefill == micro else prefill,
        in_flight=in_flight,
    )


def _label(name: str, part: Part) -> str:
    degree = getattr(part, "degree", None)
    return " ".join([f"{name}{degree or ''}", *_option_labels(part)])


def _option_labels(part: Part) -> Iterator[str]:
    for each in fields(part):
        value = getattr(part, each.name)
        if each.name != "degree" and value != each.default:
            yield each.metadata.get("label", "{}").format(_shown(each.name, value))


def _shown(option: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if option.endswith("_bytes"):
        unit, name = (2**30, "GiB") if value >= 2**30 else (2**20, "MiB")
        return f"{value / unit:g}{name}"
    return f"{value:g}" if isinstance(value, float) else str(value)
