"""A lock that lets one command at a time change a study, on network file systems too.

The lock is a file made by `link`, which is atomic on NFS. It names its holder: host, process and
the process's start. A holder that died on this host is recognised at once. A holder touches its
file every few seconds: on another host it counts as dead once the file has not changed for a
while by this host's own clock, so clocks need not agree.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.processes import start_time, still_runs

TOUCH_S = 5.0
DEAD_AFTER_S = 45.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    started: float
    """When the process started, seconds since the epoch: tells it from a later one of that pid."""
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def locked(
    file: Path,
    *,
    wait_s: float = 600.0,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> Iterator[None]:
    """Hold the lock `file` for the length of the block.

    Args:
        wait_s: how long to wait for another holder.
        on_wait: called once, with the other holder.

    Raises:
        OrchError: another process held it for that long.
    """
    mine = Holder(
        socket.gethostname(),
        os.getpid(),
        start_time(os.getpid()) or 0.0,
        datetime.now(UTC).isoformat(timespec="seconds"),
        uuid.uuid4().hex,
    )
    _acquire(file, mine, wait_s, on_wait)
    done = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(file, done), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        done.set()
        toucher.join()
        _release(file, mine)


def holder_of(file: Path) -> Holder | None:
    """Return who holds the lock, as far as this host can tell, or None."""
    holder = _read(file)
    if holder is None or _Watch().is_dead(file, holder):
        return None
    return holder


def _acquire(
    file: Path, mine: Holder, wait_s: float, on_wait: Callable[[Holder], None]
) -> None:
    deadline = time.monotonic() + wait_s
    watch = _Watch()
    has_reported = False
    while not _create(file, mine):
        holder = _read(file)
        if holder is None:
            continue  # released just now
        if watch.is_dead(file, holder):
            _take_over(file, holder, mine)
            if _read(file) == mine:
                return
            continue
        if not has_reported:
            on_wait(holder)
            has_reported = True
        if time.monotonic() > deadline:
            raise OrchError(
                f"{file} has been held by {holder} for longer than {wait_s:.0f} s; "
                f"wait for it, or delete the file if that process is gone"
            )
        time.sleep(0.1)


class _Watch:
    """Recognises a dead holder: here by its process, elsewhere by its unchanged file."""

    def __init__(self) -> None:
        self.last_seen: tuple[str, int] | None = None
        self.since = time.monotonic()

    def is_dead(self, file: Path, holder: Holder) -> bool:
        if holder.host == socket.gethostname():
            return not still_runs(holder.pid, holder.started)
        try:
            sign = (holder.token, file.stat().st_mtime_ns)
        except FileNotFoundError:
            return False
        if sign != self.last_seen:
            self.last_seen, self.since = sign, time.monotonic()
        return time.monotonic() - self.since > DEAD_AFTER_S


def _create(file: Path, mine: Holder) -> bool:
    scratch = _scratch(file, mine)
    try:
        os.link(scratch, file)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    return True


def _scratch(file: Path, mine: Holder) -> Path:
    scratch = file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}")
    scratch.write_text(json.dumps(asdict(mine)), encoding="utf-8")
    return scratch


def _read(file: Path) -> Holder | None:
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OrchError(
            f"{file} is no lock of ours ({error}); delete it if no orch is running"
        ) from error


def _take_over(file: Path, dead: Holder, mine: Holder) -> None:
    # Whoever holds the lock named after the dead holder's token may replace its file, and only
    # while it is still the dead one's: two who noticed the death at once cannot both get it.
    with locked(file.with_name(f"{file.name}.{dead.token[:12]}")):
        if _read(file) == dead:
            _scratch(file, mine).replace(file)


def _keep_touching(file: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(file)


def _release(file: Path, mine: Holder) -> None:
    if _read(file) == mine:
        file.unlink(missing_ok=True)
