"""What was asked of a runner and what it answered: one JSON object a line, only ever appended.

    {"event": "intent", "key": …, "runner": …, "cluster": …,
     "jobs": [[[case_id, first_attempt, opened], …], …]}
    {"event": "accepted", "key": …, "job_ids": […]}      one id per job of the intent, in order
    {"event": "refused", "key": …, "reason": …}          certainly none was accepted
    {"event": "cancelled", "key": …, "job_ids": […]}     asked for by `orch cancel`

Each line is on disk before what it announces is done. A crash can tear the last line; it then
announces nothing, and the next line starts on its own.
"""

import json
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError


@dataclass(frozen=True)
class Entry:
    """One case of a submitted job."""

    case_id: str
    first_attempt: int
    """A valid record of this attempt or a later one is the answer to this submission."""
    opened: int = 0
    """Attempts there were when it was submitted: later ones are this job's (or a later job's)."""


@dataclass(frozen=True)
class Submission:
    """One call of a runner: jobs that share a key."""

    key: str
    runner: str
    cluster: str
    host: str
    """Where `orch submit` ran."""
    at: str
    jobs: tuple[tuple[Entry, ...], ...]
    job_ids: tuple[str, ...] = ()
    """Empty until the runner accepted."""
    refused: str | None = None
    """Why the runner accepted none."""
    cancelled: frozenset[str] = frozenset()
    """Job ids that `orch cancel` ended."""

    @property
    def is_open(self) -> bool:
        """Announced, and neither accepted nor refused: a crash, or a submit still at work."""
        return not self.job_ids and self.refused is None


@dataclass(frozen=True)
class Asked:
    """The last submission of one case."""

    submission: Submission
    index: int
    """Of the job within the submission."""
    entry: Entry

    @property
    def job_id(self) -> str | None:
        """None while the submission is open or refused."""
        ids = self.submission.job_ids
        return ids[self.index] if self.index < len(ids) else None


@dataclass(frozen=True)
class Ledger:
    """All that the ledger file says."""

    submissions: dict[str, Submission] = field(default_factory=dict)
    """By key, oldest first."""
    damaged_lines: int = 0
    """Lines that are no event: torn by a crash, or edited."""

    def asked(self) -> dict[str, Asked]:
        """Map case id → its last submission that was not refused."""
        last: dict[str, Asked] = {}
        for submission in self.submissions.values():
            if submission.refused is not None:
                continue
            for index, entries in enumerate(submission.jobs):
                for entry in entries:
                    last[entry.case_id] = Asked(submission, index, entry)
        return last

    def refusals(self) -> dict[str, str]:
        """Map case id → why the runner refused it, where that was the last answer."""
        last: dict[str, str | None] = {}
        for submission in self.submissions.values():
            for entries in submission.jobs:
                last.update((entry.case_id, submission.refused) for entry in entries)
        return {case_id: reason for case_id, reason in last.items() if reason}

    def open_keys(self) -> list[str]:
        """Keys of which it is not known whether a runner accepted them."""
        return [key for key, each in self.submissions.items() if each.is_open]


class LedgerWriter:
    """Appends events; the caller holds the study's lock."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def intend(
        self, key: str, runner: str, cluster: str, jobs: Sequence[Sequence[Entry]]
    ) -> None:
        """Announce a call of the runner."""
        packed = [[[e.case_id, e.first_attempt, e.opened] for e in job] for job in jobs]
        self._append(
            event="intent", key=key, runner=runner, cluster=cluster,
            host=socket.gethostname(), jobs=packed,
        )  # fmt: skip

    def accept(self, key: str, job_ids: Iterable[str]) -> None:
        """The runner's answer: a job id per job of the intent."""
        self._append(event="accepted", key=key, job_ids=list(job_ids))

    def refuse(self, key: str, reason: str) -> None:
        """The runner certainly accepted none of the key's jobs."""
        self._append(event="refused", key=key, reason=reason)

    def cancel(self, key: str, job_ids: Iterable[str]) -> None:
        """These jobs of the key are being ended."""
        self._append(event="cancelled", key=key, job_ids=list(job_ids))

    def _append(self, **event: Any) -> None:
        event = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **event}
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self.file.open("ab") as stream:
            if _is_torn(self.file):
                line = "\n" + line
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())


def _is_torn(file: Path) -> bool:
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def read_ledger(file: Path) -> Ledger:
    """Everything the file says; an empty ledger where there is no file.

    Raises:
        OrchError: the file cannot be read.
    """
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise OrchError(f"{file} cannot be read: {error}") from error
    submissions: dict[str, Submission] = {}
    damaged = 0
    for line in lines:
        try:
            _apply(json.loads(line), submissions)
        except (ValueError, KeyError, TypeError, IndexError):
            damaged += bool(line.strip())
    return Ledger(submissions, damaged)


def _apply(event: dict[str, Any], submissions: dict[str, Submission]) -> None:
    key = event["key"]
    match event["event"]:
        case "intent":
            jobs = tuple(
                tuple(Entry(*fields) for fields in job) for job in event["jobs"]
            )
            submissions[key] = Submission(
                key, event["runner"], event["cluster"], event["host"], event["at"], jobs
            )
        case "accepted":
            ids = tuple(event["job_ids"])
            if len(ids) != len(submissions[key].jobs):
                raise ValueError("one job id per job")
            submissions[key] = replace(submissions[key], job_ids=ids)
        case "refused":
            submissions[key] = replace(submissions[key], refused=event["reason"])
        case "cancelled":
            gone = submissions[key].cancelled | frozenset(event["job_ids"])
            submissions[key] = replace(submissions[key], cancelled=gone)
        case _:
            raise ValueError("unknown event")
