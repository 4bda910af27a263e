"""Starts worker processes, watches them, and ends them with everything they started.

Ranks live in sessions of their own, so no process group holds them all. Instead this process
adopts every orphan among its descendants (it is a Linux subreaper), and ends descendants until
none is left. If this process itself is killed, the kernel sends SIGTERM to its first child.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

import psutil

from jobs.launch.signals import Signals
from orchestrator.errors import InputError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Times in seconds. A variable of the job overrides each: `ORCH_STALL_S` for `stall_s`.

    A cluster profile sets such variables under `environment`.
    """

    stall_s: float = 900
    """Without progress on any rank, before the workers are ended."""
    collective_s: float = 600
    """For the other ranks, within one collective."""
    grace_s: float = 5
    """Between SIGTERM and SIGKILL."""
    disk_s: float = 120
    """For a full or read-only disk to take the record."""
    heartbeat_s: float = 5
    """Between two heartbeats."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the overrides.

        Raises:
            InputError: one of them is not a positive number.
        """
        given = {}
        for each in fields(cls):
            variable = f"ORCH_{each.name.upper()}"
            if variable in environment:
                given[each.name] = _seconds(variable, environment[variable])
        return cls(**given)


def _seconds(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(
            f"{variable} must be a positive number of seconds, got {text!r}; "
            f"unset it to use the default"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What to run, and when to end it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    """The working directory."""
    log: Path
    """Their output is appended to it."""
    timeout_s: float | None = None
    """Time limit of the case, if it has one."""
    limits: Limits
    progress: Callable[[], object] = field(default=lambda: None)
    """Returns a value that changes as long as they make progress."""
    on_heartbeat: Callable[[], None] = field(default=lambda: None)
    """Called every `limits.heartbeat_s`."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the workers ended."""

    exit_code: int
    """Negative for a signal, as in `subprocess`."""
    elapsed_s: float
    timed_out: bool = False
    stalled: bool = False
    survivors: int = 0
    """Processes that even SIGKILL did not end, because they hang in the kernel."""


def run_workers(workers: Workers, signals: Signals) -> Ending:
    """Run the workers until they exit, or a limit or a signal ends them. Leave none behind.

    Raises:
        OSError: the command cannot be started, or its log cannot be opened.
    """
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.monotonic()
    process = _start(workers, signals)
    try:
        reason = _watch(process, workers, signals, start)
    finally:
        survivors = end_descendants(process, workers.limits.grace_s)
    return Ending(
        exit_code=process.wait() if process.poll() is not None else -signal.SIGKILL,
        elapsed_s=time.monotonic() - start,
        timed_out=reason == "timeout",
        stalled=reason == "stall",
        survivors=survivors,
    )


def _start(workers: Workers, signals: Signals) -> subprocess.Popen[bytes]:
    def in_child() -> None:
        signals.unblock()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    with workers.log.open("ab") as log:
        return subprocess.Popen(
            workers.command,
            env=dict(workers.environment),
            cwd=workers.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=in_child,  # this process has one thread, so nothing can deadlock
        )


def _watch(
    process: subprocess.Popen[bytes], workers: Workers, signals: Signals, start: float
) -> str:
    """Wait until the workers exit or must be ended.

    Returns:
        `signal`, `timeout` or `stall` if they must be ended, "" if they exited.
    """
    seen, seen_at = workers.progress(), start
    next_heartbeat = start
    deadline = start + (workers.timeout_s or float("inf"))
    while process.poll() is None:
        now = time.monotonic()
        if signals.received is not None:
            return "signal"
        if now >= deadline:
            return "timeout"
        if now >= next_heartbeat:
            workers.on_heartbeat()
            next_heartbeat = now + workers.limits.heartbeat_s
        progress = workers.progress()
        if progress != seen:
            seen, seen_at = progress, now
        elif now - seen_at >= workers.limits.stall_s:
            return "stall"
        signals.wait(
            min(next_heartbeat, deadline, seen_at + workers.limits.stall_s) - now
        )
    return ""


def end_descendants(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Send SIGTERM, then SIGKILL, to every descendant. Return how many survive even that."""
    asked: set[int] = set()
    until = time.monotonic() + grace_s
    while alive := _living(process):
        if time.monotonic() >= until:
            break
        for each in alive:
            if each.pid not in asked:
                asked.add(each.pid)
                _send(each, signal.SIGTERM)
        time.sleep(0.05)
    until = time.monotonic() + 10
    while alive and time.monotonic() < until:
        for each in alive:
            _send(each, signal.SIGKILL)
        time.sleep(0.05)
        alive = _living(process)
    return len(alive)


def _living(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    living = []
    for child in psutil.Process().children(recursive=True):
        if child.pid == process.pid:
            if process.poll() is None:
                living.append(child)
        elif not _reaped(child):
            living.append(child)
    return living


def _reaped(child: psutil.Process) -> bool:
    """Return whether the process is dead. Reaps it if this process has adopted it."""
    try:
        if child.status() != psutil.STATUS_ZOMBIE:
            return False
        os.waitpid(child.pid, os.WNOHANG)
    except psutil.NoSuchProcess:
        return True
    except ChildProcessError:
        return True  # its own parent reaps it, or its death hands it to us
    return True


def _send(process: psutil.Process, which: signal.Signals) -> None:
    try:
        process.send_signal(which)
    except psutil.NoSuchProcess:
        return
