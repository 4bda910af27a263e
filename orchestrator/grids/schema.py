"""What a grid file may say, as pydantic models: the check and the JSON Schema are one truth.

    python -m orchestrator.grids.schema > jobs/grids/schema.json

A value that cannot be right is noted in the document and replaced by `BAD` (or left out of its
mapping), so that the rest is still checked and a person sees all mistakes at once.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any, Self, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kernels.shapes import KNOWN, ModelShape, RopeScaling
from orchestrator.case import Case
from orchestrator.errors import nearest
from orchestrator.grids.strategies import Written

FIELDS = (
    "model", "strategy", "gpus", "dtype", "batch_size", "prompts", "prompt_tokens",
    "new_tokens", "warmup", "repeats", "seed", "temperature", "stop_at_eos",
    "trace",
)  # fmt: skip
"""Fields of a case that a grid may vary or fix."""


class _Bad:
    def __repr__(self) -> str:
        return "BAD"


BAD: Any = _Bad()
"""Stands where a value was that cannot be right; already noted."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class _OrOne:
    """Marks a list that may be written as its only item."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unless_bad(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return value if value is BAD else check(value)


def _items(item: Any) -> Any:
    return list[Annotated[item, WrapValidator(_unless_bad)]]


def _some(item: Any) -> Any:
    # a list of at least one, or the item itself
    several: Any = Annotated[_items(item), Field(min_length=1)]
    return Annotated[several, BeforeValidator(_listed), _OrOne()]


_LINE = r"^[^\x00-\x1f\x7f]{1,4096}$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._+:/@-]{0,99}$"
_FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
PATTERNS = {
    _LINE: "must be one line of text",
    _NAME: "must be letters, digits, spaces and . _ + : / @ -, first a letter or digit",
    _FOLDER: "must be letters, digits and . _ -, first a letter or digit",
}
"""What a text must match → the same in words."""

Text = Annotated[str, Field(pattern=_LINE)]
Name = Annotated[str, Field(pattern=_NAME)]
"""Of a model or subset."""


def _type_of(name: str) -> Any:
    special: dict[str, Any] = {"model": Name, "strategy": Written, "prompts": Text}
    field = Case.model_fields[name]
    checked: Any = (field.annotation, *field.metadata, Field())
    return special.get(name) or Annotated[checked]


def _case_fields(wrap: Callable[[Any], Any]) -> dict[str, Any]:
    described = {name: Case.model_fields[name].description for name in FIELDS}
    return {
        name: (wrap(_type_of(name)), Field(default=None, description=described[name]))
        for name in FIELDS
    }


Choices: type[BaseModel] = create_model(
    "Choices", __base__=_Strict, __doc__="Values per field.", **_case_fields(_some)
)
Fixed: type[BaseModel] = create_model(
    "Fixed",
    __base__=_Strict,
    __doc__="A value per field.",
    **_case_fields(lambda of: of),
)


def _like(plain: type) -> type[BaseModel]:
    # a strict model with the fields of a plain dataclass
    hints = get_type_hints(plain)
    described: dict[str, Any] = {}
    for field in fields(plain):
        type_of = hints[field.name]
        if type_of is int:
            type_of = Annotated[int, Field(ge=0)]
        if type_of == RopeScaling | None:
            type_of = _like(RopeScaling) | None
        default = ... if field.default is MISSING else field.default
        described[field.name] = (type_of, default)
    return create_model(plain.__name__, __base__=_Strict, **described)


def _known_shape(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in KNOWN:
        raise ValueError(f"no model {value!r} is known; {nearest(value, KNOWN)}")
    return asdict(KNOWN[value])


class _OrKnown:
    """Marks a shape that may be the name of a known one."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"enum": sorted(KNOWN)}, handler(core)]}


_RandomShape: Any = _like(ModelShape)
_Shape = Annotated[_RandomShape, BeforeValidator(_known_shape), _OrKnown()]


class ModelEntry(_Strict):
    """Where a model's weights come from: a checkpoint, or a seed."""

    path: Text | None = None
    """Meta or Hugging Face folder; relative to the checkout; $VARIABLES and ~ are expanded."""
    random: _Shape | None = None
    """Shape of a model with seeded random weights, or the name of a known one."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of random weights."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.random is None):
            raise ValueError("a model needs either path or random")
        if self.path is not None and "seed" in self.model_fields_set:
            raise ValueError("seed is for random weights: leave it out beside path")
        self.shape()
        return self

    def shape(self) -> ModelShape | None:
        """The shape of random weights."""
        if self.random is None:
            return None
        values = self.random.model_dump()
        if values["rope_scaling"] is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        return ModelShape(**values)


class GridFile(_Strict):
    """A study as a person writes it: what to vary, and what to hold fixed."""

    study: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None
    ) = None
    """Folder under results/; default: the file's stem."""
    cluster: Text | None = None
    """Profile of jobs/clusters, or a file; default: the site that is detected, else local."""
    models: dict[Name, ModelEntry] = {}
    """Names that the axes use → where the weights come from."""
    prompts: Text | None = None
    """File in Alpaca's schema, or `random`; models without a tokenizer take random ones."""
    fixed: Fixed | None = None
    """Values that all cases share."""
    axes: Choices | None = None
    """Fields that vary: every combination is a case, the last axis fastest."""
    zip: _items(Annotated[list[str], Field(min_length=2)]) = []  # type: ignore[valid-type]
    """Lists of axes that move together."""
    include: _items(Choices) = []  # type: ignore[valid-type]
    """Further cases; what they leave out is taken from fixed, lists unfold."""
    exclude: _items(Choices) = []  # type: ignore[valid-type]
    """Cases to leave out: all that match every field given; a list matches any of its values."""
    subsets: dict[Name, _some(Choices)] = {}  # type: ignore[valid-type]
    """Name → which cases `orch submit --subset NAME` takes, written as in exclude."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a grid file, for editors."""
    schema = GridFile.model_json_schema()
    _tidy(schema)
    return schema | {"title": "orch grid"}


def _tidy(node: Any) -> None:
    # "default: null" stands for "absent" in our models, and would offer null to a person
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if isinstance(node, dict):
        if node.get("default", ...) is None:
            del node["default"]
        for item in node.values():
            _tidy(item)


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=1)
    print()
