"""The study's files: whole or not there, never overwritten, found by name."""

import json
import os
import threading
from pathlib import Path

import pytest

from orchestrator.errors import InputError, OrchError
from orchestrator.files import write_whole
from orchestrator.record import RecordError
from orchestrator.study.files import Study, finished
from orchestrator.study.find import find_study, named_study, studies
from tests.orchestrator.made import a_case, a_failure, a_record, a_study, file

CASE = a_case()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return a_study(tmp_path, [CASE])


def test_a_file_is_replaced_whole_and_leaves_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, "one")
    write_whole(target, "two")
    assert target.read_text() == "two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "two\udcff")
    assert target.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_record_is_never_overwritten(study: Study) -> None:
    attempt = study.open_attempt(CASE.case_id)
    attempt.write_record(a_record(CASE))
    with pytest.raises(FileExistsError):
        attempt.write_record(a_failure(CASE))
    assert attempt.read_record() == a_record(CASE)


def test_attempts_are_numbered_and_two_at_once_differ(study: Study) -> None:
    numbers: list[int] = []

    def take() -> None:
        numbers.extend(study.open_attempt(CASE.case_id).number for _ in range(20))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 81))
    assert [each.number for each in study.attempts(CASE.case_id)] == list(range(1, 81))


def test_a_record_in_the_wrong_folder_is_refused(study: Study) -> None:
    attempt = study.open_attempt(CASE.case_id)
    attempt.write_record(a_record(a_case(gpus=2)))
    with pytest.raises(RecordError, match="is the record of"):
        attempt.read_record()


def test_finished_passes_over_what_is_damaged(study: Study) -> None:
    file(study, a_failure(CASE))
    torn = study.open_attempt(CASE.case_id)
    torn.record_file.write_text("{")
    assert list(finished(study, CASE.case_id)) == [a_failure(CASE)]


def test_a_damaged_case_file_is_written_anew(study: Study) -> None:
    study.case_file(CASE.case_id).write_text("")
    with pytest.raises(OrchError, match="cannot be read as a case"):
        study.read_case(CASE.case_id)
    study.file_case(CASE)
    assert study.read_case(CASE.case_id) == CASE


def test_cases_are_in_grid_order_then_those_filed_besides(study: Study) -> None:
    others = [a_case(gpus=gpus) for gpus in (4, 2)]
    study.write_facts({"cases": [case.case_id for case in others]})
    for case in others:
        study.file_case(case)
    assert study.case_ids() == [*(case.case_id for case in others), CASE.case_id]


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": 3}', ""])
def test_damaged_facts_cost_the_order_and_nothing_else(study: Study, text: str) -> None:
    (study.folder / "study.json").write_text(text)
    assert study.case_ids() == [CASE.case_id]


def test_the_reason_for_pruning_is_kept_until_it_fits(study: Study) -> None:
    study.prune(CASE.case_id, "needs 9 GiB")
    assert study.pruned(CASE.case_id) == "needs 9 GiB"
    study.unprune(CASE.case_id)
    assert study.pruned(CASE.case_id) is None


def test_a_damaged_reason_is_still_a_reason(study: Study) -> None:
    (study.case_dir(CASE.case_id) / "pruned.json").write_text("{")
    assert "damaged" in (study.pruned(CASE.case_id) or "")


def test_the_latest_study_is_the_one_last_submitted_to(tmp_path: Path) -> None:
    for index, name in enumerate(["new", "old", "middle"]):
        a_study(tmp_path, [], name)
        os.utime(tmp_path / name / "study.json", (1000 - index, 1000 - index))
    assert [study.name for study in studies(tmp_path)] == ["new", "old", "middle"]
    assert find_study(tmp_path, None).name == "new"
    assert find_study(tmp_path, "old").name == "old"


def test_a_study_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    a_study(tmp_path, [], "report")
    with pytest.raises(InputError, match="did you mean 'report'"):
        find_study(tmp_path, "reprot")
    with pytest.raises(InputError, match="no study in"):
        find_study(tmp_path / "empty", None)


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "a/b", "a b", "-x", "ä", "a\n", "x" * 101]
)
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        named_study(tmp_path, name)


def test_case_files_are_readable_json(study: Study) -> None:
    assert json.loads(study.case_file(CASE.case_id).read_text())["model"] == "toy"
