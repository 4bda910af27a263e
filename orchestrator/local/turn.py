"""A local job waits for its turn on the machine, then becomes `jobs.launch`.

python -m orchestrator.local.turn JOB.json
"""

import fcntl
import json
import os
import socket
import stat
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import InputError
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
    descriptor = open_lock(machine_lock())
    _note(job.parent, "waiting")
    _lock_machine(descriptor, job.parent)
    _note(job.parent, "running")
    os.execv(sys.executable, [sys.executable, "-m", "jobs.launch", str(job)])


def open_lock(file: Path) -> int:
    """Open the lock file, and make it if there is none. Return its descriptor.

    Raises:
        InputError: another user can change what its name stands for.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = file.parent.lstat()
    # The folder's name can be guessed: whoever made it first could link any file of ours to it.
    is_ours = stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.getuid()
    if not is_ours or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"{file.parent} must be a folder that belongs to you and that only you can write to, "
            f"got owner {folder.st_uid} and mode {stat.filemode(folder.st_mode)}; remove it, or "
            f"name a lock file elsewhere in ORCH_MACHINE_LOCK"
        )
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(
            f"{file} must be a plain file: {error.strerror}; remove it, or name another in "
            f"ORCH_MACHINE_LOCK"
        ) from error


def _lock_machine(descriptor: int, folder: Path) -> None:
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
    try:
        main(Path(sys.argv[1]))
    except InputError as error:
        sys.exit(f"orch: {error}")
