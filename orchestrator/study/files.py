"""One folder in results/: the only module that spells file names.

    results/<study>/
      study.json                     cases in grid order, cluster
      grid.yaml                      the grid as last submitted
      cases/<case_id>/case.json
      cases/<case_id>/pruned.json    why it cannot fit, while that is the forecast
      cases/<case_id>/attempt-1/     record.json, worker.log, heartbeat.json: never overwritten
      ledger.jsonl                   what was asked of Slurm or the local runner, and its answer
      jobs/<key>/                    packs, scripts and logs of the jobs of one submission

Every file is written whole to a temporary name and then given its real one, so that a crash
of the program leaves either the old file or the new one. What can be written again from the
grid (cases, packs) is not forced to the disk, so that a thousand cases take a second.
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
    """One run of one case: a numbered folder of its own."""

    case_id: str
    number: int
    folder: Path

    @property
    def record_file(self) -> Path:
        """Written once, by rank 0 or, where the workers died, by `jobs.launch`."""
        return self.folder / "record.json"

    @property
    def log_file(self) -> Path:
        """What the workers printed."""
        return self.folder / "worker.log"

    @property
    def heartbeat_file(self) -> Path:
        """Progress while it runs, replaced as it goes."""
        return self.folder / "heartbeat.json"

    @property
    def trace_file(self) -> Path:
        """Who computed when, as Chrome's trace events; see `jobs.tracing.trace`."""
        return self.folder / "trace.json.gz"

    def flame_file(self, rank: int | None = None) -> Path:
        """Flame graph of one rank, or of all together; folded stacks stand beside it."""
        return self.folder / ("flame.svg" if rank is None else f"flame-{rank}.svg")

    def write_record(self, record: Record) -> None:
        """File the record; FileExistsError where the attempt has one already."""
        write_whole(
            self.record_file, record.model_dump_json(indent=1) + "\n", replace=False
        )

    def read_record(self) -> Record | None:
        """The record, or None where none was written yet.

        Raises:
            RecordError: the file is there and is no valid record of this case and attempt.
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
                f"{record.attempt}: it does not belong here"
            )
        return record


class Study:
    """The files of one study. Reading never writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def grid_file(self) -> Path:
        """Copy of the grid as last submitted."""
        return self.folder / "grid.yaml"

    @property
    def ledger_file(self) -> Path:
        """See `orchestrator.study.ledger`."""
        return self.folder / "ledger.jsonl"

    @property
    def lock_file(self) -> Path:
        """Held while a command changes the study."""
        return self.folder / ".lock"

    @property
    def jobs_dir(self) -> Path:
        """Packs, scripts and logs of jobs."""
        return self.folder / "jobs"

    @property
    def answers_file(self) -> Path:
        """Slurm's last answer about the study's jobs."""
        return self.jobs_dir / "answers.json"

    def job_dir(self, key: str) -> Path:
        """What belongs to the jobs of one submission."""
        return self.jobs_dir / key

    def job_spec_file(self, key: str, index: int) -> Path:
        """The pack of the submission's `index`-th job, from 0."""
        return self.job_dir(key) / f"pack-{index}.json"

    def case_dir(self, case_id: str) -> Path:
        """The folder of one case."""
        return self.folder / "cases" / case_id

    def case_file(self, case_id: str) -> Path:
        """The case as JSON, for the ranks of a job."""
        return self.case_dir(case_id) / "case.json"

    def create(self) -> None:
        """Make the folders; harmless where they are."""
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        self.jobs_dir.mkdir(exist_ok=True)

    def read_facts(self) -> dict[str, Any]:
        """study.json: `cases` (ids in grid order) and what `orch submit` noted; {} before it."""
        file = self.folder / "study.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OrchError(
                f"{file} is damaged: {error}; `orch submit` with the study's grid writes it anew"
            ) from error
        if not isinstance(facts, dict):
            raise OrchError(f"{file} is damaged: not an object")
        return facts

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Replace study.json; under the study's lock."""
        write_whole(self.folder / "study.json", json.dumps(facts, indent=1) + "\n")

    def write_grid(self, text: str) -> None:
        """Keep the grid as submitted now."""
        write_whole(self.grid_file, text, durable=False)

    def file_case(self, case: Case) -> None:
        """Write case.json, unless it is there and says the same."""
        file = self.case_file(case.case_id)
        text = case.model_dump_json(indent=1) + "\n"
        try:
            if file.read_bytes() == text.encode():
                return
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text, durable=False)

    def read_case(self, case_id: str) -> Case:
        """The case as filed.

        Raises:
            OrchError: it is not there or not a case.
        """
        file = self.case_file(case_id)
        try:
            return Case.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise OrchError(f"{file} cannot be read as a case: {error}") from error

    def ordered_ids(self) -> list[str]:
        """The cases in grid order as `orch submit` last noted it; none where that is damaged."""
        try:
            return [str(case_id) for case_id in self.read_facts().get("cases", [])]
        except (OrchError, TypeError):
            return []

    def case_ids(self) -> list[str]:
        """Every case filed here, in grid order."""
        ordered = self.ordered_ids()
        known = set(ordered)
        cases = self.folder / "cases"
        filed = sorted(os.listdir(cases)) if cases.is_dir() else []
        return [*ordered, *(case_id for case_id in filed if case_id not in known)]

    def prune(self, case_id: str, reason: str) -> None:
        """Note why a case is not submitted."""
        write_whole(
            self.case_dir(case_id) / "pruned.json",
            json.dumps({"reason": reason}) + "\n",
            durable=False,
        )

    def unprune(self, case_id: str) -> None:
        """The forecast says that the case fits after all."""
        (self.case_dir(case_id) / "pruned.json").unlink(missing_ok=True)

    def pruned(self, case_id: str) -> str | None:
        """Why the case was not submitted, or None."""
        try:
            text = (self.case_dir(case_id) / "pruned.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return str(json.loads(text)["reason"])
        except (ValueError, KeyError, TypeError):
            return "the reason was not kept: pruned.json is damaged"

    def attempts(self, case_id: str) -> list[Attempt]:
        """All attempts of a case, first one first."""
        try:
            names = os.listdir(self.case_dir(case_id))
        except FileNotFoundError:
            return []
        numbers = sorted(
            int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name))
        )
        return [self._attempt(case_id, number) for number in numbers]

    def open_attempt(self, case_id: str) -> Attempt:
        """Make the folder of the next attempt; two callers at once get two different ones."""
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
    """The attempt that `Study.open_attempt` made this folder for.

    Raises:
        InputError: it has no such name.
    """
    found = _ATTEMPT.fullmatch(folder.name)
    if found is None:
        raise InputError(
            f"an attempt's folder is called attempt-1, attempt-2 …: {folder} is not"
        )
    return Attempt(folder.parent.name, int(found[1]), folder)


def finished(study: Study, case_id: str) -> Iterator[Record]:
    """The valid records of a case, latest attempt first; damaged ones are passed over."""
    for attempt in reversed(study.attempts(case_id)):
        try:
            record = attempt.read_record()
        except RecordError:
            continue
        if record is not None:
            yield record
