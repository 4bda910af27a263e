"""Strategies as a grid writes them: short forms, sizes with units, and their JSON Schema.

    tensor                                  a name: every option at its default
    {tensor: 2}                             a name and its degree
    {pipeline: {schedule: async}}           a name and its options
    {tensor: 2, pipeline: {}}               a combination; pipeline takes what remains of gpus

The options themselves are fields of `kernels.strategies`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kernels.strategies import NAMES, Strategy, has_degree, spelled_out

_SIZE = TypeAdapter(ByteSize)


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


class _ShortForms:
    """Adds the short forms, and sizes as text, to the JSON Schema of a strategy."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        full = handler.resolve_ref_schema(schema)
        if "anyOf" in full:
            return schema  # done already: this schema is used in several places
        for name, part in full["properties"].items():
            degree = [{"type": "integer", "minimum": 1}] if has_degree(name) else []
            part["anyOf"] = [*degree, *part["anyOf"]]
            for each in part["anyOf"]:
                _allow_sizes(handler.resolve_ref_schema(each))
        mapping = dict(full, minProperties=1)
        full.clear()
        full["anyOf"] = [{"enum": list(NAMES)}, mapping]
        return schema


def _allow_sizes(part: JsonSchemaValue) -> None:
    for option, schema in part.get("properties", {}).items():
        if option.endswith("_bytes"):
            schema["anyOf"] = [*schema["anyOf"], {"type": "string"}]


Written = Annotated[Strategy, BeforeValidator(_from_grid), _ShortForms()]
"""A strategy of a grid; one of its degrees may be open."""


def matches(strategy: Strategy, pattern: Strategy, written: Any) -> bool:
    """Whether a strategy has the same parts as a pattern, and every option that it writes.

    Args:
        written: the pattern as the file has it: an option at its default counts if written.
    """
    return strategy.names == pattern.names and all(
        getattr(strategy.parts[name], option) == getattr(pattern.parts[name], option)
        for name, options in spelled_out(written).items()
        for option in options
    )
