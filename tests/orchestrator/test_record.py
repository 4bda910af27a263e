"""Records are strict to read: what is not whole and consistent is no result."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.record import Record, RecordError, Sample, read_record
from tests.orchestrator.made import a_case, a_failure, a_record

CASE = a_case(gpus=2)


def changed(path: str, value: Any) -> str:
    """The JSON of a good record with one thing changed; `...` removes it."""
    document = json.loads(a_record(CASE).model_dump_json())
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "record", [a_record(CASE), a_failure(CASE, 2)], ids=["ok", "failed"]
)
def test_a_record_survives_the_way_through_json(record: Record) -> None:
    assert read_record(record.model_dump_json(indent=1), "file") == record


def test_every_beginning_of_a_record_is_refused() -> None:
    text = a_record(CASE).model_dump_json()
    for length in range(len(text)):
        with pytest.raises(RecordError, match=r"record\.json is not a valid record"):
            read_record(text[:length], "record.json")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema_version", 2, "schema_version"),
        ("surprise", 1, "surprise"),
        ("status", "fine", "status"),
        ("status", "failed", "does not go with cause"),
        ("cause", "timeout", "does not go with cause"),
        ("samples", [], "needs samples"),
        ("ranks", [], "needs samples, ranks"),
        ("ids_digest", None, "ids_digest"),
        ("output_tokens", 0, "output token"),
        ("output_tokens", "6", "output_tokens"),
        ("attempt", 0, "attempt"),
        ("case", ..., "case"),
        ("started_at", "yesterday", "started_at"),
        ("samples.0.token_s", [2.0, 1.0], "never go back"),
        ("samples.0.token_s", [], "at least one time"),
        ("samples.0.skew_s", -1.0, "skew_s"),
        ("ranks.0.load_s", float("nan"), "load_s"),
        ("ranks.0.rank", 0.5, "rank"),
        ("case.gpus", 3, "gpus"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_by_name(
    path: str, value: Any, said: str
) -> None:
    with pytest.raises(RecordError, match=said):
        read_record(changed(path, value), "record.json")


def test_a_good_record_changed_by_nothing_is_read() -> None:
    assert read_record(changed("remedy", None), "record.json") == a_record(CASE)


def test_infinite_times_cannot_even_be_made() -> None:
    with pytest.raises(ValidationError):
        Sample(token_s=[float("inf")], skew_s=0.0)
