"""The log of this job: what the supervisor writes to it, and what Slurm wrote to it."""

import os
from datetime import datetime
from pathlib import Path

_MAX_BYTES = 1 << 20


def log(line: str) -> None:
    """Print a line with the time before it."""
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


class JobLog:
    """The part of the job's log that is written from now on.

    Slurm writes there why it ends a job. A requeued job appends to the log of its earlier run,
    whose end must not be taken for this one's.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._file = Path(f"/proc/self/fd/{descriptor}")
        self._start = self._size()

    def _size(self) -> int:
        """Its size in bytes; 0 if it is a terminal or a pipe, which cannot be read again."""
        return self._file.stat().st_size if self._file.is_file() else 0

    def since_start(self) -> str:
        """What was added, at most its last MiB."""
        try:
            end = self._size()
            with self._file.open("rb") as stream:
                stream.seek(max(self._start, end - _MAX_BYTES))
                added = stream.read(_MAX_BYTES) if end else b""
        except OSError:
            return ""
        return os.fsdecode(added)
