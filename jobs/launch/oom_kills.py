"""Counts the processes of this job that the kernel killed because host memory ran out."""

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


class OomKills:
    """A counter that starts at zero when it is made: earlier cases' kills do not count."""

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
    """The count for one line of /proc/self/cgroup: `0::/path` (v2) or `4:memory:/path` (v1)."""
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
