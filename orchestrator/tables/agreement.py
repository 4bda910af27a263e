"""Whether cases that did the same greedy work chose the same ids, as every strategy must.

The reference of such a group is its `single` case; where it has none, the ids that most of its
cases chose. In float32 and float64 a case that differs from it has no number to show; in
bfloat16 and float16 rounding alone can turn a near tie, so that is only said.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.case import Case
from orchestrator.record import Record
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.metrics import sequences

EXACT = frozenset({"float32", "float64"})
"""Types in which no strategy may choose other ids."""
NAMED = 10
"""Cases that a message names; `ids_agree` of the long table has all."""

_WORK = (
    "path", "random", "model_seed", "dtype", "prompts", "prompt_tokens", "new_tokens",
    "seed", "stop_at_eos",
)  # fmt: skip


def ids_agree(found: Iterable[CaseStatus]) -> dict[str, bool]:
    """Map case id → whether its ids are the reference's; without those nothing compares with."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for each in found:
        if each.status == "ok" and each.record and _compares(each.record):
            groups[_work(each.record)].append(each.record)
    agrees = {}
    for records in groups.values():
        if len(records) > 1:
            reference = _reference(records)
            for record in records:
                agrees[record.case.case_id] = record.ids_digest == reference
    return agrees


def void(found: Iterable[CaseStatus], agrees: Mapping[str, bool]) -> frozenset[str]:
    """Return the ids of the cases whose numbers do not count."""
    return frozenset(
        each.case_id
        for each in found
        if agrees.get(each.case_id) is False and each.case and _is_exact(each.case)
    )


def complaint(agrees: Mapping[str, bool], no_number: frozenset[str]) -> str | None:
    """One line that names the cases whose ids differ; None if there is none."""
    differing = [case_id for case_id, same in agrees.items() if not same]
    if not differing:
        return None
    # those that matter most first
    names = sorted(differing, key=lambda case_id: case_id not in no_number)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    why = (
        f"{len(no_number)} of them in float32 or float64, where none may: no number counts"
        if no_number
        else "in bfloat16 and float16 rounding alone can do that"
    )
    return (
        f"{len(names)} of {len(agrees)} compared cases chose other ids than the same greedy "
        f"work did elsewhere ({why}): {', '.join(names[:NAMED])}{more}"
    )


def _compares(record: Record) -> bool:
    return record.case.temperature == 0 and record.ids_digest is not None


def _is_exact(case: Case) -> bool:
    return case.dtype in EXACT


def _work(record: Record) -> tuple[Any, ...]:
    # All that the ids follow from. Not the batch size: sequences are what is generated together.
    case = record.case
    return (sequences(record), *(getattr(case, name) for name in _WORK))


def _reference(records: Sequence[Record]) -> str | None:
    """Return the digest to compare with; None, which nothing equals, if two are equally likely."""
    single = [each for each in records if each.case.strategy.names == ("single",)]
    counted = Counter(each.ids_digest for each in single or records).most_common(2)
    if len(counted) == 2 and counted[0][1] == counted[1][1]:
        return None
    return counted[0][0]
