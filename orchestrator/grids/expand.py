"""From a grid to its points: axes multiplied, zipped, less exclude, plus include.

The order is the file's: the first axis changes slowest, the last one fastest; zipped axes stand
where the first of them stands; the cases of include come last and are not excluded.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from orchestrator.case import Case
from orchestrator.grids.points import (
    Pattern,
    Point,
    Value,
    lists_of,
    patterns_of,
    refuse_idle,
)
from orchestrator.grids.schema import FIELDS, GridFile
from orchestrator.schema_errors import dotted
from orchestrator.yaml_document import Document, Loc

MAX_CASES = 100_000

_NEEDED = ("model", "strategy", "gpus")


_DEFAULTS: Point = {
    name: Value(Case.model_fields[name].default, (), Case.model_fields[name].default)
    for name in FIELDS
    if name not in (*_NEEDED, "prompts")
}


@dataclass(frozen=True, kw_only=True)
class Points:
    """What a grid unfolds to."""

    all: list[Point]
    subsets: dict[str, list[Point]]


def expand(grid: GridFile, document: Document) -> Points:
    """Unfold the grid to its points. Problems are noted in the document."""
    axes = lists_of(grid.axes, document.data.get("axes"), ("axes",))
    base = _DEFAULTS | _fixed(grid, document, axes)
    points: list[Point] = []
    if axes or not grid.include:
        points = _product(base, axes, _groups(grid, axes, document), document)
    included = [
        point
        for index, entry in enumerate(grid.include)
        for point in _included(base, entry, index, document)
    ]
    # Where points are missing, a pattern cannot be blamed for matching none.
    is_whole = document.is_sound
    exclude = list(patterns_of(grid.exclude, document, ("exclude",)))
    kept = [each for each in points if not _matches_any(exclude, each)] + included
    subsets = {
        name: list(patterns_of(entries, document, ("subsets", name)))
        for name, entries in grid.subsets.items()
    }
    if is_whole:
        refuse_idle(exclude, points, document)
        _judge_what_is_left(kept, subsets, document)
    return Points(
        all=kept,
        subsets={
            name: [each for each in kept if _matches_any(patterns, each)]
            for name, patterns in subsets.items()
        },
    )


def _matches_any(patterns: list[Pattern], point: Point) -> bool:
    return any(pattern.matches(point) for pattern in patterns)


def _judge_what_is_left(
    kept: list[Point], subsets: dict[str, list[Pattern]], document: Document
) -> None:
    if not kept:
        document.problem((), "no case is left: exclude takes all of them; leave one")
        return
    for patterns in subsets.values():
        refuse_idle(patterns, kept, document)


def _fixed(grid: GridFile, document: Document, axes: Iterable[str]) -> Point:
    raw = document.data.get("fixed") or {}
    fixed = {
        name: Value(getattr(grid.fixed, name), ("fixed", name), raw[name])
        for name in raw
    }
    for name in axes:
        if name in fixed:
            document.problem(
                ("fixed", name), f"{name} is fixed and an axis; keep one", at_key=True
            )
    if grid.prompts is None:
        return fixed
    if "prompts" in (*fixed, *axes):
        place = "fixed" if "prompts" in fixed else "axes"
        document.problem(
            ("prompts",),
            f"prompts stands here and under {place}; keep one",
            at_key=True,
        )
    return {"prompts": Value(grid.prompts, ("prompts",), grid.prompts)} | fixed


def _groups(
    grid: GridFile, axes: dict[str, list[Value]], document: Document
) -> list[tuple[str, ...]] | None:
    """Return the axes that move together, in the order of the file; None if a zip is wrong."""
    together: dict[str, tuple[str, ...]] = {}
    is_whole = True
    for index, names in enumerate(grid.zip):
        for loc, wrong in _zip_problems(names, axes, together, ("zip", index)):
            document.problem(loc, f"zip[{index}]: {wrong}")
            is_whole = False
        group = tuple(name for name in axes if name in names)
        together |= dict.fromkeys(group, group)
    if not is_whole:
        return None  # its axes would unfold to cases that nobody asked for
    return list(dict.fromkeys(together.get(name, (name,)) for name in axes))


def _zip_problems(
    names: list[str], axes: dict[str, list[Value]], taken: Iterable[str], loc: Loc
) -> Iterator[tuple[Loc, str]]:
    for at, name in enumerate(names):
        if name not in axes:
            there = ", ".join(axes) or "none"
            yield (*loc, at), f"no axis {name!r}; axes here: {there}"
        elif name in taken or name in names[:at]:
            yield (*loc, at), f"{name!r} is zipped already; keep one"
    lengths = {name: len(axes[name]) for name in names if name in axes}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        yield loc, f"axes that move together need equally many values: {said}"


def _product(
    base: Point,
    axes: dict[str, list[Value]],
    groups: list[tuple[str, ...]] | None,
    document: Document,
) -> list[Point]:
    missing = [name for name in _NEEDED if name not in base and name not in axes]
    for name in missing:
        document.problem(
            ("axes",), f"{name} is missing: give it under axes or fixed", at_key=True
        )
    if groups is None or missing:
        return []
    if _too_many(prod(len(axes[group[0]]) for group in groups), ("axes",), document):
        return []
    steps = [_together(group, axes) for group in groups]
    return [_joined(base, chosen) for chosen in product(*steps)]


def _together(group: tuple[str, ...], axes: dict[str, list[Value]]) -> list[Point]:
    columns = [axes[name] for name in group]
    return [dict(zip(group, row, strict=True)) for row in zip(*columns, strict=True)]


def _joined(base: Point, chosen: Iterable[Point]) -> Point:
    point = dict(base)
    for part in chosen:
        point.update(part)
    return point


def _too_many(count: int, loc: Loc, document: Document) -> bool:
    if count > MAX_CASES:
        document.problem(
            loc,
            f"{dotted(loc)} unfolds to {count:,} cases, and a study may have {MAX_CASES:,}; "
            f"vary less, or zip axes that move together",
            at_key=True,
        )
    return count > MAX_CASES


def _included(base: Point, entry: Any, index: int, document: Document) -> list[Point]:
    loc: Loc = ("include", index)
    lists = lists_of(entry, document.data["include"][index], loc)
    missing = [name for name in _NEEDED if name not in base and name not in lists]
    for name in missing:
        document.problem(
            loc, f"{dotted(loc)}: {name} is missing: give it here or under fixed"
        )
    if missing or _too_many(prod(map(len, lists.values())), loc, document):
        return []
    steps = [_together((name,), lists) for name in lists]
    return [_joined(base, chosen) for chosen in product(*steps)]
