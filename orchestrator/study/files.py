"""One folder in results/: the only module that spells file names.

    results/<study>/
      study.json                     cases in grid order, cluster
      grid.yaml                      the grid as last submitted
      cases/<case_id>/case.json
      cases/<case_id>/pruned.json    why it cannot fit, as long as the forecast says so
      cases/<case_id>/attempt-1/     record.json, worker.log, heartbeat.json: never overwritten
      ledger.jsonl                   submissions to Slurm or the local runner, and their answers
      jobs/<key>/                    job specs, script and logs of one submission

Every file is written under a temporary name and then renamed, so a crash leaves either the old
file or the new one. Files that can be written again from the grid (cases, job specs) are not
synced to the disk, so that filing a thousand cases takes a second.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.case import Case
from orchestrator.errors import InputError, OrchError
from orchestrator.files import write_whole as write_whole
from orchestrator.record import Record, RecordError, read_record

_ATTEMPT = re.compile(r"attempt-(\d+)")


@dataclass(frozen=True)
class Attempt:
    """One run of one case, in a numbered folder of its own."""

    case_id: str
    number: int
    folder: Path

    @property
    def record_file(self) -> Path:
        """Written once: by rank 0, or by `jobs.launch` if the workers died."""
        return self.folder / "record.json"

    @property
    def log_file(self) -> Path:
        """Output of the workers."""
        return self.folder / "worker.log"

    @property
    def heartbeat_file(self) -> Path:
        """Progress of a running attempt, replaced every few seconds."""
        return self.folder / "heartbeat.json"

    @property
    def trace_file(self) -> Path:
        """Which rank computed when, as Chrome trace events; see `jobs.tracing`."""
        return self.folder / "trace.json.gz"

    def flame_file(self, rank: int | None = None) -> Path:
        """Flame graph of one rank, or of all ranks together."""
        return self.folder / ("flame.svg" if rank is None else f"flame-{rank}.svg")

    def write_record(self, record: Record) -> None:
        """File the record.

        Raises:
            FileExistsError: the attempt has one already.
        """
        write_whole(
            self.record_file, record.model_dump_json(indent=1) + "\n", replace=False
        )

    def read_record(self) -> Record | None:
        """Return the record, or None if none was written yet.

        Raises:
            RecordError: the file is not a valid record of this case and attempt.
        """
        try:
            text = self.record_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{self.record_file} cannot be read: {error}") from error
        record = read_record(text, str(self.record_file))
        if (record.case.case_id, record.attempt) != (self.case_id, self.number):
            raise RecordError(
                f"{self.record_file} is the record of {record.case.case_id}, attempt "
                f"{record.attempt}; move it to that attempt's folder"
            )
        return record


class Study:
    """The files of one study. Reading never writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def grid_file(self) -> Path:
        """Copy of the grid as last submitted."""
        return self.folder / "grid.yaml"

    @property
    def ledger_file(self) -> Path:
        """The ledger; see `orchestrator.study.ledger`."""
        return self.folder / "ledger.jsonl"

    @property
    def lock_file(self) -> Path:
        """The lock that a command holds while it changes the study."""
        return self.folder / ".lock"

    @property
    def jobs_dir(self) -> Path:
        """Job specs, scripts and logs of all submissions."""
        return self.folder / "jobs"

    @property
    def answers_file(self) -> Path:
        """Slurm's last answer about the study's jobs."""
        return self.jobs_dir / "answers.json"

    def job_dir(self, key: str) -> Path:
        """Job specs, script and logs of one submission."""
        return self.jobs_dir / key

    def job_spec_file(self, key: str, index: int) -> Path:
        """Spec of the submission's job number `index`, counted from 0."""
        return self.job_dir(key) / f"job-{index}.json"

    def case_dir(self, case_id: str) -> Path:
        """Return the folder of one case."""
        return self.folder / "cases" / case_id

    def case_file(self, case_id: str) -> Path:
        """Return the file with the case as JSON, for the ranks of a job."""
        return self.case_dir(case_id) / "case.json"

    def create(self) -> None:
        """Make the folders, if they do not exist."""
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        self.jobs_dir.mkdir(exist_ok=True)

    def read_facts(self) -> dict[str, Any]:
        """Read study.json: `cases` (ids in grid order) and facts of the last submit; {} before it.

        Raises:
            OrchError: the file is damaged.
        """
        file = self.folder / "study.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OrchError(
                f"{file} is damaged: {error}; `orch submit` with the study's grid rewrites it"
            ) from error
        if not isinstance(facts, dict):
            raise OrchError(
                f"{file} is damaged: it is not a JSON object; `orch submit` with the study's grid "
                f"rewrites it"
            )
        return facts

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Replace study.json. The caller holds the study's lock."""
        write_whole(self.folder / "study.json", json.dumps(facts, indent=1) + "\n")

    def write_grid(self, text: str) -> None:
        """Keep a copy of the grid."""
        write_whole(self.grid_file, text, durable=False)

    def file_case(self, case: Case) -> None:
        """Write case.json, unless it exists with the same content."""
        file = self.case_file(case.case_id)
        text = case.model_dump_json(indent=1) + "\n"
        try:
            if file.read_bytes() == text.encode():
                return
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text, durable=False)

    def read_case(self, case_id: str) -> Case:
        """Read the case.

        Raises:
            OrchError: the file is missing or damaged.
        """
        file = self.case_file(case_id)
        try:
            return Case.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise OrchError(f"{file} cannot be read as a case: {error}") from error

    def ordered_ids(self) -> list[str]:
        """Return case ids in the grid order of the last submit; [] if study.json is damaged."""
        try:
            return [str(case_id) for case_id in self.read_facts().get("cases", [])]
        except (OrchError, TypeError):
            return []

    def case_ids(self) -> list[str]:
        """Return all case ids of the study, in grid order."""
        ordered = self.ordered_ids()
        known = set(ordered)
        cases = self.folder / "cases"
        filed = sorted(os.listdir(cases)) if cases.is_dir() else []
        return [*ordered, *(case_id for case_id in filed if case_id not in known)]

    def prune(self, case_id: str, reason: str) -> None:
        """Note why a case cannot fit and is not submitted."""
        write_whole(
            self.case_dir(case_id) / "pruned.json",
            json.dumps({"reason": reason}) + "\n",
            durable=False,
        )

    def unprune(self, case_id: str) -> None:
        """Forget the note: the case fits now."""
        (self.case_dir(case_id) / "pruned.json").unlink(missing_ok=True)

    def pruned(self, case_id: str) -> str | None:
        """Return why the case cannot fit, or None."""
        try:
            text = (self.case_dir(case_id) / "pruned.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return str(json.loads(text)["reason"])
        except (ValueError, KeyError, TypeError):
            return "unknown reason: pruned.json is damaged"

    def attempts(self, case_id: str) -> list[Attempt]:
        """Return all attempts of a case, the first one first."""
        try:
            names = os.listdir(self.case_dir(case_id))
        except FileNotFoundError:
            return []
        numbers = sorted(
            int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name))
        )
        return [self._attempt(case_id, number) for number in numbers]

    def open_attempt(self, case_id: str) -> Attempt:
        """Make the folder of the next attempt. Concurrent callers get different attempts."""
        number = max((attempt.number for attempt in self.attempts(case_id)), default=0)
        while True:
            number += 1
            attempt = self._attempt(case_id, number)
            try:
                attempt.folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return attempt

    def _attempt(self, case_id: str, number: int) -> Attempt:
        return Attempt(case_id, number, self.case_dir(case_id) / f"attempt-{number}")


def attempt_in(folder: Path) -> Attempt:
    """Return the attempt that lives in `folder`.

    Raises:
        InputError: the folder is not named like an attempt.
    """
    found = _ATTEMPT.fullmatch(folder.name)
    if found is None:
        raise InputError(
            f"an attempt's folder is named attempt-1, attempt-2 …, got {folder}; pass such a folder"
        )
    return Attempt(folder.parent.name, int(found[1]), folder)


def finished(study: Study, case_id: str) -> Iterator[Record]:
    """Valid records of a case, the latest attempt first; damaged ones are skipped."""
    for attempt in reversed(study.attempts(case_id)):
        try:
            record = attempt.read_record()
        except RecordError:
            continue
        if record is not None:
            yield record
