"""What the kernel tells of a job's memory. No torch."""

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills(
    membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS
) -> int:
    """Processes of this job's control group killed so far for want of host memory.

    0 where the kernel does not tell.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return 0
    return max((_kills_in(line, root) for line in lines), default=0)


def _kills_in(line: str, root: Path) -> int:
    """The count of one line of /proc/self/cgroup: `0::/path` (v2) or `4:memory:/path` (v1)."""
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
