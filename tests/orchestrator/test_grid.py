"""Grids unfold into cases: the order, what goes in and out, and identities that stay."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.shapes import KNOWN
from orchestrator.case import Case
from orchestrator.errors import InputError
from orchestrator.grids.grid import Grid, load_grid
from orchestrator.models import shape_of

TOY = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 8,
    "n_kv_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 256,
}
CHECKOUT = Path(__file__).resolve().parents[2]


def base(**more: Any) -> dict[str, Any]:
    return {"models": {"toy": {"random": TOY}}, "fixed": {"model": "toy"}} | more


def load(folder: Path, grid: dict[str, Any] | str, **options: Any) -> Grid:
    file = folder / "grid.yaml"
    text = grid if isinstance(grid, str) else yaml.safe_dump(grid, sort_keys=False)
    file.write_text(text)
    return load_grid(file, **options)


def told(cases: list[Case]) -> list[tuple[str, int]]:
    return [(case.label, case.gpus) for case in cases]


def test_axes_multiply_in_file_order_the_last_fastest(tmp_path: Path) -> None:
    strategy_first = base(axes={"strategy": ["model", "tensor"], "gpus": [1, 2, 4]})
    gpus_first = base(axes={"gpus": [4, 1], "strategy": ["tensor", "model"]})
    assert told(load(tmp_path, strategy_first).cases) == [
        ("model", 1),
        ("model", 2),
        ("model", 4),
        ("tensor", 1),
        ("tensor", 2),
        ("tensor", 4),
    ]
    assert told(load(tmp_path, gpus_first).cases) == [
        ("tensor", 4),
        ("model", 4),
        ("tensor", 1),
        ("model", 1),
    ]


def test_every_field_of_a_case_can_vary_or_be_fixed(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "model": ["toy", "two"], "strategy": ["model", {"tensor": 2}], "gpus": [2],
        "dtype": ["float32", "bfloat16"], "batch_size": [1, 3],
        "prompts": ["random"], "prompt_tokens": [8, 16],
        "new_tokens": [4, 8], "warmup": [0, 1], "repeats": [1, 2], "seed": [0, 7],
        "temperature": [0, 0.5], "stop_at_eos": [False],
    }  # fmt: skip
    models = {"toy": {"random": TOY}, "two": {"random": TOY, "seed": 3}}
    grid = load(tmp_path, {"models": models, "axes": values})
    assert len(grid.cases) == 2**10
    fixed = {name: options[-1] for name, options in values.items()}
    (case,) = load(tmp_path, {"models": models, "fixed": fixed}).cases
    assert case == grid.cases[-1]
    assert (case.model, case.model_seed, case.label) == ("two", 3, "tensor2")
    assert (case.temperature, case.new_tokens, case.dtype) == (0.5, 8, "bfloat16")


def test_a_single_value_may_stand_for_a_list_of_one(tmp_path: Path) -> None:
    bare = load(
        tmp_path, base(axes={"strategy": {"tensor": 2}, "gpus": 2, "prompt_tokens": 8})
    )
    listed = base(axes={"strategy": [{"tensor": 2}], "gpus": [2], "prompt_tokens": [8]})
    assert load(tmp_path, listed).cases == bare.cases
    assert len(bare.cases) == 1


def test_zipped_axes_move_together_where_the_first_stands(tmp_path: Path) -> None:
    grid = base(
        axes={
            "prompt_tokens": [8, 16],
            "strategy": ["model", "tensor"],
            "new_tokens": [1, 2],
            "gpus": 2,
        },
        zip=[["new_tokens", "prompt_tokens"]],
    )
    cases = load(tmp_path, grid).cases
    assert [(case.prompt_tokens, case.label, case.new_tokens) for case in cases] == [
        (8, "model", 1),
        (8, "tensor", 1),
        (16, "model", 2),
        (16, "tensor", 2),
    ]


def test_exclude_takes_out_what_matches_every_field_it_names(tmp_path: Path) -> None:
    grid = base(
        axes={"strategy": ["single", "model", "tensor"], "gpus": [1, 2, 4]},
        exclude=[
            {"strategy": "single", "gpus": [2, 4]},
            {"strategy": "tensor", "gpus": 1},
        ],
    )
    assert told(load(tmp_path, grid).cases) == [
        ("single", 1),
        ("model", 1),
        ("model", 2),
        ("model", 4),
        ("tensor", 2),
        ("tensor", 4),
    ]


def test_a_bare_name_excludes_a_strategy_with_any_options(tmp_path: Path) -> None:
    some = [
        "pipeline",
        {"pipeline": {"schedule": "async"}},
        {"tensor": 2, "pipeline": {}},
    ]
    grid = base(
        axes={"strategy": some, "gpus": [2]}, exclude=[{"strategy": "pipeline"}]
    )
    assert told(load(tmp_path, grid).cases) == [("tensor2+pipeline", 2)]
    grid["exclude"] = [{"strategy": {"pipeline": {"schedule": "async"}}}]
    assert told(load(tmp_path, grid).cases) == [
        ("pipeline", 2),
        ("tensor2+pipeline", 2),
    ]


def test_include_adds_cases_after_exclude_and_takes_the_rest_from_fixed(
    tmp_path: Path,
) -> None:
    grid = base(
        axes={"strategy": "tensor", "gpus": [1, 2]},
        exclude=[{"gpus": 1}],
        include=[
            {"strategy": "single", "gpus": 1, "dtype": "float32"},
            {"strategy": "model", "gpus": [1, 4]},
        ],
    )
    cases = load(tmp_path, grid).cases
    assert told(cases) == [("tensor", 2), ("single", 1), ("model", 1), ("model", 4)]
    assert [case.dtype for case in cases] == [
        "bfloat16",
        "float32",
        "bfloat16",
        "bfloat16",
    ]


def test_a_grid_may_be_made_of_includes_alone(tmp_path: Path) -> None:
    grid = base(include=[{"strategy": "single", "gpus": 1}])
    assert told(load(tmp_path, grid).cases) == [("single", 1)]


def test_a_subset_takes_only_what_its_patterns_match(tmp_path: Path) -> None:
    grid = base(
        axes={"strategy": ["model", "tensor"], "gpus": [1, 2, 4]},
        subsets={
            "quick": {"gpus": [1, 2]},
            "ends": [{"gpus": 4, "strategy": "model"}, {"gpus": 1}],
        },
    )
    assert len(load(tmp_path, grid).cases) == 6
    assert [gpus for _, gpus in told(load(tmp_path, grid, subset="quick").cases)] == [
        1,
        2,
        1,
        2,
    ]
    ends = load(tmp_path, grid, subset="ends").cases
    assert told(ends) == [("model", 1), ("model", 4), ("tensor", 1)]
    with pytest.raises(InputError, match=r"no subset 'quik'.*did you mean 'quick'"):
        load(tmp_path, grid, subset="quik")
    with pytest.raises(InputError, match="has no subsets"):
        load(tmp_path, base(axes={"strategy": "model", "gpus": 1}), subset="quick")


def test_the_same_case_twice_runs_once_and_is_said(tmp_path: Path) -> None:
    grid = base(axes={"strategy": ["tensor", {"tensor": 2}], "gpus": [2, 2]})
    loaded = load(tmp_path, grid)
    assert told(loaded.cases) == [("tensor", 2)]
    assert loaded.notes == [
        f"given more than once, run once: {loaded.cases[0].case_id}"
    ]


def test_a_model_that_no_case_uses_is_said(tmp_path: Path) -> None:
    grid = base(axes={"strategy": "model", "gpus": 1})
    grid["models"]["spare"] = {"random": TOY}
    assert load(tmp_path, grid).notes == ["models.spare is used by no case"]


def test_study_and_cluster_are_the_files_or_its_stem(tmp_path: Path) -> None:
    plain = load(tmp_path, base(axes={"strategy": "model", "gpus": 1}))
    assert (plain.study, plain.cluster) == ("grid", None)
    assert plain.text == (tmp_path / "grid.yaml").read_text()
    named = base(axes={"strategy": "model", "gpus": 1}, study="mine", cluster="sol")
    assert (load(tmp_path, named).study, load(tmp_path, named).cluster) == (
        "mine",
        "sol",
    )
    odd = tmp_path / "-my grid (2).yaml"
    odd.write_text(yaml.safe_dump(base(axes={"strategy": "model", "gpus": 1})))
    assert load_grid(odd).study == "my-grid-2-"


def test_a_random_model_may_have_a_known_shape(tmp_path: Path) -> None:
    models = {"big": {"random": "llama-3.2-1b", "seed": 5}}
    grid = {
        "models": models,
        "fixed": {"model": "big", "strategy": "single", "gpus": 1},
    }
    (case,) = load(tmp_path, grid).cases
    assert case.random is not None
    assert case.random.tied_embeddings
    assert case.random.rope_scaling is not None
    assert case.model_seed == 5
    assert Case.model_validate_json(case.model_dump_json()) == case


def test_a_model_that_is_not_here_has_the_shape_of_its_name(tmp_path: Path) -> None:
    models = {"toy": {"random": TOY}, "big": {"random": "llama-2-7b"}}
    axes = {"model": ["toy", "llama-2-13b", "big"], "strategy": "single", "gpus": 1}
    grid = load(tmp_path, {"models": models, "axes": axes}, dry_run=True)
    shapes = {case.model: shape_of(case) for case in grid.cases}
    assert shapes["toy"].n_layers == TOY["n_layers"]
    assert shapes["big"] == KNOWN["llama-2-7b"]
    assert shapes["llama-2-13b"].n_layers == 40


def test_models_without_a_tokenizer_take_random_prompts(tmp_path: Path) -> None:
    grid = base(axes={"strategy": "model", "gpus": 1})
    assert [case.prompts for case in load(tmp_path, grid).cases] == ["random"]
    assert load(tmp_path, grid).notes == []
    grid["prompts"] = "jobs/prompts/alpaca-sample.json"
    loaded = load(tmp_path, grid)
    assert [case.prompts for case in loaded.cases] == ["random"]
    assert loaded.notes == ["toy has no tokenizer: its prompts are random ids"]


def shuffled(thing: Any, order: random.Random) -> Any:
    if isinstance(thing, list):
        return [shuffled(item, order) for item in thing]
    if not isinstance(thing, dict):
        return thing
    keys = list(thing)
    order.shuffle(keys)
    return {key: shuffled(thing[key], order) for key in keys}


FULL = base(
    axes={
        "strategy": [
            "model",
            {"tensor": 2, "pipeline": {"schedule": "async", "micro_batches": 2}},
        ],
        "gpus": [2, 4],
        "temperature": [0.0, 0.7],
    }
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=30,
    deadline=None,
)
@given(st.integers(0, 10**6))
def test_the_order_of_keys_changes_no_case_id(tmp_path: Path, seed: int) -> None:
    expected = {case.case_id for case in load(tmp_path, FULL).cases}
    again = load(tmp_path, shuffled(FULL, random.Random(seed))).cases
    assert {case.case_id for case in again} == expected


numbers = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=30,
    deadline=None,
)
@given(batch=numbers, new=numbers, warmup=numbers, excluded=st.integers(1, 4))
def test_a_grid_is_the_product_of_its_axes_less_what_it_excludes(
    tmp_path: Path, batch: list[int], new: list[int], warmup: list[int], excluded: int
) -> None:
    axes = {"batch_size": batch, "new_tokens": new, "warmup": warmup}
    grid = base(axes=axes | {"strategy": "single", "gpus": 1})
    expected = list(itertools.product(batch, new, warmup))
    if excluded in batch and len(batch) > 1:
        grid["exclude"] = [{"batch_size": excluded}]
        expected = [point for point in expected if point[0] != excluded]
    cases = load(tmp_path, grid).cases
    assert [
        (case.batch_size, case.new_tokens, case.warmup) for case in cases
    ] == expected
    assert len({case.case_id for case in cases}) == len(expected)


def test_ten_thousand_cases_unfold_and_too_many_are_refused_by_number(
    tmp_path: Path,
) -> None:
    many = {
        "seed": list(range(100)),
        "new_tokens": list(range(1, 101)),
        "strategy": "single",
        "gpus": 1,
    }
    cases = load(tmp_path, base(axes=many)).cases
    assert len({case.case_id for case in cases}) == 10_000
    many["warmup"] = list(range(101))
    with pytest.raises(
        InputError, match="unfolds to 1,010,000 cases, and a study may have 100,000"
    ):
        load(tmp_path, base(axes=many))
    huge = {
        name: list(range(1, 1001))
        for name in ("seed", "new_tokens", "warmup", "repeats")
    }
    with pytest.raises(InputError, match="1,000,000,000,000 cases"):
        load(tmp_path, base(axes=huge | {"strategy": "single", "gpus": 1}))


def test_the_demo_grid_fits_the_checkpoint_that_make_demo_makes(tmp_path: Path) -> None:
    made = tmp_path / "demo"
    command = [
        sys.executable,
        "-m",
        "jobs.make_checkpoint",
        str(made),
        "--format",
        "hf",
    ]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    text = (CHECKOUT / "jobs/grids/demo.yaml").read_text()
    file = tmp_path / "demo.yaml"
    file.write_text(text.replace("results/models/demo}", f"{made}}}", 1))
    grid = load_grid(file)
    spread = {(case.label, case.gpus) for case in grid.cases}
    assert {("model", 1), ("model", 2), ("model", 4)} < spread
    assert {("tensor", 1), ("tensor", 2), ("tensor", 4)} < spread
    assert len({strategy for strategy, _ in spread}) >= 3
    assert {case.prompts for case in grid.cases} == {"jobs/prompts/alpaca-sample.json"}


def test_the_report_grid_has_the_reports_table_and_the_ways_it_surveys() -> None:
    file = CHECKOUT / "jobs/grids/report.yaml"
    table = load_grid(file, dry_run=True, subset="table")
    assert table.cluster == "sol"
    assert [(case.model, case.label, case.gpus) for case in table.cases] == list(
        itertools.product(
            ["llama-2-7b", "llama-2-13b", "llama-2-70b"], ["model", "tensor"], [1, 2, 4]
        )
    )
    assert {case.batch_size for case in table.cases} == {4}
    everything = {case.strategy.names for case in load_grid(file, dry_run=True).cases}
    assert {("zero-offload",), ("pipeline",)} < everything


def test_a_case_survives_json_whatever_the_grid_says(tmp_path: Path) -> None:
    for case in load(tmp_path, FULL).cases:
        text = json.dumps(json.loads(case.model_dump_json()))
        again = Case.model_validate_json(text)
        assert again == case
        assert again.case_id == case.case_id
