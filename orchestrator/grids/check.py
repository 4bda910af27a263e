"""Checks a grid file against its schema and says what is wrong in a person's words."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import nearest
from orchestrator.grids.schema import BAD, PATTERNS, GridFile, json_schema
from orchestrator.yaml_document import Document, Loc

_ROUNDS = 100
_WHOLE = {"include": 2, "exclude": 2, "subsets": 3}
"""How deep the entries stand that are taken out whole."""


def check(document: Document) -> GridFile:
    """The grid without what cannot be right; every mistake is noted in the document."""
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else "no mapping"
        document.problem(
            (),
            f"a grid is a mapping such as `axes: {{gpus: [1, 2]}}`, and this is {found}",
        )
        document.raise_problems()
    removed: list[Loc] = []
    for _ in range(_ROUNDS):
        try:
            return GridFile.model_validate(document.data)
        except ValidationError as error:
            removed += [_note(document, each, removed) for each in error.errors()]
    return GridFile()


def _note(document: Document, found: ErrorDetails, removed: list[Loc]) -> Loc:
    loc = _without_branch(document, found["loc"])
    is_key = loc[-1:] == ("[key]",)  # pydantic's word for "not the value below it"
    loc = loc[:-1] if is_key else loc
    # What is wrong only because a part of it was taken out was noted with that part.
    if not any(gone[: len(loc)] == loc for gone in removed):
        unknown = found["type"] == "extra_forbidden"
        where = dotted(loc[:-1] if unknown else loc)
        message = _said(found, loc)
        said = f"{where}: {message}" if where else message
        document.problem(loc, said, at_key=unknown or is_key)
    if found["type"] == "missing":
        loc = loc[:-1]
    return _remove(document.data, _whole(loc))


def _without_branch(document: Document, loc: Loc) -> Loc:
    # pydantic adds which type of a union it tried: no place of the file
    branch = str(loc[-1]) if loc else ""
    if re.fullmatch(r"bool|int|float|str|literal\[.*\]", branch) and not document.has(
        loc
    ):
        return loc[:-1]
    return loc


def _whole(loc: Loc) -> Loc:
    # half an entry or half a strategy would mean something else
    if loc[0] in _WHOLE:
        return loc[: _WHOLE[loc[0]]]
    if "strategy" in loc:
        end = loc.index("strategy") + 1
        return loc[: end + (loc[0] == "axes")]
    return loc


def _remove(data: Any, loc: Loc) -> Loc:
    # the deepest thing on the way to `loc` that the file itself has
    holder, last = None, None
    for step in loc:
        if isinstance(step, int) and isinstance(data, dict):
            continue  # a list written as its only item
        if not isinstance(data, dict | list):
            break
        holder, last = data, step
        data = data.get(step) if isinstance(data, dict) else data[int(step)]
    if isinstance(holder, list):
        holder[int(last or 0)] = BAD
    elif holder is not None:
        holder.pop(last, None)
    return loc


def dotted(loc: Loc) -> str:
    """How a place is named to a person.

    >>> dotted(("axes", "strategy", 0, "pipeline"))
    'axes.strategy[0].pipeline'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(steps).removeprefix(".")


def _said(found: ErrorDetails, loc: Loc) -> str:
    kind, given = found["type"], found["input"]
    if kind == "extra_forbidden":
        keys = _keys_at(loc[:-1])
        noun = "strategy" if "zero-offload" in keys else "key"
        return f"unknown {noun} {loc[-1]!r}; {nearest(str(loc[-1]), keys)}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(found["ctx"]["error"])
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", found["ctx"]["expected"])
        guess = _hint(kind, given, loc) or _guess(given, valid)
        return f"must be one of {', '.join(valid)}, got {_shown(given)}{guess}"
    return f"{_rule(found)}, got {_shown(given)}{_hint(kind, given, loc)}"


def _guess(given: Any, valid: list[str]) -> str:
    said = nearest(str(given), valid).partition("?")
    return f"; {said[0]}?" if said[1] else ""


def _rule(found: ErrorDetails) -> str:
    plain = {
        "model_type": "must be a mapping of keys to values",
        "dict_type": "must be a mapping of keys to values",
        "list_type": "must be a list",
        "string_type": "must be text",
        "bool_type": "must be true or false",
        "int_type": "must be a whole number",
        "float_type": "must be a number",
    }
    about = found.get("ctx", {})
    if found["type"] == "string_pattern_mismatch":
        return PATTERNS[about["pattern"]]
    if found["type"] == "too_short":
        return f"must have at least {about['min_length']}"
    said = found["msg"].replace("Input should be", "must be")
    return plain.get(found["type"], said)


def _shown(given: Any) -> str:
    if isinstance(given, bool) or given is None:
        return {True: "true", False: "false", None: "nothing"}[given]
    text = repr(given)
    return text if len(text) < 60 else f"{text[:57]}..."


def _hint(kind: str, given: Any, loc: Loc) -> str:
    if isinstance(given, list) and loc[0] == "fixed":
        return "; several values belong under axes"
    if kind == "list_type" and given is not None:
        return "; write [ … ] around it"
    if kind == "string_type" and not isinstance(given, dict | list | None):
        return "; quote it"
    return ""


def _keys_at(loc: Loc) -> list[str]:
    """The keys that the mapping at `loc` may have."""
    nodes = [_schema()]
    for step in loc:
        nodes = [below for node in nodes for below in _below(node, step)]
    return [
        key
        for node in nodes
        for full in _full(node)
        for key in full.get("properties", ())
    ]


@cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _full(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # the node without references and alternatives
    if "$ref" in node:
        yield from _full(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    elif "anyOf" in node:
        for each in node["anyOf"]:
            yield from _full(each)
    else:
        yield node


def _below(node: dict[str, Any], step: str | int) -> Iterator[dict[str, Any]]:
    for full in _full(node):
        if isinstance(step, int) and "items" in full:
            yield full["items"]
        elif step in full.get("properties", {}):
            yield full["properties"][step]
        else:
            yield from full.get("patternProperties", {}).values()
