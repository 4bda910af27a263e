"""Which cases of a study a person means: by name or pattern, status and cause."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.study.case_status import CaseStatus, Status

MANY = 20
"""Ask before something is done to more cases than this."""

Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Choice:
    """A person's filter; an empty field lets every case pass."""

    names: Sequence[str] = ()
    """Case ids, beginnings or parts of them, or patterns as of a shell."""
    statuses: Sequence[str] = ()
    causes: Sequence[str] = ()

    @property
    def is_open(self) -> bool:
        """Whether every case passes."""
        return not (self.names or self.statuses or self.causes)


def choose(found: Iterable[CaseStatus], choice: Choice) -> list[CaseStatus]:
    """Return the cases that are meant.

    Raises:
        InputError: a name fits no case.
    """
    everything = list(found)
    ids = [each.case_id for each in everything]
    named = {case_id for name in choice.names for case_id in matching(ids, name)}
    return [
        each
        for each in everything
        if (not choice.names or each.case_id in named)
        and (not choice.statuses or each.status in choice.statuses)
        and (not choice.causes or each.cause in choice.causes)
    ]


def matching(ids: Sequence[str], name: str) -> list[str]:
    """Return the case ids that `name` stands for: itself, else a pattern, a beginning, a part.

    Raises:
        InputError: none.
    """
    if name in ids:
        return [name]
    ways: tuple[Callable[[str], bool], ...] = (
        lambda case_id: fnmatch.fnmatchcase(case_id, name),
        lambda case_id: case_id.startswith(name),
        lambda case_id: name in case_id,
    )
    for fits in ways:
        if found := [case_id for case_id in ids if fits(case_id)]:
            return found
    close = get_close_matches(name, ids, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise InputError(f"no case {name!r} in this study; {guess}`orch status` lists all")


def short_names(ids: Sequence[str]) -> dict[str, str]:
    """Map case ids to slugs, with as much of the hash as `matching` needs to find one case."""
    shared = dict.fromkeys(ids, 0)
    for one, other in pairwise(sorted(ids)):
        pairs = enumerate(zip(one, other, strict=False))
        shorter = min(len(one), len(other))
        common = next((index for index, (a, b) in pairs if a != b), shorter)
        shared[one] = max(shared[one], common)
        shared[other] = max(shared[other], common)
    return {case_id: _shortened(case_id, shared[case_id]) for case_id in ids}


def _shortened(case_id: str, shared: int) -> str:
    slug = case_id.rpartition("-")[0] or case_id
    # Of a hash, four digits are easier to recognise than one.
    return slug if shared < len(slug) else case_id[: max(shared + 1, len(slug) + 5)]


def agree(what: str, count: int, *, yes: bool, confirm: Confirm) -> None:
    """Ask before something is done to many cases.

    Raises:
        InputError: the person does not want it, or cannot be asked.
    """
    if yes or count <= MANY:
        return
    if not confirm(f"{what}?"):
        raise InputError(f"{what}: not confirmed; --yes does it without asking")


def of_status(found: Iterable[CaseStatus], *statuses: Status) -> list[CaseStatus]:
    """Return the cases of these statuses."""
    return [each for each in found if each.status in statuses]
