"""The cases of a study that left a trace, and what `orch trace` tells of each."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kernels.spans import Span, of_events
from orchestrator.case import Case
from orchestrator.errors import InputError, OrchError
from orchestrator.record import Record, RecordError
from orchestrator.study.files import Attempt, Study

COLUMNS = (
    "case_id", "idle_share", "schedule_idle_share", "window_s", "idle_share_of_ranks", "trace",
    "flame",
)  # fmt: skip
_TOKENS = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_ALL = range(10**6)


@dataclass(frozen=True)
class TracedCase:
    """A case, and the latest attempt of it that left a trace."""

    case: Case
    attempt: Attempt
    record: Record | None

    def row(self) -> dict[str, object]:
        """Return the case as `orch trace --json` prints it."""
        facts = self.record.trace if self.record else None
        known = facts.model_dump() if facts else {}
        flame = self.attempt.flame_file()
        return {name: known.get(name) for name in COLUMNS} | {
            "case_id": self.case.case_id,
            "trace": str(self.attempt.trace_file),
            "flame": str(flame) if flame.is_file() else None,
        }

    def title(self) -> str:
        """Return the line over its panel."""
        case, facts = self.case, self.record.trace if self.record else None
        text = f"{case.model}, {case.label} on {case.gpus}, {case.dtype}"
        if facts is None:
            return text
        return (
            f"{text}: idle {facts.idle_share:.0%} of decode, "
            f"the schedule alone {facts.schedule_idle_share:.0%}"
        )


def traced_cases(study: Study, ids: Iterable[str]) -> list[TracedCase]:
    """Return those of the cases that have a trace."""
    return [traced for case_id in ids if (traced := _traced(study, case_id))]


def _traced(study: Study, case_id: str) -> TracedCase | None:
    for attempt in reversed(study.attempts(case_id)):
        if attempt.trace_file.is_file():
            return TracedCase(study.read_case(case_id), attempt, _record(attempt))
    return None


def _record(attempt: Attempt) -> Record | None:
    try:
        return attempt.read_record()
    except RecordError:
        return None


def read_spans(file: Path) -> list[Span]:
    """Read the spans of a trace file.

    Raises:
        OrchError: it cannot be read, or is no trace of ours.
    """
    try:
        return of_events(json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise OrchError(f"{file} cannot be read as a trace: {error!r}") from error


def tokens_of(text: str) -> range:
    """Return which tokens to draw: `3`, `0-3`, or `all`.

    Raises:
        InputError: it is none of these.
    """
    if text == "all":
        return _ALL
    found = _TOKENS.fullmatch(text)
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else -1
    if last < first:
        raise InputError(
            f"tokens are given as 3, 0-3 (0 is the prefill) or all, got {text!r}"
        )
    return range(first, last + 1)
