"""What `orch doctor` reports: one check, whether it passed, and what to do where it did not."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    level: Level
    """warn: it may be intended; fail: nothing will run like this."""
    what: str
    remedy: str = ""


def passed(what: str) -> Check:
    """A check that found nothing wrong."""
    return Check("ok", what)


def warn(what: str, remedy: str) -> Check:
    """A check that found something unusual, which may be intended."""
    return Check("warn", what, remedy)


def fail(what: str, remedy: str) -> Check:
    """A check that found something to fix."""
    return Check("fail", what, remedy)
