"""A grid: a YAML file of what to vary and what to hold fixed, unfolded into cases.

    axes     every combination is a case; the first axis changes slowest; a single value may
             stand alone instead of a list of one
    zip      lists of axes that move together
    exclude  partial matches to leave out; include: further cases, never excluded
    fixed    values of all cases; subsets: names for partial matches, for --subset

First the file's form is checked, and all schema errors are reported at once; then its meaning:
every impossible case, missing checkpoint and idle pattern at once. Each error has its line, the
nearest valid name and the way out. Keys and options: `orchestrator.grids.schema`, and
jobs/grids/schema.json for editors.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.case import Case
from orchestrator.clusters.cluster import cluster_names
from orchestrator.errors import InputError, nearest
from orchestrator.grids.cases import CaseMaker
from orchestrator.grids.expand import Points, expand
from orchestrator.grids.schema import GridFile, json_schema
from orchestrator.schema_errors import validated
from orchestrator.yaml_document import Document, read_marked

__all__ = ["Grid", "json_schema", "load_grid"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid file, checked and unfolded."""

    study: str
    """Folder under results/ that the file names, or the file's stem."""
    cluster: str | None
    cases: list[Case]
    """In the order of the file, each once."""
    text: str
    """The file as it is."""
    notes: list[str]
    """What a person should be told though nothing is wrong, a line each."""


def load_grid(file: Path, *, dry_run: bool = False, subset: str | None = None) -> Grid:
    """Return the grid in `file`.

    Args:
        file: YAML.
        dry_run: nothing will run: a checkpoint that is not here has its name's known shape.
        subset: take only the cases of this named subset.

    Raises:
        InputError: every schema error of the file, a line each; if there is none, every error of
            what it means.
    """
    document = read_marked(file)
    grid = _checked_form(document)
    _check_subset(file, subset, grid)
    _check_cluster(grid, document)
    points = expand(grid, document)
    chosen = points.all if subset is None else points.subsets[subset]
    maker = CaseMaker(grid, document, dry_run=dry_run)
    made = [case for point in chosen if (case := maker.case(point)) is not None]
    document.raise_problems()
    cases, again = _without_repeats(made)
    return Grid(
        study=grid.study or _as_name(file.stem),
        cluster=grid.cluster,
        cases=cases,
        text=document.text,
        notes=[*maker.notes, *again, *_unused(grid, points)],
    )


def _checked_form(document: Document) -> GridFile:
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else "no mapping"
        document.problem(
            (),
            f"a grid is a mapping such as `axes: {{gpus: [1, 2]}}`, and this is {found}",
        )
        document.raise_problems()
    return validated(GridFile, document.data, document, json_schema)


def names_a_file(cluster: str) -> bool:
    """Return whether a cluster is given as a profile's path, not as a name."""
    return "/" in cluster or cluster.endswith((".yaml", ".yml"))


def _check_cluster(grid: GridFile, document: Document) -> None:
    name = grid.cluster
    if name is not None and not names_a_file(name) and name not in cluster_names():
        document.problem(
            ("cluster",),
            f"cluster: no cluster {name!r}; {nearest(name, cluster_names())}; or give a "
            f"profile's path",
        )


def _check_subset(file: Path, subset: str | None, grid: GridFile) -> None:
    if subset is None or subset in grid.subsets:
        return
    if not grid.subsets:
        raise InputError(f"{file} has no subsets; leave --subset out, or name some")
    raise InputError(f"no subset {subset!r} in {file}; {nearest(subset, grid.subsets)}")


def _as_name(stem: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")
    return name[:100] or "grid"


def _without_repeats(cases: list[Case]) -> tuple[list[Case], list[str]]:
    first: dict[str, Case] = {}
    twice: dict[str, None] = {}
    for case in cases:
        case_id = case.case_id
        if case_id in first:
            twice[case_id] = None
        first.setdefault(case_id, case)
    notes = [f"given more than once, run once: {case_id}" for case_id in twice]
    return list(first.values()), notes


def _unused(grid: GridFile, points: Points) -> list[str]:
    used = {point["model"].value for point in points.all}
    return [
        f"models.{name} is used by no case" for name in grid.models if name not in used
    ]
