"""The long table: one tidy row per case, every column documented."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from kernels.strategies import (
    PARTS,
    ModelParallel,
    Parallel,
    PipelineParallel,
    ZeroOffload,
)
from orchestrator.case import Case
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.columns import COLUMNS, long_row, options
from orchestrator.tables.metrics import FACTS, METRICS
from orchestrator.tables.table import unit
from tests.orchestrator.made import a_case, a_failure, a_record

DICTIONARY = Path(__file__).parents[2] / "results" / "README.md"
CASE = a_case(gpus=2)


def ok(case: Case = CASE) -> CaseStatus:
    return CaseStatus(
        case_id=case.case_id, status="ok", case=case, record=a_record(case), attempt=1
    )


def documented(section: str) -> dict[str, str]:
    """Name → unit, of the rows of one table of the dictionary."""
    text = (
        DICTIONARY.read_text(encoding="utf-8")
        .split(f"## {section}\n")[1]
        .split("\n## ")[0]
    )
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) *\|", text, re.MULTILINE))


def test_the_column_dictionary_is_complete_and_has_nothing_more() -> None:
    metrics = list(documented("Metrics"))
    columns = [
        f"{name}_{part}"
        for name in metrics
        for part in ("mean", "ci95_low", "ci95_high")
    ]
    assert metrics == list(METRICS)
    assert {*columns, *documented("Columns that are not metrics")} == set(COLUMNS)


def test_the_dictionary_s_units_are_those_of_the_names() -> None:
    said = documented("Metrics") | documented("Columns that are not metrics")
    for name in [*METRICS, *FACTS]:
        assert said[name] == unit(name)


def test_the_columns_that_scripts_build_on_are_there_and_in_front() -> None:
    names = list(COLUMNS)
    assert names[:9] == [
        "case_id", "model", "strategy", "gpus", "batch_size", "dtype", "status", "cause", "n",
    ]  # fmt: skip
    for metric in ("output_tok_per_s", "decode_tok_per_s", "seq_tok_per_s", "steps_per_s",
                   "ttft_s", "tpot_s"):  # fmt: skip
        assert {f"{metric}_{part}" for part in ("mean", "ci95_low", "ci95_high")} < set(
            names
        )
    assert {"peak_memory_bytes", "ids_digest"} < set(names)


def test_an_ok_case_has_its_numbers() -> None:
    row = long_row(ok())
    assert list(row) == list(COLUMNS)
    assert (row["case_id"], row["status"], row["n"]) == (CASE.case_id, "ok", 3)
    assert row["ttft_s_mean"] == 2.0
    assert row["ttft_s_ci95_low"] == pytest.approx(2 - 4.303 / 3**0.5)
    assert row["peak_memory_bytes"] == 1001
    assert row["shards"] == 2


@pytest.mark.parametrize("status", ["oom", "invalid", "failed"])
def test_a_failed_case_is_a_row_with_cause_and_without_numbers(status: str) -> None:
    cause = {"oom": "oom_gpu", "invalid": "invalid_result", "failed": "nccl"}[status]
    good = a_record(CASE)
    record = a_failure(
        CASE, status=status, cause=cause, samples=good.samples, ranks=good.ranks
    )
    row = long_row(
        CaseStatus(
            case_id=CASE.case_id, status=record.status, case=CASE, record=record, cause=cause,
            evidence=("line one", "line two"),
        )
    )  # fmt: skip
    assert (row["status"], row["cause"], row["n"]) == (status, cause, 0)
    assert row["evidence"] == "line one\nline two"
    assert row["output_tok_per_s_mean"] is None
    assert row["peak_memory_bytes"] is None
    assert row["model"] == "toy"


def test_a_case_that_cannot_be_read_is_still_a_row() -> None:
    row = long_row(CaseStatus(case_id="x", status="new"))
    assert (row["case_id"], row["status"], row["model"]) == ("x", "new", None)


def test_every_cell_is_of_its_column_s_kind() -> None:
    kinds = {"text": str, "int": int, "float": (int, float), "bool": bool}
    for name, value in long_row(ok()).items():
        assert value is None or isinstance(value, kinds[COLUMNS[name]]), name  # type: ignore[arg-type]


def test_a_plain_strategy_has_no_options() -> None:
    assert options(CASE.strategy) is None


def test_further_options_are_told_as_json() -> None:
    strategy = Parallel(pipeline=PipelineParallel(degree=2, split=(1, 3)))
    assert json.loads(options(strategy) or "") == {"split": [1, 3]}


def test_an_option_has_a_column_wherever_it_applies() -> None:
    split = Parallel(model=ModelParallel(degree=2, split=(1, 3)))
    row = long_row(ok(a_case("model", gpus=2, strategy=split)))
    assert (row["split"], row["balance"], row["stages"]) == ("1-3", "equal", 2)
    assert (row["schedule"], row["resident"], row["source"]) == (None, None, None)
    offload = Parallel(zero_offload=ZeroOffload(resident="auto", memory_budget_bytes=8))
    row = long_row(ok(a_case("zero-offload", strategy=offload)))
    assert (row["resident"], row["memory_budget_bytes"]) == ("auto", 8)
    every = {field.name for part in PARTS.values() for field in fields(part)}
    assert every - {"degree"} <= set(COLUMNS)
