"""Real processes, started, watched and ended. Each supervisor is a process of its own, because it
ends everything below it."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

SUPERVISOR = """
import dataclasses, json, sys
from pathlib import Path
from jobs.launch.signals import Signals
from jobs.launch.workers import Limits, Workers, run_workers

folder, options, *command = sys.argv[1:]
folder, options = Path(folder), json.loads(options)
progress = folder / "progress"
with Signals() as signals:
    ending = run_workers(
        Workers(
            command=command, environment={"PATH": "/usr/bin:/bin"}, folder=folder,
            log=folder / "log", on_heartbeat=lambda: (folder / "beat").touch(),
            progress=lambda: progress.read_text() if progress.exists() else "",
            timeout_s=options.pop("timeout_s", None),
            limits=Limits(**({"stall_s": 60, "grace_s": 0.5, "heartbeat_s": 0.1} | options)),
        ),
        signals,
    )
    received = signals.received
print(json.dumps(dataclasses.asdict(ending) | {"received": received}))
"""


def supervise(folder: Path, script: str, **options: Any) -> "subprocess.Popen[str]":
    (folder / "worker.py").write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder), json.dumps(options),
         sys.executable, "worker.py"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ending_of(supervisor: "subprocess.Popen[str]") -> dict[str, Any]:
    try:
        text, _ = supervisor.communicate(timeout=60)
    finally:
        supervisor.kill()  # nothing, where it ended
    ending = json.loads(text)
    assert isinstance(ending, dict)
    return ending


def wait_for(folder: Path, name: str) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        file = folder / name
        if file.exists() and file.read_text():
            return file.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{name} never came")


def ended_within(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


FAMILY = """
    import os, time

    def sleeper():
        pid = os.fork()
        if pid == 0:
            os.setsid()
            time.sleep(600)
        return pid

    def orphan():
        # In a session of its own, its parent gone: what a rank may leave behind.
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, str(sleeper()).encode())
            os._exit(0)
        os.wait()
        return int(os.read(read, 20))

    pids = os.getpid(), orphan(), sleeper()
    with open("pids.new", "w") as f:
        f.write(" ".join(map(str, pids)))
    os.rename("pids.new", "pids")
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """A folder whose processes are ended after the test, should it fail."""
    yield tmp_path
    if (tmp_path / "pids").exists():
        for pid in map(int, (tmp_path / "pids").read_text().split()):
            if is_running(pid):
                psutil.Process(pid).kill()


def test_output_and_exit_code_of_workers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    ending = ending_of(supervise(tmp_path, script))
    assert ending["exit_code"] == 7
    assert not any(ending[name] for name in ("timed_out", "stalled", "received"))
    assert sorted((tmp_path / "log").read_text().split()) == ["before", "err", "out"]
    assert (tmp_path / "beat").exists()


def test_a_signal_that_ends_workers_is_their_exit_code(tmp_path: Path) -> None:
    ending = ending_of(supervise(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert ending["exit_code"] == -signal.SIGKILL


def test_what_workers_leave_behind_is_ended(family: Path) -> None:
    ending = ending_of(supervise(family, FAMILY))
    assert (ending["exit_code"], ending["survivors"]) == (0, 0)
    pids = [int(pid) for pid in (family / "pids").read_text().split()]
    assert len(pids) == 3
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_end_ends_every_descendant(
    family: Path, which: signal.Signals
) -> None:
    supervisor = supervise(family, FAMILY + "    time.sleep(600)\n")
    pids = [int(pid) for pid in wait_for(family, "pids").split()]
    supervisor.send_signal(which)
    ending = ending_of(supervisor)
    assert ending["received"] == which
    assert not any(map(is_running, pids))


def test_a_killed_supervisor_takes_its_worker_along(family: Path) -> None:
    supervisor = supervise(family, FAMILY + "    time.sleep(600)\n")
    first = int(wait_for(family, "pids").split()[0])
    supervisor.kill()
    supervisor.communicate()
    assert ended_within([first], 20)


def test_workers_that_ignore_the_request_are_killed(family: Path) -> None:
    script = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("pids", "w").write(str(os.getpid()))
        time.sleep(600)
    """
    ending = ending_of(supervise(family, script, timeout_s=1))
    assert ending["timed_out"]
    assert ending["exit_code"] == -signal.SIGKILL
    assert not is_running(int((family / "pids").read_text()))


def test_workers_that_get_on_may_take_longer_than_the_stall_limit(
    tmp_path: Path,
) -> None:
    script = """
        import time
        for step in range(12):
            open("progress", "w").write(str(step))
            time.sleep(0.2)
    """
    ending = ending_of(supervise(tmp_path, script, stall_s=1.5))
    assert not ending["stalled"]
    assert ending["exit_code"] == 0


def test_workers_that_stand_still_are_ended(tmp_path: Path) -> None:
    ending = ending_of(supervise(tmp_path, "import time; time.sleep(600)", stall_s=1))
    assert ending["stalled"]
    assert not ending["timed_out"]


def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path) -> None:
    script = """
        import os, signal, subprocess, sys
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    """
    (tmp_path / "nohup.py").write_text(textwrap.dedent(script))
    (tmp_path / "worker.py").write_text(
        "open('pids', 'w').write('x')\nimport time; time.sleep(3)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, tmp_path / "nohup.py", "-c", SUPERVISOR, tmp_path, "{}",
         sys.executable, "worker.py"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path, "pids")
    supervisor.send_signal(signal.SIGHUP)
    ending = ending_of(supervisor)
    assert (ending["received"], ending["exit_code"]) == (None, 0)


WAITER = """
import time
from jobs.launch.signals import Signals

with Signals() as signals:
    end = time.monotonic() + 2
    print("waits", flush=True)
    while time.monotonic() < end:
        signals.wait(0.2)
    print(signals.received)
"""


def test_a_suspended_supervisor_goes_on_as_if_nothing_had_been() -> None:
    """Ctrl-Z and fg, or gang scheduling: stopped for longer than it wanted to wait."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER], cwd=CHECKOUT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    for _ in range(2):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=60)
    assert (said, errors, process.returncode) == ("None\n", "", 0)
