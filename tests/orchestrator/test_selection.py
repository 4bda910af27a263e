"""Which cases a person means, and what is run again."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from orchestrator.commands.retry import Change, why_not
from orchestrator.commands.selection import Choice, agree, choose, matching
from orchestrator.errors import InputError
from orchestrator.study.case_status import CaseStatus
from tests.orchestrator.made import a_case

IDS = ["llama_tensor_1x-aa", "llama_tensor_2x-bb", "llama_model_2x-cc"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("llama_tensor_1x-aa", IDS[:1]),
        ("llama_tensor", IDS[:2]),
        ("_2x", IDS[1:]),
        ("*_2x-*", IDS[1:]),
        ("llama_[mt]*_2x*", IDS[1:]),
    ],
)
def test_a_name_is_an_id_a_pattern_a_beginning_or_a_part(
    name: str, found: Sequence[str]
) -> None:
    assert matching(IDS, name) == found


def test_a_name_that_fits_nothing_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'llama_model_2x-cc'"):
        matching(IDS, "lama_model_2x-d")


def failed(
    cause: str, *, retryable: bool = False, status: str = "failed"
) -> CaseStatus:
    return CaseStatus(
        case_id=a_case().case_id,
        status=status,  # type: ignore[arg-type]
        case=a_case(),
        cause=cause,
        remedy="the way out",
        retryable=retryable,
    )


def test_filters_are_combined() -> None:
    one, two = failed("timeout"), failed("launch", status="lost")
    two = replace(two, case_id="other")
    assert choose([one, two], Choice()) == [one, two]
    assert choose([one, two], Choice(causes=["timeout"])) == [one]
    assert choose([one, two], Choice(["other"], ["lost"], ["launch"])) == [two]
    assert choose([one, two], Choice(["other"], ["failed"])) == []


AGAIN = [
    ("node_fail", True, Change()),
    ("preempted", True, Change()),
    ("cancelled", True, Change()),
    ("timeout", False, Change(case_time="2h")),
    ("oom_host", False, Change(host_memory="64GiB")),
    ("oom_gpu", False, Change(anyway=True)),
]


@pytest.mark.parametrize(("cause", "retryable", "change"), AGAIN)
def test_what_can_help_is_run_again(
    cause: str, retryable: bool, change: Change
) -> None:
    assert why_not(failed(cause, retryable=retryable), Choice(), change) is None


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ("timeout", "give --case-time 2h"),
        ("oom_host", "give --host-memory 64GiB"),
        ("oom_gpu", "the way out (or --anyway)"),
        ("config", "the way out (or --anyway)"),
        ("invalid_result", "the way out (or --anyway)"),
    ],
)
def test_what_would_come_again_is_left_with_the_way_out(cause: str, says: str) -> None:
    reason = why_not(failed(cause), Choice(), Change())
    assert reason is not None
    assert says in reason


def test_a_case_of_unclear_cause_is_run_again_when_it_is_named() -> None:
    unclear = failed("unknown")
    assert why_not(unclear, Choice(), Change()) is not None
    assert why_not(unclear, Choice(names=[unclear.case_id]), Change()) is None


def test_an_oom_is_never_repeated_by_naming_it() -> None:
    oom = failed("oom_gpu", status="oom")
    assert why_not(oom, Choice(names=[oom.case_id], causes=["oom_gpu"]), Change())


def test_changes_become_keys_of_a_profile() -> None:
    change = Change("2h", "64GiB", 3, ("n7",))
    assert change.of_profile("a100", ["n1"]) == {
        "case_time": "2h",
        "cases_per_job": 3,
        "devices": {"a100": {"host_memory": "64GiB"}},
        "exclude_nodes": ["n1", "n7"],
    }
    assert Change().of_profile("a100", []) == {}


def test_many_cases_are_asked_about_and_few_are_not() -> None:
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    agree("cancel 3 cases", 3, yes=False, confirm=no)
    agree("cancel 300 cases", 300, yes=True, confirm=no)
    assert asked == []
    with pytest.raises(InputError, match="not confirmed; --yes"):
        agree("cancel 300 cases", 300, yes=False, confirm=no)
