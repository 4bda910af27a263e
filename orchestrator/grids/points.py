"""The points of a grid, and patterns that match them: what `exclude` drops, what a subset keeps.

A pattern matches a point that has, in every field the pattern names, one of its values. A
strategy agrees where it is made of the same parts with every option that the pattern writes.
A pattern that matches nothing is a mistake: it would silently change the study.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.grids.strategies import matches
from orchestrator.schema_errors import dotted
from orchestrator.yaml_document import Document, Loc


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


@dataclass(frozen=True)
class Pattern:
    """Field → values: any of them, for every field that is named."""

    loc: Loc
    fields: dict[str, list[Value]]

    def matches(self, point: Point) -> bool:
        """Return whether the point agrees in every field that the pattern names."""
        return all(
            name in point
            and any(_agree(name, point[name], wanted) for wanted in values)
            for name, values in self.fields.items()
        )


def _agree(name: str, has: Value, wanted: Value) -> bool:
    if name == "strategy":
        return matches(has.value, wanted.value, wanted.raw)
    return bool(has.value == wanted.value)


def patterns_of(entries: Any, document: Document, loc: Loc) -> Iterator[Pattern]:
    """Yield the patterns that stand at `loc` of the file."""
    raw = document.data
    for step in loc:
        raw = raw.get(step, {})
    for index, entry in enumerate(entries):
        alone = isinstance(raw, dict)
        place = loc if alone else (*loc, index)
        fields = lists_of(entry, raw if alone else raw[index], place)
        if fields:
            yield Pattern(place, fields)
        else:
            document.problem(
                place,
                f"{dotted(place)}: an empty pattern matches every case; name a field",
            )


def refuse_idle(
    patterns: Iterable[Pattern], points: list[Point], document: Document
) -> None:
    """Note each pattern that matches no point, with the value that is to blame."""
    for pattern in patterns:
        if idle := _idle_values(pattern, points):
            for name, value in idle:
                _refuse_value(name, value, points, document)
        elif not any(map(pattern.matches, points)):
            document.problem(
                pattern.loc,
                f"{dotted(pattern.loc)} matches no case: each value occurs, but not "
                f"together; correct it or take it out",
            )


def _idle_values(pattern: Pattern, points: list[Point]) -> list[tuple[str, Value]]:
    return [
        (name, value)
        for name, values in pattern.fields.items()
        for value in values
        if not any(name in each and _agree(name, each[name], value) for each in points)
    ]


def _refuse_value(
    name: str, value: Value, points: list[Point], document: Document
) -> None:
    there = dict.fromkeys(str(point[name].raw) for point in points if name in point)
    document.problem(
        value.loc,
        f"{dotted(value.loc)}: no case has {name} {value.raw}; "
        f"there is: {', '.join(there)}",
    )
