"""A case's identity: what it is made of, and that it stays what it is."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kernels.shapes import KNOWN, ModelShape
from kernels.strategies import (
    PARTS,
    ModelParallel,
    Parallel,
    PipelineParallel,
    TensorParallel,
    ZeroOffload,
)
from orchestrator.case import Case

TOY = ModelShape(
    dim=64, n_layers=4, n_heads=8, n_kv_heads=4, ffn_dim=128, vocab_size=256
)
TENSOR = Parallel(tensor=TensorParallel(degree=2))


def case(**values: Any) -> Case:
    plain: dict[str, Any] = {
        "model": "toy",
        "random": TOY,
        "label": "tensor",
        "strategy": TENSOR,
    }
    return Case(**(plain | {"gpus": 2} | values))


@pytest.mark.parametrize(
    ("made", "case_id"),
    [
        (case(), "toy_tensor_2x_b4_bf16-59057a9dc4"),
        (case(dtype="float32", batch_size=1), "toy_tensor_2x_b1_fp32-ab1c904265"),
        (
            case(model="Llama 2/7B", random=None, path="/scratch/$USER/llama-2-7b"),
            "llama-2-7b_tensor_2x_b4_bf16-8f021ed789",
        ),
        (
            case(
                strategy=Parallel(
                    pipeline=PipelineParallel(
                        degree=2, schedule="async", micro_batches=4
                    ),
                    tensor=TensorParallel(degree=2),
                ),
                gpus=4,
            ),
            "toy_pipeline-tensor_4x_b4_bf16-84b19caae5",
        ),
    ],
)
def test_ids_of_known_cases_stay_what_they_are(made: Case, case_id: str) -> None:
    """A change here renames finished cases: studies would run them all again."""
    assert made.case_id == case_id


CHANGES: dict[str, Any] = {
    "model": "other", "random": replace(TOY, rope_theta=5e5), "model_seed": 1,
    "strategy": replace(TENSOR, zero_offload=ZeroOffload()), "dtype": "float32", "batch_size": 1,
    "prompts": "jobs/prompts/alpaca-sample.json", "prompt_tokens": None, "new_tokens": 1,
    "warmup": 0, "repeats": 1, "seed": 1, "temperature": 0.5, "stop_at_eos": True,
    "trace": "flame",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_thing_that_is_measured_is_part_of_the_id(name: str) -> None:
    assert case(**{name: CHANGES[name]}).case_id != case().case_id


def test_every_field_is_part_of_the_id_or_known_not_to_be() -> None:
    elsewhere = {"path", "gpus", "label"}
    assert set(CHANGES) | elsewhere == set(Case.model_fields)
    assert case(random=None, path="/a").case_id != case(random=None, path="/b").case_id


def test_the_label_is_not_part_of_the_id() -> None:
    assert case(label="something else").case_id == case().case_id


@pytest.mark.parametrize("of", [ModelShape, *PARTS.values()])
def test_a_field_added_with_a_default_does_not_rename_finished_cases(of: type) -> None:
    """Only fields that differ from their default are hashed, so every new one needs a default."""
    required = {
        field.name for field in fields(of) if field.default is field.default_factory
    }
    first = {"dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"}
    assert required == (first if of is ModelShape else set())


def test_a_case_survives_json_with_all_it_may_hold() -> None:
    strategy = Parallel(
        zero_offload=ZeroOffload(resident="auto", memory_budget_bytes=8),
        tensor=TensorParallel(degree=2),
        model=ModelParallel(split=(3, 1)),
    )
    for shape in (TOY, KNOWN["llama-3.2-1b"], KNOWN["mistral-7b-v0.1"]):
        made = case(strategy=strategy, random=shape, gpus=4)
        again = Case.model_validate_json(made.model_dump_json())
        assert again == made
        assert again.case_id == made.case_id


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gpus": 4}, "the degrees must multiply to gpus: 2 and 4"),
        ({"path": "/x"}, "weights come from path or are random, not both"),
        ({"gpu": 2}, "Extra inputs"),
        ({"dtype": "fp32"}, "float32"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"batch_size": "4"}, "valid integer"),
        ({"temperature": float("inf")}, "finite"),
        ({"seed": 2**63}, "less than"),
    ],
)
def test_a_case_that_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        case(**values)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"degree":2', '"degree":2,"rows":3'),
        ('"degree":2', '"degree":"2"'),
        ('"dim":64', '"dim":64,"width":3'),
        ('"gpus":2', '"gpus":2,"nodes":1'),
    ],
)
def test_a_case_file_of_a_newer_orch_is_refused_not_misread(
    before: str, after: str
) -> None:
    text = case().model_dump_json()
    assert before in text
    with pytest.raises(ValidationError):
        Case.model_validate_json(text.replace(before, after, 1))


@given(st.text(min_size=1, max_size=200), st.integers(1, 10**6))
def test_an_id_is_a_safe_file_name_whatever_the_model_is_called(
    name: str, batch: int
) -> None:
    case_id = case(model=name, batch_size=batch).case_id
    assert len(case_id) < 100
    assert set(case_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert case_id[0] not in ".-"
