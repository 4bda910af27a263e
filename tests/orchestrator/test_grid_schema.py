"""The JSON Schema that editors use says the same as the check."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.errors import InputError
from orchestrator.grids.grid import json_schema, load_grid
from orchestrator.grids.schema import FIELDS

CHECKOUT = Path(__file__).resolve().parents[2]
GRIDS = sorted((CHECKOUT / "jobs/grids").glob("*.yaml"))
TOY = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 8,
    "n_kv_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 256,
}


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    """`python -m orchestrator.grids.schema > jobs/grids/schema.json` makes it anew."""
    assert (
        json.loads((CHECKOUT / "jobs/grids/schema.json").read_text()) == json_schema()
    )


def test_the_schema_is_a_schema_and_describes_every_field() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("Choices", "Fixed"):
        properties = schema["$defs"][name]["properties"]
        assert list(properties) == list(FIELDS)
        missing = {
            field for field, about in properties.items() if not about.get("description")
        }
        assert missing <= {"model", "dtype", "strategy"}


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_shipped_grids_keep_to_the_schema_and_say_where_it_is(file: Path) -> None:
    text = file.read_text()
    jsonschema.validate(yaml.safe_load(text), json_schema())
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


def grid(**more: Any) -> dict[str, Any]:
    axes = {"model": "toy", "strategy": "model", "gpus": [1, 2]}
    return {"models": {"toy": {"random": TOY}}, "axes": axes} | more


def strategy(value: Any) -> dict[str, Any]:
    return grid(axes={"model": "toy", "strategy": value, "gpus": 1})


RIGHT = {
    "short": grid(),
    "options": grid(include=[{"model": "toy", "gpus": 2, "strategy": [
        {"pipeline": {"schedule": "async", "micro_batches": 2}}, {"tensor": 2}, {"data": None},
        {"zero-offload": {"resident": "auto", "memory_budget_bytes": "8GiB"}}]}]),
    "known": grid(models={"toy": {"random": "llama-2-7b", "seed": 3}}),
    "rest": grid(zip=[], exclude=[{"gpus": 2}], subsets={"a": {"gpus": 1}, "b": [{"gpus": [1]}]},
                 fixed={"prompt_tokens": 8, "temperature": 0}, study="x", cluster="local"),
}  # fmt: skip
WRONG = {
    "key": grid(cluser="sol"),
    "field": grid(fixed={"dtyp": "float32"}),
    "dtype": grid(fixed={"dtype": "fp32"}),
    "strategy": strategy(["tenosr"]),
    "option": strategy({"pipeline": {"schedle": "async"}}),
    "schedule": strategy({"pipeline": {"schedule": "x"}}),
    "degree": strategy({"tensor": 0}),
    "resident": strategy({"zero-offload": {"resident": 2}}),
    "gpus": grid(axes={"model": "toy", "strategy": "model", "gpus": "two"}),
    "empty axis": grid(axes={"model": "toy", "strategy": "model", "gpus": []}),
    "list": grid(exclude={"gpus": 1}),
    "study": grid(study="a/b"),
    "shape": grid(models={"toy": {"random": {"dim": 64}}}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_check_takes_an_editor_takes(name: str, tmp_path: Path) -> None:
    jsonschema.validate(RIGHT[name], json_schema())
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(RIGHT[name]))
    assert load_grid(tmp_path / "grid.yaml").cases


@pytest.mark.parametrize("name", WRONG)
def test_what_an_editor_marks_the_check_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(WRONG[name], json_schema())
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(WRONG[name]))
    with pytest.raises(InputError):
        load_grid(tmp_path / "grid.yaml")
