"""Getting a record into its attempt's folder while the disk may be full or read-only."""

from jobs.filing import try_to_file
from jobs.launch.job_log import log
from jobs.launch.signals import Signals
from orchestrator.record import Record
from orchestrator.study.files import Attempt

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


def deliver(
    record: Record, attempt: Attempt, patience_s: float, signals: Signals
) -> bool:
    """File the record, retrying for up to `patience_s`. Return whether it was filed.

    A signal to end stops the retries. A record that is already there stays.
    """
    waited_s = 0.0
    pauses = iter(_PAUSES_S)
    while (problem := try_to_file(record, attempt)) is not None:
        log(f"{attempt.record_file} cannot be written: {problem}")
        if waited_s >= patience_s or signals.received is not None:
            return False
        pause_s = min(next(pauses, _PAUSES_S[-1]), patience_s - waited_s)
        signals.sleep(pause_s)
        waited_s += pause_s
    return True
