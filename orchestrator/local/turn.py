"""A local job waits for its turn on the machine, then becomes `jobs.launch`.

python -m orchestrator.local.turn JOB.json
"""

import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.files import write_whole
from orchestrator.local.runner import TURN, Turn
from orchestrator.processes import start_time


def machine_lock() -> Path:
    """Return the file whose lock is held by the one local job that may measure on this machine.

    It is on the machine's own disk and the same for every study, checkout and terminal of the
    user, whatever TMPDIR says.
    """
    given = os.environ.get("ORCH_MACHINE_LOCK")
    if given:
        return Path(given)
    return Path("/tmp") / f"orch-{os.getuid()}" / "measuring.lock"


def main(job: Path) -> None:
    """Wait until no other local job measures, then run this one."""
    _note(job.parent, "waiting")
    _lock_machine(job.parent)
    _note(job.parent, "running")
    os.execv(sys.executable, [sys.executable, "-m", "jobs.launch", str(job)])


def _lock_machine(folder: Path) -> None:
    file = machine_lock()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        behind = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
        _note(folder, "waiting", behind or "another local job")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"the local job {folder}\n".encode(), 0)
    # Held by this process across exec, and released by the kernel however it ends.
    os.set_inheritable(descriptor, True)


def _note(folder: Path, state: str, behind: str = "") -> None:
    pid = os.getpid()
    turn = Turn(
        socket.gethostname(), pid, start_time(pid) or 0.0, state, time.time(), behind
    )
    write_whole(folder / TURN, json.dumps(asdict(turn)) + "\n", durable=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
