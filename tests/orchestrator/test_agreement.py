"""The same greedy work gives the same ids, whatever the strategy; what differs has no number."""

import json
import time
from pathlib import Path

import pytest

from kernels.strategies import Parallel, PipelineParallel
from orchestrator.commands.collect import print_table
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.agreement import complaint, ids_agree, void
from orchestrator.tables.table import comparison
from tests.orchestrator.made import a_case, a_failure, a_record, a_study, file, rows_of

SAME, OTHER, THIRD = "aa" * 32, "bb" * 32, "cc" * 32


def ran(digest: str, name: str = "tensor", gpus: int = 1, **of: object) -> CaseStatus:
    case = a_case(name, gpus, **of)
    record = a_record(case, ids_digest=digest)
    return CaseStatus(case_id=case.case_id, status="ok", case=case, record=record)


def told(*found: CaseStatus) -> list[bool | None]:
    agrees = ids_agree(found)
    return [agrees.get(each.case_id) for each in found]


def test_every_case_is_compared_with_single() -> None:
    one = ran(SAME, "single")
    many = [ran(OTHER, "tensor", gpus) for gpus in (2, 4, 8)]
    assert told(*many, one, ran(SAME, "model", 2)) == [False, False, False, True, True]


def test_without_single_the_ids_that_most_chose_are_the_reference() -> None:
    found = [ran(OTHER, "tensor", 2), ran(SAME, "tensor", 4), ran(SAME, "model", 2)]
    assert told(*found) == [False, True, True]


def test_where_two_texts_are_as_frequent_nobody_can_say_which_is_right() -> None:
    assert told(ran(SAME, "model", 2), ran(OTHER, "tensor", 2)) == [False, False]


def test_a_case_alone_with_its_work_has_nothing_to_compare() -> None:
    assert told(ran(SAME)) == [None]


@pytest.mark.parametrize(
    "of",
    [
        {"dtype": "bfloat16"}, {"seed": 1}, {"model_seed": 1}, {"prompt_tokens": 9},
        {"new_tokens": 4}, {"batch_size": 3}, {"prompts": "a.json"}, {"stop_at_eos": True},
        {"random": None, "path": "x"},
    ],
)  # fmt: skip
def test_other_work_is_not_compared(of: dict[str, object]) -> None:
    assert told(ran(SAME, "single"), ran(OTHER, "tensor", 2, **of)) == [None, None]


@pytest.mark.parametrize("of", [{"warmup": 3}, {"repeats": 9}, {"model": "alias"}])
def test_what_changes_no_id_does_not_part_the_work(of: dict[str, object]) -> None:
    assert told(ran(SAME, "single"), ran(OTHER, "tensor", 2, **of)) == [True, False]


def test_sequences_in_flight_are_compared_with_a_batch_of_as_many() -> None:
    deep = Parallel(pipeline=PipelineParallel(degree=2, in_flight=4))
    found = [
        ran(SAME, "pipeline", 2, strategy=deep, batch_size=2),
        ran(SAME, "single", batch_size=4), ran(OTHER, "single", batch_size=2),
    ]  # fmt: skip
    assert told(*found) == [True, True, None]


def test_sampled_ids_are_not_compared() -> None:
    found = [
        ran(SAME, "single", temperature=0.5),
        ran(OTHER, "model", 2, temperature=0.5),
    ]
    assert told(*found) == [None, None]


def test_failures_and_open_cases_are_no_evidence() -> None:
    case = a_case("model", 2)
    failed = CaseStatus(
        case_id=case.case_id, status="failed", case=case, record=a_failure(case)
    )
    waits = CaseStatus(case_id="x", status="pending", case=a_case("model", 4))
    assert told(ran(SAME, "single"), failed, waits) == [None, None, None]


@pytest.mark.parametrize(
    ("dtype", "cell"), [("float32", "invalid"), ("float64", "invalid"), ("bfloat16", 2.0)]
)  # fmt: skip
def test_only_exact_types_lose_their_number(dtype: str, cell: object) -> None:
    found = [ran(SAME, "single", dtype=dtype), ran(OTHER, "tensor", dtype=dtype)]
    rows = rows_of(comparison(found, "ttft_s", void(found, ids_agree(found))))
    assert [row["1 GPU"] for row in rows] == [2.0, cell]


def test_a_number_that_does_not_count_is_in_no_statistic_either() -> None:
    found = [ran(SAME, "single"), ran(OTHER, "tensor")]
    everything = frozenset(each.case_id for each in found)
    about = comparison(found, "ttft_s", everything).about
    assert "n =" not in about


def test_the_line_names_who_differs_those_without_number_first() -> None:
    rough = [ran(SAME, "single", dtype="bfloat16"), ran(OTHER, dtype="bfloat16")]
    exact = [ran(SAME, "single"), ran(OTHER, "tensor", 2)]
    found = [*rough, *exact]
    agrees = ids_agree(found)
    line = complaint(agrees, void(found, agrees)) or ""
    assert line.startswith("2 of 4 compared cases")
    assert line.endswith(f"{exact[1].case_id}, {rough[1].case_id}")
    assert "\n" not in line


def test_a_long_list_is_cut_and_counted() -> None:
    agrees = {f"case-{number}": False for number in range(12)}
    assert (complaint(agrees, frozenset()) or "").endswith("case-9 and 2 more")


def test_nothing_is_said_where_all_agree() -> None:
    assert complaint({"a": True}, frozenset()) is None


def test_collect_says_it_in_both_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [a_case("single"), a_case("model", 2), a_case("tensor", 2)]
    study = a_study(tmp_path, cases)
    for case, digest in zip(cases, (SAME, SAME, OTHER), strict=True):
        file(study, a_record(case, ids_digest=digest))
    print_table(tmp_path, None, long=True, kind="json", metric="ttft_s")
    long = capsys.readouterr()
    assert [row["ids_agree"] for row in json.loads(long.out)] == [True, True, False]
    print_table(tmp_path, None, long=False, kind="json", metric="ttft_s")
    table = capsys.readouterr()
    assert [row["2 GPUs"] for row in json.loads(table.out)] == [None, 2.0, "invalid"]
    for said in (long.err, table.err):
        assert f"{cases[2].case_id}\n" in said


@pytest.mark.alone
def test_the_time_grows_with_the_cases_and_not_faster() -> None:
    found = [ran(SAME, "tensor", 2 ** (i % 4), seed=i // 4) for i in range(4000)]

    def taken(number: int) -> float:
        return min(_timed(found[:number]) for _ in range(3))

    assert taken(4000) < 20 * taken(500)


def _timed(found: list[CaseStatus]) -> float:
    started = time.process_time()
    ids_agree(found)
    return time.process_time() - started
