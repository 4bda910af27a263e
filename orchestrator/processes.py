"""Whether a process of this machine still runs, and is not a later one with the same number."""

import psutil

_SLACK_S = (
    2.0  # the kernel's boot time, which start times are counted from, is adjusted
)


def start_time(pid: int) -> float | None:
    """When the process started, in seconds since the epoch; None if there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def still_runs(pid: int, started: float) -> bool:
    """Return whether process `pid` runs and is the one that started then."""
    found = start_time(pid)
    return found is not None and abs(found - started) <= _SLACK_S


def is_running(*arguments: str) -> bool:
    """Return whether some process of this machine was started with all these arguments."""
    return any(
        set(arguments) <= set(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline"])
    )
