"""Strategies as a grid writes them: short forms, labels, and what they are on a number of GPUs.

    tensor                                  a name: every option at its default
    {tensor: 2}                             a name and its degree
    {pipeline: {schedule: async}}           a name and its options
    {tensor: 2, pipeline: {}}               a combination; pipeline takes what remains of gpus

The options themselves are fields of `kernels.strategies`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, TypeAdapter

from kernels.strategies import (
    NAMES,
    PARTS,
    Parallel,
    Part,
    PipelineParallel,
    Strategy,
    StrategyError,
    attribute,
    degrees_of,
    has_degree,
)

_SIZE = TypeAdapter(ByteSize)


def spelled_out(given: Any) -> Mapping[str, Any]:
    """Return a strategy as a grid may write it, with every short form written out.

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


def _from_grid(given: Any) -> Any:
    return {
        name: {key: _option(key, value) for key, value in options.items()}
        if isinstance(options, dict)
        else options
        for name, options in spelled_out(given).items()
    }


def _option(option: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)  # which the strict check demands after this step
    if not (option.endswith("_bytes") and isinstance(value, str)):
        return value
    size = int(_SIZE.validate_python(value))
    if size < 2**20:  # ByteSize takes "1,5 GiB" for one byte
        raise ValueError(f"a size is a number and a unit, at least 1MiB, got {value!r}")
    return size


Written = Annotated[Strategy, BeforeValidator(_from_grid)]
"""A strategy of a grid; one of its degrees may be open."""


def matches(strategy: Strategy, pattern: Strategy, written: Any) -> bool:
    """Return whether a strategy has the same parts as a pattern, and every option that it writes.

    Args:
        written: the pattern as the file has it: an option at its default counts if written.
    """
    return strategy.names == pattern.names and all(
        getattr(strategy.parts[name], option) == getattr(pattern.parts[name], option)
        for name, options in spelled_out(written).items()
        for option in options
    )


def add_short_forms(definitions: dict[str, Any]) -> None:
    """Add what `Written` accepts besides options to the `$defs` of a JSON Schema."""
    full = definitions[Strategy.__name__]
    for name, part in full["properties"].items():
        degree = [{"type": "integer", "minimum": 1}] if has_degree(name) else []
        part["anyOf"] = [*degree, *part["anyOf"]]
    names = {"enum": list(NAMES)}
    definitions[Strategy.__name__] = {"anyOf": [names, full | {"minProperties": 1}]}
    for part in PARTS.values():
        options = definitions[part.__name__].get("properties", {})
        for option, schema in options.items():
            if option.endswith("_bytes"):
                schema["anyOf"] = [*schema["anyOf"], {"type": "string"}]


def resolve(strategy: Parallel, gpus: int, batch_size: int) -> Parallel:
    """Return the strategy on this many GPUs: every degree, and what follows from the batch, set.

    What equals the default stays at the default, so that it does not change a case id.

    Raises:
        StrategyError: the degrees cannot multiply to `gpus`.
    """
    degrees = _closed_degrees(strategy, gpus)
    parts: dict[str, Any] = dict(strategy.parts)
    for name, degree in degrees.items():
        if name in parts or degree > 1:
            parts[name] = replace(parts.get(name, PARTS[name]()), degree=degree)
    if strategy.pipeline is not None:
        stages = degrees["pipeline"]
        parts["pipeline"] = _with_batch(strategy.pipeline, stages, batch_size)
    return Parallel(**{attribute(name): part for name, part in parts.items()})


def _closed_degrees(strategy: Parallel, gpus: int) -> dict[str, int]:
    degrees = {name: degree for name, degree in degrees_of(strategy).items() if degree}
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


_LABEL_ORDER = ("single", "data", "tensor", "model", "pipeline", "zero-offload")


def label_of(strategy: Strategy) -> str:
    """Return what tables show: the same for every number of GPUs and order of writing."""
    parts = strategy.parts
    words = (_label(name, parts[name]) for name in _LABEL_ORDER if name in parts)
    return "+".join(words)


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
