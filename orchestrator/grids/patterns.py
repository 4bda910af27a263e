"""Partial matches of cases: what exclude takes out and what a subset takes.

A pattern matches a case that has, in every field the pattern names, one of its values. A
strategy agrees where it is made of the same parts with every option that the pattern writes.
A pattern that matches nothing is a mistake: it would silently change the study.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.grids.check import dotted
from orchestrator.grids.points import Point, Value, lists_of
from orchestrator.grids.schema import BAD, GridFile
from orchestrator.yaml_document import Document, Loc


@dataclass(frozen=True)
class Pattern:
    """Field → values: any of them, for every field that is named."""

    loc: Loc
    fields: dict[str, list[Value]]

    def matches(self, point: Point) -> bool:
        """Whether the point agrees in every field that the pattern names."""
        return all(
            name in point
            and any(_agree(name, point[name], wanted) for wanted in values)
            for name, values in self.fields.items()
        )


def _agree(name: str, has: Value, wanted: Value) -> bool:
    if name == "strategy":
        return bool(has.value.matches(wanted.value))
    return bool(has.value == wanted.value)


def patterns_of(entries: Any, document: Document, loc: Loc) -> Iterator[Pattern]:
    """The patterns that stand at `loc` of the file."""
    raw = document.data
    for step in loc:
        raw = raw.get(step, {})
    for index, entry in enumerate(entries):
        if entry is BAD:
            continue
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


def without(
    points: list[Point], patterns: list[Pattern], document: Document
) -> list[Point]:
    """The points that no pattern matches; a pattern that matches none is noted."""
    kept = points
    for pattern in patterns:
        _refuse_idle(points, pattern, document)
        kept = [point for point in kept if not pattern.matches(point)]
    return kept


def _refuse_idle(points: list[Point], pattern: Pattern, document: Document) -> None:
    idle = [
        (name, value)
        for name, values in pattern.fields.items()
        for value in values
        if not _occurs(points, name, value)
    ]
    for name, value in idle if points else ():
        there = dict.fromkeys(str(point[name].raw) for point in points if name in point)
        document.problem(
            value.loc,
            f"{dotted(value.loc)}: no case has {name} {value.raw}; "
            f"there is: {', '.join(there)}",
        )
    if points and not idle and not any(map(pattern.matches, points)):
        document.problem(
            pattern.loc,
            f"{dotted(pattern.loc)} matches no case: each value occurs, but not together; "
            f"mend it or take it out",
        )


def _occurs(points: list[Point], name: str, value: Value) -> bool:
    return any(_agree(name, point[name], value) for point in points if name in point)


def subsets_of(
    grid: GridFile, points: list[Point], document: Document
) -> Iterator[tuple[str, list[Point]]]:
    """The name of each subset and its points."""
    for name, entries in grid.subsets.items():
        patterns = list(patterns_of(entries, document, ("subsets", name)))
        for pattern in patterns:
            _refuse_idle(points, pattern, document)
        yield (
            name,
            [
                point
                for point in points
                if any(each.matches(point) for each in patterns)
            ],
        )
