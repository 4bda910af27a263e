"""The two small programs around `jobs.launch` in a local job (see `orchestrator.local.runner`).

python -m orchestrator.local.job start JOB.json               hand it to submitit
python -m orchestrator.local.job turn JOB.json [CUDA_DEVICES] wait for the machine, run it
"""

import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.checkout import checkout
from orchestrator.local.runner import CONTROLLER, TURN, Life, with_checkout
from orchestrator.processes import start_time
from orchestrator.study.files import write_whole

_UNLIMITED_MIN = 60 * 24 * 365  # submitit's own limit of a local job is two minutes
_ALL_DEVICES = "all"


def machine_lock() -> Path:
    """The file whose lock is held by the one local job that may measure on this machine.

    It is on the machine's own disk and the same for every study, checkout and terminal of the
    user, whatever TMPDIR says.
    """
    given = os.environ.get("ORCH_MACHINE_LOCK")
    if given:
        return Path(given)
    return Path("/tmp") / f"orch-{os.getuid()}" / "measuring.lock"


def start(job: Path) -> None:
    """Hand `turn` to submitit's local executor, and note its controller."""
    import submitit
    from submitit.helpers import CommandFunction

    # submitit shows a local job no GPU unless told; `turn` puts back what there was.
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", _ALL_DEVICES)
    command = [
        sys.executable, "-m", "orchestrator.local.job", "turn", str(job), devices,
    ]  # fmt: skip
    executor = submitit.LocalExecutor(job.parent)
    executor.update_parameters(timeout_min=_UNLIMITED_MIN)
    submitted = executor.submit(CommandFunction(command, cwd=checkout()))
    _note(job.parent / CONTROLLER, int(submitted.job_id), "running")


def turn(job: Path, devices: str) -> None:
    """Wait until no other local job measures, then become `jobs.launch`."""
    _note(job.parent / TURN, os.getpid(), "waiting")
    _take_machine(job)
    _note(job.parent / TURN, os.getpid(), "running")
    environment = with_checkout(os.environ)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if devices != _ALL_DEVICES:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    launch = [sys.executable, "-m", "jobs.launch", str(job)]
    os.execve(sys.executable, launch, environment)


def _take_machine(job: Path) -> None:
    file = machine_lock()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        behind = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
        _note(job.parent / TURN, os.getpid(), "waiting", behind or "another local job")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"the local job {job.parent}\n".encode(), 0)
    # Held by this process across exec, and set free by the kernel however it ends.
    os.set_inheritable(descriptor, True)


def _note(file: Path, pid: int, state: str, behind: str = "") -> None:
    life = Life(
        socket.gethostname(), pid, start_time(pid) or 0.0, state, time.time(), behind
    )
    write_whole(file, json.dumps(asdict(life)) + "\n", durable=False)


def main(arguments: list[str]) -> None:
    """Run one of the two."""
    match arguments:
        case ["start", job]:
            start(Path(job))
        case ["turn", job, devices]:
            turn(Path(job), devices)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
