"""What a grid file may say, as pydantic models: the check and the JSON Schema are one truth.

python -m orchestrator.grids.schema > jobs/grids/schema.json
"""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from kernels.shapes import KNOWN, ModelShape
from orchestrator.case import Case
from orchestrator.errors import nearest
from orchestrator.grids.strategies import Written, add_short_forms
from orchestrator.schema_errors import FOLDER, LINE, NAME

FIELDS = (
    "model", "strategy", "gpus", "dtype", "batch_size", "prompts", "prompt_tokens",
    "new_tokens", "warmup", "repeats", "seed", "temperature", "stop_at_eos",
    "trace",
)  # fmt: skip
"""Fields of a case that a grid may vary or fix."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _one_or_more(item: Any) -> Any:
    several: Any = Annotated[list[item], Field(min_length=1)]
    either = BeforeValidator(_listed, json_schema_input_type=item | several)
    return Annotated[several, either]


Text = Annotated[str, Field(pattern=LINE)]
Name = Annotated[str, Field(pattern=NAME)]
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
    "Choices",
    __base__=_Strict,
    __doc__="Values per field.",
    **_case_fields(_one_or_more),
)
Fixed: type[BaseModel] = create_model(
    "Fixed",
    __base__=_Strict,
    __doc__="A value per field.",
    **_case_fields(lambda item: item),
)


def _known_shape(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in KNOWN:
        raise ValueError(f"no model {value!r} is known; {nearest(value, KNOWN)}")
    return KNOWN[value]


_KnownName: Any = Literal[tuple(sorted(KNOWN))]
_Shape = Annotated[
    ModelShape,
    BeforeValidator(_known_shape, json_schema_input_type=_KnownName | ModelShape),
]


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
        return self


class GridFile(_Strict):
    """A study as a person writes it: what to vary, and what to hold fixed."""

    study: Annotated[str, Field(pattern=FOLDER)] | None = None
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
    zip: list[Annotated[list[str], Field(min_length=2)]] = []
    """Lists of axes that move together."""
    include: list[Choices] = []
    """Further cases; what they leave out is taken from fixed, lists unfold."""
    exclude: list[Choices] = []
    """Cases to leave out: all that match every field given; a list matches any of its values."""
    subsets: dict[Name, _one_or_more(Choices)] = {}  # type: ignore[valid-type]
    """Name → which cases `orch submit --subset NAME` takes, written as in exclude."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a grid file, for editors."""
    schema = GridFile.model_json_schema()
    add_short_forms(schema["$defs"])
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
