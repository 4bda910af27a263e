"""How long the supervisor waits for what, before it gives up."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from orchestrator.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Times in seconds. A variable of the job overrides each: `ORCH_STALL_S` for `stall_s`.

    A cluster profile sets such variables under `environment`.
    """

    stall_s: float = 900
    """Without progress on any rank, after which the workers are ended."""
    collective_s: float = 600
    """For the other ranks, within one collective."""
    grace_s: float = 5
    """Between SIGTERM and SIGKILL."""
    disk_s: float = 120
    """For a full or read-only disk to take the record."""
    heartbeat_s: float = 5
    """Between two heartbeats."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the overrides.

        Raises:
            InputError: one of them is not a positive number.
        """
        given = {}
        for each in fields(cls):
            variable = f"ORCH_{each.name.upper()}"
            if variable in environment:
                given[each.name] = _seconds(variable, environment[variable])
        return cls(**given)


def _seconds(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(
            f"{variable} must be a positive number of seconds, got {text!r}; "
            f"unset it to use the default"
        )
    return value
