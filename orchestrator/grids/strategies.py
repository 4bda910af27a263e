"""Strategies as a grid writes them: their parts, options and degrees; labels for people.

    tensor                                  a bare name: every option at its default
    {tensor: 2}                             a name and its degree
    {pipeline: {schedule: async}}           a name and its options
    {tensor: 2, pipeline: {}}               a combination; pipeline takes what remains of gpus

What options there are: `orchestrator.grids.strategy_options`.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kernels.placement import NAMES, Strategy
from orchestrator.grids.strategy_options import (
    SHORT,
    Degrees,
    ModelOptions,
    OffloadOptions,
    Options,
    PipelineOptions,
)


class StrategyError(ValueError):
    """A strategy that cannot take this number of GPUs; the message says why and the way out."""


class Written(BaseModel):
    """A strategy as written: its parts, each with its options."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    single: Options | None = None
    """One GPU, the whole model."""
    model: ModelOptions | None = None
    pipeline: PipelineOptions | None = None
    tensor: Degrees | None = None
    """Heads, feed-forward columns and vocabulary rows of each layer over the GPUs."""
    zero_offload: OffloadOptions | None = Field(default=None, alias="zero-offload")
    data: Degrees | None = None
    """Independent replicas, each with a batch of its own."""

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if not isinstance(value, dict):
            raise ValueError(
                "a strategy is a name, {name: degree} or {name: {option: value}}"
            )
        return {name: _options(name, given) for name, given in value.items()}

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        names = self.names
        if not names:
            raise ValueError("a strategy needs at least one part")
        # a pipeline would need each streamed layer once a micro-batch
        for one, other in (("model", "pipeline"), ("pipeline", "zero-offload")):
            if one in names and other in names:
                raise ValueError(
                    f"{one} does not go together with {other}; take one of them"
                )
        if "single" in names and len(names) > 1:
            raise ValueError(
                f"single goes with nothing else; leave it out of {'+'.join(names)}"
            )
        if len(self.open) > 1:
            raise ValueError(
                f"at most one part may leave its degree open, got {' and '.join(self.open)}; "
                f"write the degree of all but one: {{{self.open[0]}: 2, {self.open[1]}: {{}}}}"
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The short forms too."""
        mapping = handler.resolve_ref_schema(handler(core))
        for name, part in mapping["properties"].items():
            short = [{"type": "integer", "minimum": 1}] if name in _WITH_DEGREE else []
            part["anyOf"] = [*short, *part["anyOf"]]
        full = dict(mapping, minProperties=1)
        mapping.clear()
        mapping["anyOf"] = [{"enum": list(NAMES)}, full]
        return mapping

    @property
    def parts(self) -> dict[str, Options]:
        """Name → options, in the order of `NAMES`."""
        found = {name: getattr(self, name.replace("-", "_")) for name in NAMES}
        return {name: options for name, options in found.items() if options is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """The parts it is made of."""
        return tuple(self.parts)

    @property
    def open(self) -> list[str]:
        """The parts whose degree is left to `gpus`."""
        degrees = _degrees(self)
        closed = None not in degrees.values() and "tensor" not in degrees
        if "zero-offload" in self.names and closed:
            return ["tensor"]  # plain zero-offload on several GPUs
        return [name for name, degree in degrees.items() if degree is None]

    @property
    def label(self) -> str:
        """What a person reads; the same for every GPU count, whatever the order of writing."""
        return "+".join(
            _label(name, self.parts[name])
            for name in _OUTER_FIRST
            if name in self.parts
        )

    def matches(self, pattern: "Written") -> bool:
        """Whether it is made of the same parts, with every option that the pattern writes."""
        return self.names == pattern.names and all(
            getattr(self.parts[name], option) == getattr(options, option)
            for name, options in pattern.parts.items()
            for option in options.model_fields_set
        )

    def resolve(self, gpus: int, batch_size: int) -> Strategy:
        """The strategy with every degree a number.

        Raises:
            StrategyError: the degrees cannot multiply to `gpus`.
        """
        degrees = _closed(self, gpus)
        stages = degrees.get("pipeline", degrees.get("model", 1))
        return Strategy(
            names=self.names,
            data=degrees.get("data", 1),
            stages=stages,
            tensor=degrees.get("tensor", 1),
            **_chosen(self, stages, batch_size),
        )


_WITH_DEGREE = ("model", "pipeline", "tensor", "data")
_OUTER_FIRST = ("single", "data", "tensor", "model", "pipeline", "zero-offload")


def _options(name: str, given: Any) -> Any:
    if given is None:
        return {}
    if name in _WITH_DEGREE and isinstance(given, int):
        return {"degree": given}
    return given


def _degrees(written: Written) -> dict[str, int | None]:
    return {
        name: options.degree or _num_split(options)
        for name, options in written.parts.items()
        if isinstance(options, Degrees)
    }


def _num_split(options: Degrees) -> int | None:
    split = options.split if isinstance(options, ModelOptions) else None
    return len(split) if split else None


def _closed(written: Written, gpus: int) -> dict[str, int]:
    degrees = {name: degree for name, degree in _degrees(written).items() if degree}
    known = prod(degrees.values())
    product = " × ".join(f"{name} {degree}" for name, degree in degrees.items())
    if written.names == ("single",) and gpus > 1:
        raise StrategyError(f"single runs on one GPU, and gpus is {gpus}")
    if gpus % known or (not written.open and known != gpus):
        rule = "divide" if written.open else "multiply to"
        raise StrategyError(f"the degrees must {rule} gpus: {product} for gpus {gpus}")
    return degrees | dict.fromkeys(written.open, gpus // known)


def _chosen(written: Written, stages: int, batch_size: int) -> dict[str, Any]:
    # What equals the default stays the default, so that it does not change a case's identity.
    chosen: dict[str, Any] = {}
    for options in written.parts.values():
        chosen |= options.model_dump(exclude={"degree"}, exclude_none=True)
    if "split" in chosen:
        chosen["split"] = tuple(chosen["split"])
    if "pipeline" in written.names:
        chosen.setdefault(
            "micro_batches", min(stages, chosen.get("in_flight", batch_size))
        )
    for option, same in (
        ("prefill_micro_batches", chosen.get("micro_batches")),
        ("in_flight", batch_size),
    ):
        if chosen.get(option) == same:
            chosen.pop(option, None)
    return chosen


def _label(name: str, options: Options) -> str:
    return " ".join([name + _degree_word(options), *_words(options)])


def _degree_word(options: Options) -> str:
    degree = options.degree if isinstance(options, Degrees) else None
    return "" if degree is None else str(degree)


def _words(options: Options) -> Iterator[str]:
    for option, field in type(options).model_fields.items():
        value = getattr(options, option)
        if option != "degree" and value not in (None, field.default):
            yield SHORT.get(option, "{}").format(_word(option, value))


def _word(option: str, value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    if option == "memory_budget_bytes":
        unit, name = (2**30, "GiB") if value >= 2**30 else (2**20, "MiB")
        return f"{value / unit:g}{name}"
    return f"{value:g}" if isinstance(value, float) else str(value)
