"""Validate what a YAML file holds, and tell every schema error with its place and the way out.

pydantic finds the errors in one pass; here each is put into words: the rule, the value, the
nearest valid name. What a file means (is the checkpoint there?) is no question of its schema.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import nearest
from orchestrator.yaml_document import Document, Loc

Schema = dict[str, Any]
"""JSON Schema, or a part of it."""

Model = TypeVar("Model", bound=BaseModel)

LINE = r"^[^\x00-\x1f\x7f]{1,4096}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._+:/@-]{0,99}$"
FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_PATTERNS = {
    LINE: "must be one line of text",
    NAME: "must be letters, digits, spaces and . _ + : / @ -, first a letter or digit",
    FOLDER: "must be letters, digits and . _ -, first a letter or digit",
}
_SIZE = "must be a size such as 16GiB or 500 MB"
_RULES = {
    "model_type": "must be a mapping of keys to values",
    "dataclass_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "list_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "byte_size": _SIZE,
    "byte_size_unit": _SIZE,
    "json_invalid": "is nested too deeply, or holds half a character",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def validated(
    model: type[Model],
    data: Any,
    document: Document,
    schema: Callable[[], Schema],
    synonyms: dict[str, str] | None = None,
) -> Model:
    """Validate `data` as that model.

    Args:
        data: the document's values, or those merged with others.
        document: knows the places, and gets the problems.
        schema: makes the model's JSON Schema; its keys are what a misspelt key is compared with.
        synonyms: wrong key that people type → what is meant.

    Raises:
        InputError: every schema error, and every problem that the document had before.
    """
    try:
        # As JSON: the strict check of a dataclass takes a mapping only there.
        checked = model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        _Words(data, document, schema(), synonyms or {}).note(error)
        document.raise_problems()
        raise
    document.raise_problems()
    return checked


def dotted(loc: Loc) -> str:
    """Return how a place is named to a person.

    >>> dotted(("axes", "strategy", 0, "pipeline"))
    'axes.strategy[0].pipeline'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(steps).removeprefix(".")


class _Words:
    """Puts pydantic's errors about one file into words."""

    def __init__(
        self, data: Any, document: Document, schema: Schema, synonyms: dict[str, str]
    ) -> None:
        self._data = data
        self._document = document
        self._schema = schema
        self._synonyms = synonyms

    def note(self, error: ValidationError) -> None:
        """Note every error in the document."""
        alternatives: dict[Loc, list[ErrorDetails]] = {}
        for found in error.errors():
            loc = found["loc"]
            place = place_in(self._data, loc)
            if found["type"] in _UNKNOWN:
                self._unknown(place_in(self._data, loc[:-1]), str(loc[-1]))
            elif found["type"] == "missing":
                self._missing((*place_in(self._data, loc[:-1]), loc[-1]))
            elif loc[-1:] == ("[key]",):  # pydantic's word for "not the value below it"
                self._say(place, _wrong(place, [found]), at_key=True)
            else:
                alternatives.setdefault(place, []).append(found)
        for place, found_there in alternatives.items():
            self._say(place, _wrong(place, found_there))

    def _say(self, place: Loc, what: str, *, at_key: bool = False) -> None:
        where = dotted(place)
        said = f"{where}: {what}" if where else what
        self._document.problem(place, said, at_key=at_key)

    def _unknown(self, holder: Loc, key: str) -> None:
        keys = [
            key for node in self._nodes(holder) for key in node.get("properties", ())
        ]
        named = [step for step in holder if isinstance(step, str)]
        noun = "strategy" if named[-1:] == ["strategy"] else "key"
        meant = self._synonyms.get(key)
        way_out = (
            f"did you mean {meant!r}? valid: {', '.join(sorted(keys))}"
            if meant in keys
            else nearest(key, keys)
        )
        where = f"{dotted(holder)}: " if holder else ""
        self._document.problem(
            (*holder, key), f"{where}unknown {noun} {key!r}; {way_out}", at_key=True
        )

    def _missing(self, place: Loc) -> None:
        values = [
            str(each) for node in self._nodes(place) for each in node.get("enum", ())
        ]
        self._say(
            place, f"is missing; one of {', '.join(values)}" if values else "is missing"
        )

    def _nodes(self, place: Loc) -> list[Schema]:
        """Return what the schema says of that place: every alternative."""
        nodes = [*self._alternatives(self._schema)]
        for step in place:
            below = [each for node in nodes for each in _below(node, step)]
            nodes = [full for node in below for full in self._alternatives(node)]
        return nodes

    def _alternatives(self, node: Schema) -> Iterator[Schema]:
        if "$ref" in node:
            yield from self._alternatives(
                self._schema["$defs"][node["$ref"].rpartition("/")[2]]
            )
        elif "anyOf" in node:
            for each in node["anyOf"]:
                yield from self._alternatives(each)
        else:
            yield node


def place_in(data: Any, loc: Loc) -> Loc:
    """Return the steps of `loc` that the file has.

    pydantic adds which type of a union it tried, and an index where a list is written as its
    only item.
    """
    place: list[str | int] = []
    for step in loc:
        if isinstance(data, dict):
            there = step in data
        else:
            there = (
                isinstance(data, list) and isinstance(step, int) and step < len(data)
            )
        if there:
            data = data[step]
            place.append(step)
    return tuple(place)


def _below(node: Schema, step: str | int) -> Iterator[Schema]:
    if isinstance(step, int):
        if "items" in node:
            yield node["items"]
    elif step in node.get("properties", {}):
        yield node["properties"][step]
    else:
        yield from node.get("patternProperties", {}).values()
        if isinstance(node.get("additionalProperties"), dict):
            yield node["additionalProperties"]


def _wrong(place: Loc, alternatives: list[ErrorDetails]) -> str:
    # several errors of one value: it is none of the types that it may be
    first = alternatives[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    rules = dict.fromkeys(_rule(found) for found in alternatives)
    rule = " or ".join(rules).replace(" or must be ", " or ")
    return f"{rule}, got {_shown(first['input'])}{_hint(first, place)}"


def _rule(found: ErrorDetails) -> str:
    about = found.get("ctx", {})
    if found["type"] == "string_pattern_mismatch":
        pattern = about["pattern"]
        return _PATTERNS.get(pattern, f"must match {pattern}")
    if found["type"] == "too_short":
        return f"must have at least {about['min_length']}"
    if found["type"] == "literal_error":
        return f"must be one of {', '.join(_choices(found))}"
    said = found["msg"].replace("Input should be", "must be")
    return _RULES.get(found["type"], said)


def _choices(found: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", found["ctx"]["expected"])


def _shown(given: Any) -> str:
    if isinstance(given, bool) or given is None:
        return {True: "true", False: "false", None: "nothing"}[given]
    text = repr(given)
    return text if len(text) < 60 else f"{text[:57]}..."


def _hint(found: ErrorDetails, place: Loc) -> str:
    kind, given = found["type"], found["input"]
    if isinstance(given, list) and place[:1] == ("fixed",):
        return "; several values belong under axes"
    if kind == "list_type" and given is not None:
        return "; write [ … ] around it"
    if kind == "string_type" and not isinstance(given, dict | list | None):
        return "; quote it"
    if kind == "literal_error":
        guess, close, _ = nearest(str(given), _choices(found)).partition("?")
        return f"; {guess}?" if close else ""
    return ""
