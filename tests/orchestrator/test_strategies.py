"""Strategies as written: what they become for a number of GPUs, and what people read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kernels.strategies import NAMES, Strategy, StrategyError
from orchestrator.grids.strategies import Written, label_of, matches, resolve

WRITTEN: TypeAdapter[Strategy] = TypeAdapter(Written)


def written(value: Any) -> Strategy:
    return WRITTEN.validate_json(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "gpus", "expected"),
    [
        ("single", 1, {"single": {}}),
        ("model", 4, {"model": {"degree": 4}}),
        ("tensor", 1, {"tensor": {"degree": 1}}),
        ("tensor", 4, {"tensor": {"degree": 4}}),
        ({"tensor": 2}, 2, {"tensor": {"degree": 2}}),
        ("data", 2, {"data": {"degree": 2}}),
        ("pipeline", 2, {"pipeline": {"degree": 2, "micro_batches": 2}}),
        (
            {"pipeline": {"schedule": "async", "micro_batches": 4}},
            2,
            {"pipeline": {"degree": 2, "schedule": "async", "micro_batches": 4}},
        ),
        (
            {"pipeline": {"in_flight": 16, "prefill_micro_batches": 8}},
            4,
            {
                "pipeline": {
                    "degree": 4,
                    "micro_batches": 4,
                    "in_flight": 16,
                    "prefill_micro_batches": 8,
                }
            },
        ),
        (
            {"pipeline": {"split": [3, 1]}},
            2,
            {"pipeline": {"degree": 2, "micro_batches": 2, "split": (3, 1)}},
        ),
        (
            {"model": {"balance": "profiled"}},
            2,
            {"model": {"degree": 2, "balance": "profiled"}},
        ),
        (
            {"tensor": 2, "pipeline": None},
            8,
            {"pipeline": {"degree": 4, "micro_batches": 4}, "tensor": {"degree": 2}},
        ),
        (
            {"pipeline": {"degree": 2}, "tensor": {}},
            8,
            {"pipeline": {"degree": 2, "micro_batches": 2}, "tensor": {"degree": 4}},
        ),
        ({"data": 2, "tensor": 2}, 4, {"tensor": {"degree": 2}, "data": {"degree": 2}}),
        ("zero-offload", 1, {"zero-offload": {}}),
        (
            {"zero-offload": {}, "model": {}},
            2,
            {"model": {"degree": 2}, "zero-offload": {}},
        ),
        ("zero-offload", 4, {"zero-offload": {}, "tensor": {"degree": 4}}),
        (
            {"zero-offload": {}, "data": 2},
            4,
            {"zero-offload": {}, "data": {"degree": 2}, "tensor": {"degree": 2}},
        ),
        (
            {"zero-offload": {}, "data": {}},
            4,
            {"zero-offload": {}, "data": {"degree": 4}},
        ),
        (
            {
                "zero-offload": {
                    "resident": 1,
                    "source": "disk",
                    "kv": "host",
                    "memory_budget_bytes": "8GiB",
                },
                "tensor": 2,
            },
            2,
            {
                "tensor": {"degree": 2},
                "zero-offload": {
                    "resident": 1.0,
                    "source": "disk",
                    "kv": "host",
                    "memory_budget_bytes": 8589934592,
                },
            },
        ),
        (
            {"zero-offload": {"resident": "auto"}},
            1,
            {"zero-offload": {"resident": "auto"}},
        ),
    ],
)
def test_degrees_and_options_resolve_for_a_number_of_gpus(
    value: Any, gpus: int, expected: dict[str, Any]
) -> None:
    strategy = resolve(written(value), gpus, batch_size=4)
    assert strategy.options() == expected
    assert strategy.world_size == gpus


@pytest.mark.parametrize(
    ("value", "gpus", "said"),
    [
        ("single", 2, "single runs on one GPU, and gpus is 2"),
        ({"tensor": 2}, 4, "must multiply to gpus: tensor 2 for gpus 4"),
        (
            {"tensor": 2, "data": 2},
            2,
            "must multiply to gpus: tensor 2 × data 2 for gpus 2",
        ),
        ({"tensor": 4, "pipeline": {}}, 2, "must divide gpus: tensor 4 for gpus 2"),
        ({"pipeline": {"split": [1, 1, 2]}}, 4, "pipeline 3 for gpus 4"),
        ({"zero-offload": {}, "data": 2}, 3, "must divide gpus: data 2 for gpus 3"),
    ],
)
def test_degrees_that_do_not_multiply_to_gpus_are_refused(
    value: Any, gpus: int, said: str
) -> None:
    with pytest.raises(StrategyError, match=said):
        resolve(written(value), gpus, batch_size=4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"tensor": {}, "pipeline": {}},
            "at most one part may leave its degree open, got pipeline and tensor",
        ),
        ({"single": {}, "tensor": 2}, "single goes with nothing else"),
        ({"model": 2, "pipeline": 2}, "model does not go together with pipeline"),
        (
            {"pipeline": 2, "zero-offload": {}},
            "pipeline does not go together with zero-offload",
        ),
        ({}, "at least one part"),
        (3, "a strategy is a name"),
        (["tensor", "pipeline"], "a strategy is a name"),
        (
            {"pipeline": {"split": [1], "degree": 2}},
            "split must give the layers of each of 2 stages, got 1",
        ),
        ({"pipeline": {"split": [1, 2], "balance": "profiled"}}, "leave balance out"),
        ({"zero-offload": {"resident": 1.5}}, "less than or equal to 1"),
        ({"zero-offload": {"resident": True}}, "valid number"),
        ({"zero-offload": {"resident": float("nan")}}, "less than or equal to 1"),
        ({"zero-offload": {"memory_budget_bytes": "8"}}, "at least 1MiB"),
        ({"zero-offload": {"memory_budget_bytes": "1,5 GiB"}}, "at least 1MiB"),
        ({"zero-offload": 2}, "should be an object"),
        ({"tensor": True}, "valid integer"),
        ({"tensor": 0}, "greater than or equal to 1"),
        ({"single": {"degree": 1}}, "[Uu]nexpected keyword"),
    ],
)
def test_what_makes_no_strategy_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        written(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("tensor", "tensor"),
        ({"tensor": 2}, "tensor2"),
        ("pipeline", "pipeline"),
        ({"pipeline": {"schedule": "gpipe"}}, "pipeline"),
        ({"pipeline": {"schedule": "async", "micro_batches": 4}}, "pipeline async m4"),
        ({"pipeline": {}, "tensor": 2}, "tensor2+pipeline"),
        ({"data": 2, "tensor": {}}, "data2+tensor"),
        (
            {
                "pipeline": {
                    "in_flight": 16,
                    "split": [8, 8],
                    "prefill_micro_batches": 8,
                }
            },
            "pipeline split 8-8 prefill m8 16 in flight",
        ),
        (
            {
                "zero-offload": {
                    "resident": 0.5,
                    "kv": "host",
                    "source": "disk",
                    "memory_budget_bytes": "1.5GiB",
                }
            },
            "zero-offload resident 0.5 disk KV on host budget 1.5GiB",
        ),
        ({"model": {"balance": "profiled"}}, "model profiled"),
    ],
)
def test_labels_show_what_was_written_and_is_not_the_default(
    value: Any, label: str
) -> None:
    assert label_of(written(value)) == label


def test_a_default_micro_batch_count_never_exceeds_the_sequences() -> None:
    assert resolve(written("pipeline"), 8, batch_size=3).micro_batches == 3
    in_flight = written({"pipeline": {"in_flight": 16}})
    assert resolve(in_flight, 8, batch_size=4).micro_batches == 8


def test_writing_a_default_out_does_not_change_the_case() -> None:
    plain = resolve(written("pipeline"), 4, batch_size=4)
    spelt = {
        "micro_batches": 4,
        "prefill_micro_batches": 4,
        "in_flight": 4,
        "degree": 4,
    }
    assert resolve(written({"pipeline": spelt}), 4, batch_size=4) == plain


def test_every_strategy_of_the_kernels_can_be_written() -> None:
    assert {written(name).names for name in NAMES} == {(name,) for name in NAMES}


@pytest.mark.parametrize(
    ("pattern", "value", "agrees"),
    [
        ("pipeline", {"pipeline": {"schedule": "async"}}, True),
        ({"pipeline": {"schedule": "gpipe"}}, "pipeline", True),
        ({"pipeline": {"schedule": "async"}}, "pipeline", False),
        (
            {"pipeline": {"schedule": "async"}},
            {"pipeline": {"schedule": "async", "micro_batches": 2}},
            True,
        ),
        ("tensor", {"tensor": 2, "pipeline": {}}, False),
        ({"tensor": 2}, "tensor", False),
        ("tensor", {"tensor": 2}, True),
        ("model", "pipeline", False),
    ],
)
def test_a_pattern_agrees_where_parts_and_written_options_are_the_same(
    pattern: Any, value: Any, agrees: bool
) -> None:
    assert matches(written(value), written(pattern), pattern) is agrees


degrees = st.sampled_from([None, 1, 2, 3, 4, 8])


@given(
    st.dictionaries(
        st.sampled_from(["tensor", "pipeline", "data"]), degrees, min_size=1
    ),
    st.integers(1, 64),
)
def test_what_resolves_multiplies_to_gpus_and_keeps_what_was_written(
    value: dict[str, int | None], gpus: int
) -> None:
    try:
        strategy = written(value)
        resolved = resolve(strategy, gpus, batch_size=4)
    except (ValidationError, StrategyError):
        return
    assert resolved.world_size == gpus
    have = {
        "tensor": resolved.shards,
        "pipeline": resolved.stages,
        "data": resolved.replicas,
    }
    assert all(have[name] == degree for name, degree in value.items() if degree)
    backwards = written(dict(reversed(value.items())))
    assert label_of(backwards) == label_of(strategy)
    assert resolve(backwards, gpus, batch_size=4) == resolved
