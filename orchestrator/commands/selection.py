"""Which cases of a study a person means: by name or pattern, status and cause."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.errors import InputError, nearest
from orchestrator.study.case_status import CaseStatus, Status

MANY = 20
"""More than so many cases at once are asked about."""

Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Choice:
    """A person's filter; what is empty lets all pass."""

    names: Sequence[str] = ()
    """Case ids, beginnings or parts of them, or patterns as of a shell."""
    statuses: Sequence[str] = ()
    causes: Sequence[str] = ()

    @property
    def is_open(self) -> bool:
        """Nothing was said: every case is meant."""
        return not (self.names or self.statuses or self.causes)


def choose(found: Iterable[CaseStatus], choice: Choice) -> list[CaseStatus]:
    """The cases that are meant.

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
    """Case ids that `name` stands for: itself, else a pattern, a beginning, a part.

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
    raise InputError(f"no case {name!r} in this study; {nearest(name, ids[:50])}")


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
    """Those of these statuses."""
    return [each for each in found if each.status in statuses]
