"""A notebook gets a study as a DataFrame, from whatever folder it runs in."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.errors import InputError
from orchestrator.tables.columns import COLUMNS
from orchestrator.tables.formats import parquet_bytes
from tests.orchestrator.made import a_case, a_failure, a_record, a_study

CHECKOUT = Path(__file__).resolve().parents[2]


def a_result(results: Path, *digests: str | None) -> None:
    cases = [a_case(gpus=2**index) for index in range(len(digests))]
    study = a_study(results, cases, "seen")
    for case, digest in zip(cases, digests, strict=True):
        record = a_record(case, ids_digest=digest) if digest else a_failure(case)
        study.open_attempt(case.case_id).write_record(record)


def test_a_study_is_a_frame_with_a_row_per_case(tmp_path: Path) -> None:
    a_result(tmp_path, "aa" * 32, None)
    frame = orchestrator.frame("seen", tmp_path)
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["status"]) == ["ok", "failed"]
    assert frame["output_tok_per_s_mean"].notna().tolist() == [True, False]
    assert str(frame["gpus"].dtype) == "Int64"


def test_the_frame_needs_no_preparation_and_no_special_folder(tmp_path: Path) -> None:
    a_result(tmp_path / "results", "aa" * 32)
    code = "import orchestrator; print(orchestrator.frame('seen').shape[0])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"ORCH_RESULTS": str(tmp_path / "results"), "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert (run.stdout.strip(), run.returncode) == ("1", 0), run.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import orchestrator, sys; print(*sys.modules)"
    loaded = subprocess.check_output(
        [sys.executable, "-c", code], cwd=CHECKOUT, text=True
    )
    assert not {"pandas", "numpy", "pydantic", "torch", "click"} & set(loaded.split())


def test_a_study_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study"):
        orchestrator.frame("seen", tmp_path)


def test_a_case_whose_ids_are_wrong_has_no_numbers(tmp_path: Path) -> None:
    """In fp32 no strategy may choose other ids: the odd one out is invalid in this table too."""
    a_result(tmp_path, "aa" * 32, "aa" * 32, "bb" * 32)
    frame = orchestrator.frame("seen", tmp_path)
    assert list(frame["ids_agree"]) == [True, True, False]
    assert list(frame["status"]) == ["ok", "ok", "invalid"]
    assert list(frame["n"]) == [3, 3, 0]
    assert frame["decode_tok_per_s_mean"].isna().tolist() == [False, False, True]


def test_parquet_keeps_its_types_where_every_cell_is_empty(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    types = []
    for digest in (None, "aa" * 32):
        a_result(tmp_path / str(digest), digest)
        written = parquet_bytes(orchestrator.frame("seen", tmp_path / str(digest)))
        table = parquet.read_table(io.BytesIO(written))
        assert table.column("status").to_pylist() == ["ok" if digest else "failed"]
        types.append([(field.name, str(field.type)) for field in table.schema])
    assert types[0] == types[1]
    assert dict(types[0])["ttft_s_mean"] == "double"
    assert dict(types[0])["gpus"] == "int64"
    assert dict(types[0])["stop_at_eos"] == "bool"
