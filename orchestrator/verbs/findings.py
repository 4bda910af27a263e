"""What `orch doctor` finds: a thing that is well, odd or bad, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "odd", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """odd: it may be meant; bad: nothing will run so."""
    what: str
    way_out: str = ""


def good(what: str) -> Finding:
    """As it should be."""
    return Finding("ok", what)


def odd(what: str, way_out: str) -> Finding:
    """It may be meant."""
    return Finding("odd", what, way_out)


def bad(what: str, way_out: str) -> Finding:
    """It must be mended."""
    return Finding("bad", what, way_out)
