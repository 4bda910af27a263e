"""The comparison table has the report's shape, and a word where there is no number."""

import pytest

from kernels.strategies import ModelParallel, Parallel
from orchestrator.errors import InputError
from orchestrator.study.case_status import CaseStatus, Status
from orchestrator.tables.table import comparison
from tests.orchestrator.made import (
    a_case,
    a_failure,
    a_rank,
    a_record,
    a_sample,
    rows_of,
)


def stands(status: Status, cause: str | None = None, **changes: object) -> CaseStatus:
    case = a_case(**changes)  # type: ignore[arg-type]
    record = a_record(case) if status == "ok" else None
    return CaseStatus(
        case_id=case.case_id, status=status, case=case, cause=cause, record=record
    )


def test_the_table_has_a_row_per_model_and_strategy_and_a_column_per_gpu_count() -> (
    None
):
    found = [
        stands("ok", name=strategy, gpus=gpus, model=model)
        for model in ("llama-2-7b", "llama-2-13b")
        for strategy in ("model", "tensor")
        for gpus in (1, 2, 4)
    ]
    table = comparison(found, "output_tok_per_s")
    assert tuple(table.frame.columns) == (
        "model",
        "strategy",
        "1 GPU",
        "2 GPUs",
        "4 GPUs",
    )
    assert [(row["model"], row["strategy"]) for row in rows_of(table)] == [
        ("llama-2-7b", "model"), ("llama-2-7b", "tensor"),
        ("llama-2-13b", "model"), ("llama-2-13b", "tensor"),
    ]  # fmt: skip
    assert all(
        row["4 GPUs"] == pytest.approx((6 / 3 + 6 / 4 + 6 / 5) / 3)
        for row in rows_of(table)
    )


@pytest.mark.parametrize(
    ("status", "cause", "cell"),
    [
        ("pruned", None, "#"), ("oom", "oom_gpu", "#"), ("oom", "oom_host", "#"),
        ("failed", "timeout", "timeout"), ("invalid", "invalid_result", "invalid_result"),
        ("pending", None, "pending"), ("running", None, "running"), ("lost", "lost", "lost"),
        ("new", None, "new"),
    ],
)  # fmt: skip
def test_where_there_is_no_number_there_is_a_word(
    status: Status, cause: str | None, cell: str
) -> None:
    (row,) = rows_of(comparison([stands(status, cause)], "output_tok_per_s"))
    assert row["1 GPU"] == cell


def test_a_gpu_count_that_a_row_was_not_asked_for_is_empty() -> None:
    found = [stands("ok", label="single"), stands("ok", gpus=2)]
    rows = rows_of(comparison(found, "ttft_s"))
    assert [row["2 GPUs"] for row in rows] == [None, 2.0]


def test_whatever_else_varies_is_a_column_and_what_does_not_is_none() -> None:
    found = [stands("ok", dtype=dtype, batch_size=b) for dtype in ("float32", "bfloat16")
             for b in (1, 4)]  # fmt: skip
    table = comparison(found, "ttft_s")
    assert tuple(table.frame.columns) == (
        "model",
        "strategy",
        "dtype",
        "batch_size",
        "1 GPU",
    )
    assert len(rows_of(table)) == 4


def test_two_checkpoints_under_one_name_are_told_apart() -> None:
    found = [stands("ok", random=None, path=path) for path in ("a", "b")]
    table = comparison(found, "ttft_s")
    assert [row["path"] for row in rows_of(table)] == ["a", "b"]


def test_two_models_need_no_column_for_their_paths() -> None:
    found = [stands("ok", random=None, model=m, path=m) for m in ("a", "b")]
    assert tuple(comparison(found, "ttft_s").frame.columns) == (
        "model",
        "strategy",
        "1 GPU",
    )


def test_no_two_cases_ever_share_a_cell() -> None:
    equal, split = (
        Parallel(model=ModelParallel(degree=2, split=layers))
        for layers in (None, (1, 3))
    )
    found = [
        stands("ok", name="model", gpus=2, strategy=each) for each in (equal, split)
    ]
    table = comparison(found, "ttft_s")
    assert [row["options"] for row in rows_of(table)] == [None, '{"split": [1, 3]}']


def test_processors_are_called_workers() -> None:
    case = a_case(gpus=2)
    record = a_record(
        case, ranks=[a_rank(rank, device="EPYC", device_kind="cpu") for rank in (0, 1)]
    )
    each = CaseStatus(case_id="x", status="ok", case=case, record=record)
    assert comparison([each], "ttft_s").frame.columns[-1] == "2 workers"


def test_the_line_about_the_table_says_metric_unit_n_spread_and_sign() -> None:
    about = comparison([stands("ok")], "ttft_s").about
    assert "ttft_s in s" in about
    assert "n = 3" in about
    assert "±124 %" in about
    assert "# = does not fit" in about


def test_single_samples_have_no_interval_to_speak_of() -> None:
    case = a_case()
    record = a_record(case, samples=[a_sample(1.0, 2.0, 3.0)])
    each = CaseStatus(case_id="x", status="ok", case=case, record=record)
    assert "no interval" in comparison([each], "ttft_s").about


def test_a_fact_can_be_the_metric() -> None:
    table = comparison([stands("ok")], "peak_memory_bytes")
    assert rows_of(table)[0]["1 GPU"] == 1000
    assert "peak_memory_bytes in bytes" in table.about


def test_a_cell_keeps_its_interval_until_it_is_written() -> None:
    (cell,) = comparison([stands("ok")], "ttft_s").frame["1 GPU"]
    assert (cell.n, cell.mean) == (3, 2.0)
    assert cell.ci95_low < 2.0 < cell.ci95_high


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'ttft_s'"):
        comparison([], "tfft_s")


def test_a_failure_s_record_gives_no_number() -> None:
    case = a_case()
    record = a_failure(case, samples=a_record(case).samples)
    each = CaseStatus(
        case_id="x", status="failed", cause="timeout", case=case, record=record
    )
    assert rows_of(comparison([each], "ttft_s"))[0]["1 GPU"] == "timeout"


def test_no_cases_make_an_empty_table() -> None:
    assert rows_of(comparison([], "ttft_s")) == []
