"""The study's lock: one holder at a time, whoever dies and wherever it ran."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import orchestrator.study.lock as module
from orchestrator.errors import OrchError
from orchestrator.study.lock import Holder, holder_of, locked
from tests.orchestrator.sandbox import CHECKOUT, wait_until

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.study.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(file: Path, seconds: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), str(seconds)], cwd=CHECKOUT,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def foreign(file: Path) -> None:
    """A holder on another host."""
    holder = Holder("elsewhere", 1, 0.0, "2026-01-01T00:00:00+00:00", "f" * 32)
    file.write_text(json.dumps(vars(holder)))


def add_one(file: Path, counter: Path) -> None:
    for _ in range(20):
        with locked(file):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


def test_many_processes_take_turns(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    workers = [
        multiprocessing.Process(target=add_one, args=(tmp_path / "lock", counter))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "80"
    assert sorted(os.listdir(tmp_path)) == ["counter"]


def test_a_killed_holder_is_succeeded_at_once_by_just_one_of_many(
    tmp_path: Path,
) -> None:
    file, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    process = hold(file, 60)
    workers = [
        multiprocessing.Process(target=add_one, args=(file, counter)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "80"
    assert sorted(os.listdir(tmp_path)) == ["counter"]


def test_who_saw_the_death_too_late_does_not_take_the_lock_from_its_successor(
    tmp_path: Path,
) -> None:
    """Both read the dead holder's file; one of them took over before the other gets to it."""
    file = tmp_path / "lock"
    dead, first, second = (
        Holder("here", 1, 0.0, "2026-01-01T00:00:00+00:00", name * 32) for name in "def"
    )
    file.write_text(json.dumps(vars(dead)))
    for successor in (first, second):
        module._take_over(file, dead, successor)
    assert json.loads(file.read_text()) == vars(first)


def test_a_successor_waits_while_another_one_takes_over(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    dead, first, second = (
        Holder("here", 1, 0.0, "2026-01-01T00:00:00+00:00", name * 32) for name in "def"
    )
    file.write_text(json.dumps(vars(dead)))
    late = threading.Thread(target=module._take_over, args=(file, dead, second))
    with locked(file.with_name(f"lock.{dead.token[:12]}")):
        late.start()
        late.join(0.5)
        assert late.is_alive(), "it did not wait for the one that takes over"
        file.write_text(json.dumps(vars(first)))
    late.join()
    assert json.loads(file.read_text()) == vars(first)


def test_who_waits_is_told_for_whom_and_gives_up_in_the_end(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock", 60)
    told: list[Holder] = []
    with (
        pytest.raises(OrchError, match=f"process {process.pid} on .* delete the file"),
        locked(tmp_path / "lock", wait_s=0.3, on_wait=told.append),
    ):
        pytest.fail("two held it")
    assert [holder.pid for holder in told] == [process.pid]
    assert holder_of(tmp_path / "lock") == told[0]
    process.kill()
    process.communicate()
    assert holder_of(tmp_path / "lock") is None


def test_a_pid_that_now_belongs_to_another_process_holds_nothing(
    tmp_path: Path,
) -> None:
    holder = Holder(module.socket.gethostname(), os.getpid(), 1.0, "2026", "a" * 32)
    (tmp_path / "lock").write_text(json.dumps(vars(holder)))
    with locked(tmp_path / "lock", wait_s=5):
        pass


def test_a_holder_on_another_host_is_believed_while_it_touches_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.5)
    foreign(tmp_path / "lock")
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            os.utime(tmp_path / "lock")

    toucher = threading.Thread(target=live)
    toucher.start()
    try:
        with (
            pytest.raises(OrchError, match="elsewhere"),
            locked(tmp_path / "lock", wait_s=2),
        ):
            pytest.fail("it was taken from a holder that lives")
    finally:
        over.set()
        toucher.join()


def test_a_holder_on_another_host_that_stands_still_is_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.3)
    foreign(tmp_path / "lock")
    os.utime(tmp_path / "lock", (4e9, 4e9))  # its clock is years ahead of ours
    with locked(tmp_path / "lock", wait_s=5):
        assert holder_of(tmp_path / "lock") is not None
    assert os.listdir(tmp_path) == []


def test_a_holder_touches_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOUCH_S", 0.05)
    with locked(tmp_path / "lock"):
        before = (tmp_path / "lock").stat().st_mtime_ns
        wait_until(lambda: (tmp_path / "lock").stat().st_mtime_ns > before, "touched")


def test_a_holder_whose_lock_was_taken_over_does_not_remove_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        foreign(tmp_path / "lock")
    assert (tmp_path / "lock").exists()


def test_a_file_that_is_no_lock_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine!")
    with (
        pytest.raises(OrchError, match="is no lock of ours"),
        locked(tmp_path / "lock"),
    ):
        pass


def test_the_lock_is_free_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
