"""Files a record in its attempt's folder, and saves it when that cannot be written."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.files import write_whole
from orchestrator.record import Record, RecordError, read_record
from orchestrator.study.files import Attempt

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


def file_or_keep(
    record: Record, attempt: Attempt, folder: Path | None, patience_s: float = 120
) -> bool:
    """File the record, or keep it in `folder` for `kept_record`. Return whether it was filed.

    Where `folder` cannot be written either, print the record and retry both.
    """
    problem = _try_to_file(record, attempt)
    if problem is None:
        return True
    print(f"the record cannot be written yet: {problem}", flush=True)
    if _keep(record, attempt, folder):
        return False
    print_record(record)
    until = time.monotonic() + patience_s
    while folder is not None and time.monotonic() < until:
        time.sleep(min(2.0, patience_s))
        if _try_to_file(record, attempt) is None:
            return True
        if _keep(record, attempt, folder):
            return False
    return False


def deliver(
    record: Record, attempt: Attempt, patience_s: float, sleep: Callable[[float], bool]
) -> bool:
    """File the record, retrying for up to `patience_s`. Return whether it was filed.

    Args:
        sleep: sleeps for some seconds; returns False if there is no time for another try.
    """
    waited_s = 0.0
    pauses = iter(_PAUSES_S)
    while (problem := _try_to_file(record, attempt)) is not None:
        print(f"{attempt.record_file} cannot be written: {problem}", flush=True)
        pause_s = min(next(pauses, _PAUSES_S[-1]), patience_s - waited_s)
        if pause_s <= 0 or not sleep(pause_s):
            return False
        waited_s += pause_s
    return True


def _try_to_file(record: Record, attempt: Attempt) -> OSError | None:
    """Write the record unless the attempt has one. Return the error that prevented it, if any."""
    try:
        attempt.write_record(record)
    except FileExistsError:
        return None
    except OSError as error:
        return error
    return None


def _keep(record: Record, attempt: Attempt, folder: Path | None) -> bool:
    if folder is None:
        return False
    try:
        write_whole(folder / attempt.record_file.name, record.model_dump_json())
    except OSError:
        return False
    return True


def kept_record(folder: Path, attempt: Attempt) -> Record | None:
    """Return the record that rank 0 kept in `folder`, or None."""
    file = folder / attempt.record_file.name
    try:
        return read_record(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, RecordError):
        return None


def print_record(record: Record) -> None:
    """Print the record as one line, from which a person can restore the file."""
    name = f"{record.case.case_id} attempt {record.attempt}"
    with contextlib.suppress(OSError):  # stdout may be on the same full disk
        sys.stdout.write(f"orch: record of {name}: {record.model_dump_json()}\n")
        sys.stdout.flush()
