"""What the system notes during an attempt: in the job's log, and kills for want of memory."""

import os
from datetime import datetime
from pathlib import Path

_MAX_BYTES = 1 << 20
_CGROUPS = Path("/sys/fs/cgroup")


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
        """Return what was added, at most its last MiB."""
        try:
            end = self._size()
            with self._file.open("rb") as stream:
                stream.seek(max(self._start, end - _MAX_BYTES))
                added = stream.read(_MAX_BYTES) if end else b""
        except OSError:
            return ""
        return os.fsdecode(added)


class OomKills:
    """Counts this job's processes that the kernel kills for want of memory, from now on."""

    def __init__(
        self, membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS
    ) -> None:
        self._membership = membership
        self._root = root
        self._before = self._count()

    def since_start(self) -> int:
        """Kills since the counter was made; 0 where the kernel does not tell."""
        return self._count() - self._before

    def _count(self) -> int:
        try:
            lines = self._membership.read_text().splitlines()
        except OSError:
            return 0
        return max((_kills_of_group(line, self._root) for line in lines), default=0)


def _kills_of_group(line: str, root: Path) -> int:
    """Return the count for a line of /proc/self/cgroup: `0::/path` (v2), `4:memory:/path` (v1)."""
    _, controllers, path = line.split(":", 2)
    if controllers == "":
        file = root / path.lstrip("/") / "memory.events"
    elif "memory" in controllers.split(","):
        file = root / "memory" / path.lstrip("/") / "memory.oom_control"
    else:
        return 0
    try:
        counts = dict(row.split() for row in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts.get("oom_kill", 0))
