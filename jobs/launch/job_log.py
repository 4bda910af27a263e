"""What Slurm wrote into this job's own log since the job began: why it ends it."""

import os
from pathlib import Path

_LONGEST = 1 << 20


class JobLog:
    """The file that this process's standard error goes to, from here on.

    A requeued job adds to the log of its earlier run, which says how that one ended.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._file = Path(f"/proc/self/fd/{descriptor}")
        self._start = self._size()

    def _size(self) -> int:
        """0 where it is no file that can be read again: a terminal, a pipe."""
        return self._file.stat().st_size if self._file.is_file() else 0

    def since_start(self) -> str:
        """What was added, its end where that is long."""
        try:
            end = self._size()
            with self._file.open("rb") as stream:
                stream.seek(max(self._start, end - _LONGEST))
                added = stream.read(_LONGEST) if end else b""
        except OSError:
            return ""
        return os.fsdecode(added)
