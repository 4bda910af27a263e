"""How a record gets into its attempt's folder, or, where that cannot be written, is not lost."""

import contextlib
import sys
import time
from pathlib import Path

from jobs.launch.signals import Signals
from orchestrator.record import Record, RecordError, read_record
from orchestrator.study.files import Attempt, write_whole

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


def file_or_keep(
    record: Record, attempt: Attempt, folder: Path | None, patience_s: float = 120
) -> bool:
    """File the record; where that fails keep it in `folder`, for `kept`; whether it was filed.

    What cannot be kept there either goes to the standard output, and both are tried again.
    """
    problem = _file(record, attempt)
    if problem is None:
        return True
    print(f"the record cannot be written yet: {problem}", flush=True)
    if _keep(record, attempt, folder):
        return False
    print_record(record)
    until = time.monotonic() + patience_s
    while folder is not None and time.monotonic() < until:
        time.sleep(min(2.0, patience_s))
        if _file(record, attempt) is None:
            return True
        if _keep(record, attempt, folder):
            return False
    return False


def _keep(record: Record, attempt: Attempt, folder: Path | None) -> bool:
    if folder is None:
        return False
    try:
        write_whole(folder / attempt.record_file.name, record.model_dump_json())
    except OSError:
        return False
    return True


def kept(folder: Path, attempt: Attempt) -> Record | None:
    """The record that a rank kept in `folder`, or None."""
    file = folder / attempt.record_file.name
    try:
        return read_record(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, RecordError):
        return None


def deliver(
    record: Record, attempt: Attempt, patience_s: float, signals: Signals
) -> bool:
    """File the record, trying for a while where the disk is full or read-only; whether filed.

    A request to end allows no further try. A record that is there already stays.
    """
    waited_s = 0.0
    pauses = iter(_PAUSES_S)
    while (problem := _file(record, attempt)) is not None:
        print(f"{attempt.record_file} cannot be written: {problem}", flush=True)
        if waited_s >= patience_s or signals.received is not None:
            return False
        pause_s = min(next(pauses, _PAUSES_S[-1]), patience_s - waited_s)
        signals.rest(pause_s)
        waited_s += pause_s
    return True


def _file(record: Record, attempt: Attempt) -> OSError | None:
    """Write the record unless there is one; what stood in the way."""
    try:
        attempt.write_record(record)
    except FileExistsError:
        return None
    except OSError as error:
        return error
    return None


def print_record(record: Record) -> None:
    """The record as one line of text, for a person to put where it belongs."""
    name = f"{record.case.case_id} attempt {record.attempt}"
    with contextlib.suppress(OSError):  # a full disk takes no line either
        sys.stdout.write(f"orch: record of {name}: {record.model_dump_json()}\n")
        sys.stdout.flush()
