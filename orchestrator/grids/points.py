"""The values of a grid, each with its place in the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.yaml_document import Loc


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a field, and where the file says it."""

    value: Any
    loc: Loc
    raw: Any
    """As written."""


Point = dict[str, Value]
"""Field → value; the fields of `orchestrator.grids.schema.FIELDS`."""


def lists_of(choices: Any, raw: Any, loc: Loc) -> dict[str, list[Value]]:
    """Field → its values, in the order of the file; `raw` is the same as written."""
    if choices is None:
        return {}
    return {
        name: list(_values(getattr(choices, name), raw[name], (*loc, name)))
        for name in raw
    }


def _values(checked: list[Any], raw: Any, loc: Loc) -> Iterator[Value]:
    for index, value in enumerate(checked):
        if isinstance(raw, list):
            yield Value(value, (*loc, index), raw[index])
        else:
            yield Value(value, loc, raw)
