"""From a grid to its points: axes multiplied, zipped, less exclude, plus include.

The order is the file's: the first axis changes slowest, the last one fastest; zipped axes stand
where the first of them stands; the cases of include come last and are not excluded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from orchestrator.case import Case
from orchestrator.grids.check import dotted
from orchestrator.grids.patterns import patterns_of, subsets_of, without
from orchestrator.grids.points import Point, Value, lists_of
from orchestrator.grids.schema import BAD, FIELDS, GridFile
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
    """Every point of the grid; what is wrong with it is noted in the document."""
    axes = lists_of(grid.axes, document.data.get("axes"), ("axes",))
    base = _DEFAULTS | _fixed(grid, document, axes)
    patterns = list(patterns_of(grid.exclude, document, ("exclude",)))
    points: list[Point] = []
    if axes or not grid.include:
        points = _product(base, axes, _groups(grid, axes, document), document)
    kept = without(points, patterns, document)
    for index, entry in enumerate(grid.include):
        if entry is not BAD:
            kept += _included(base, entry, index, document)
    if not kept and document.is_sound:
        document.problem((), "no case is left: exclude takes all of them; leave one")
    return Points(all=kept, subsets=dict(subsets_of(grid, kept, document)))


def _fixed(grid: GridFile, document: Document, axes: Iterable[str]) -> Point:
    # None here although the file has some: something else in it could not be read.
    raw = {} if grid.fixed is None else document.data["fixed"]
    fixed = {
        name: Value(getattr(grid.fixed, name), ("fixed", name), raw[name])
        for name in raw
        if name in FIELDS
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
) -> list[tuple[str, ...]]:
    """The axes that move together, each alone where it is in no zip, in the order of the file."""
    together: dict[str, tuple[str, ...]] = {}
    for index, names in enumerate(grid.zip):
        if names is BAD or not _can_zip(names, axes, together, document, index):
            continue
        group = tuple(name for name in axes if name in names)
        together |= dict.fromkeys(group, group)
    return list(dict.fromkeys(together.get(name, (name,)) for name in axes))


def _can_zip(
    names: list[str],
    axes: dict[str, list[Value]],
    taken: Iterable[str],
    document: Document,
    index: int,
) -> bool:
    wrong = ""
    for at, name in enumerate(names):
        if name not in axes:
            wrong = f"no axis {name!r}; axes here: {', '.join(axes) or 'none'}"
        elif name in taken or name in names[:at]:
            wrong = f"{name!r} is zipped already; keep one"
        else:
            continue
        document.problem(("zip", index, at), f"zip[{index}]: {wrong}")
    written = {name: document.data["axes"][name] for name in names if name in axes}
    lengths = {
        name: len(of) if isinstance(of, list) else 1 for name, of in written.items()
    }
    if not wrong and len(set(lengths.values())) > 1:
        wrong = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        document.problem(
            ("zip", index),
            f"zip[{index}]: axes that move together need equally many values: {wrong}",
        )
    # a value that was taken out leaves its axis shorter
    return not wrong and len({len(axes[name]) for name in names}) == 1


def _product(
    base: Point,
    axes: dict[str, list[Value]],
    groups: list[tuple[str, ...]],
    document: Document,
) -> list[Point]:
    missing = [name for name in _NEEDED if name not in base and name not in axes]
    for name in missing:
        if _is_new(document, name, "axes"):
            document.problem(
                ("axes",),
                f"{name} is missing: give it under axes or fixed",
                at_key=True,
            )
    count = prod(len(axes[group[0]]) for group in groups)
    if missing or _too_many(count, ("axes",), document):
        return []
    steps = [_together(group, axes) for group in groups]
    return [_joined(base, chosen) for chosen in product(*steps)]


def _is_new(document: Document, name: str, *loc: str | int) -> bool:
    """Whether nothing was said yet of the value that `name` lacks: none was written."""
    return not (document.has((*loc, name)) or document.has(("fixed", name)))


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
        if _is_new(document, name, *loc):
            document.problem(
                loc, f"{dotted(loc)}: {name} is missing: give it here or under fixed"
            )
    count = prod(len(values) for values in lists.values())
    if missing or _too_many(count, loc, document):
        return []
    steps = [[{name: value} for value in values] for name, values in lists.items()]
    return [_joined(base, chosen) for chosen in product(*steps)]
