"""The local runner: one job at a time on a machine, which outlives terminals and killed parents."""

import json
import os
import pty
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.clusters.cluster import load_cluster
from orchestrator.errors import InputError
from orchestrator.local.runner import TURN, LocalRunner
from orchestrator.local.turn import open_lock
from orchestrator.processes import start_time, still_runs
from orchestrator.study.files import Study
from orchestrator.study.ledger import Submission, read_ledger
from tests.orchestrator.made import a_case
from tests.orchestrator.sandbox import Sandbox, wait_until


def statuses(sandbox: Sandbox, study: str = "quick") -> list[str]:
    rows = json.loads(sandbox.orch("status", "--json", "--study", study).stdout)
    return [row["status"] for row in rows]


def job_processes(sandbox: Sandbox) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(str(sandbox.root) in word for word in words) and "jobs.launch" in words:
            found.append(process)
    return found


def close_terminal(command: list[str], sandbox: Sandbox, ready: str) -> int:
    """Run the command in a terminal of its own and close it once it printed `ready`."""
    leader, terminal = pty.fork()
    if leader == 0:
        os.chdir(sandbox.root)
        os.execve(command[0], command, sandbox.environ(QUICK_CASE_S="1"))
    said = b""
    while ready.encode() not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)  # the kernel hangs up on everything in the foreground
    return os.waitpid(leader, 0)[1]


def test_a_job_survives_the_closing_of_its_terminal(sandbox: Sandbox) -> None:
    line = " ".join(sandbox.command("submit", "--grid", str(sandbox.grid)))
    script = f"{line} && echo sub''mitted && sleep 1000"
    status = close_terminal(["/bin/sh", "-c", script], sandbox, "submitted")
    assert os.WIFSIGNALED(status), (
        "closing the terminal ended nothing: it proves nothing"
    )
    assert os.WTERMSIG(status) == signal.SIGHUP
    wait_until(lambda: len(sandbox.records()) == 4, "all cases have their records")
    assert len(sandbox.starts()) == 4


def test_ctrl_c_ends_the_waiting_and_not_the_job(sandbox: Sandbox) -> None:
    process = subprocess.Popen(
        sandbox.command("submit", "--grid", str(sandbox.grid), "--wait"), cwd=sandbox.root,
        env=sandbox.environ(QUICK_CASE_S="1"), stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: sandbox.starts() or process.poll() is not None, "it runs")
    assert process.poll() is None, process.communicate()[1].decode()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "the jobs go on" in said
    wait_until(lambda: len(sandbox.records()) == 4, "all cases have their records")


def test_two_jobs_never_measure_at_once(sandbox: Sandbox) -> None:
    assert sandbox.submit("--study", "one", QUICK_CASE_S="300").returncode == 0
    wait_until(lambda: sandbox.starts("one"), "the first job runs")
    assert sandbox.submit("--study", "two").returncode == 0

    def waits() -> bool:
        rows = json.loads(sandbox.orch("status", "--json", "--study", "two").stdout)
        assert {row["status"] for row in rows} == {"pending"}
        return all("waits for the local job" in row["evidence"][0] for row in rows)

    wait_until(waits, "the second job says what it waits for")
    assert sandbox.starts("two") == []
    (launch,) = job_processes(sandbox)
    launch.kill()
    ended = time.time()
    wait_until(lambda: len(sandbox.records("two")) == 4, "the second job is through")
    assert min(float(line.split()[0]) for line in sandbox.runs("two")) > ended


@pytest.mark.parametrize(("given", "seen"), [(None, "unset"), ("0,1", "0,1"), ("", "")])
def test_a_job_sees_the_gpus_that_submit_saw(
    sandbox: Sandbox, given: str | None, seen: str
) -> None:
    more = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert sandbox.submit("--wait", **more).returncode == 0
    lines = [line.split(" ") for line in sandbox.runs() if " done " not in line]
    assert {line[2] for line in lines} == {seen}


def test_a_killed_job_is_lost_and_submit_makes_it_good(sandbox: Sandbox) -> None:
    sandbox.submit(QUICK_CASE_S="30")
    wait_until(lambda: len(sandbox.starts()) == 1, "the first case runs")
    assert statuses(sandbox) == ["running", "pending", "pending", "pending"]
    (launch,) = job_processes(sandbox)
    launch.kill()
    wait_until(lambda: statuses(sandbox) == ["lost"] * 4, "it is known to be lost")
    said = sandbox.orch("status").stdout
    assert "its process is gone: killed, or this machine was restarted" in said
    assert "`orch submit` with the same grid runs it again" in said
    again = sandbox.submit("--wait", QUICK_CASE_S="0")
    assert again.returncode == 0, again.stderr
    assert statuses(sandbox) == ["ok"] * 4
    assert sorted(path.parent.name for path in sandbox.records()) == (
        ["attempt-1"] * 3 + ["attempt-2"]
    )


def test_the_job_ends_when_it_is_cancelled(sandbox: Sandbox) -> None:
    sandbox.submit(QUICK_CASE_S="30")
    wait_until(lambda: len(sandbox.starts()) == 1, "the first case runs")
    study = Study(sandbox.results / "quick")
    (job,) = os.listdir(study.jobs_dir)
    runner = LocalRunner(load_cluster("local"))
    jobs = read_ledger(study.ledger_file).submissions
    assert runner.states(study, jobs)[job].state == "running"
    runner.cancel(study, [job])
    wait_until(lambda: runner.states(study, jobs)[job].state == "ended", "it ended")
    assert job_processes(sandbox) == []


JOBS = {"key": Submission("key", "local", "local", "here", "now", ())}


def note_turn(folder: Path, **changes: object) -> None:
    turn = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid()),
        "state": "running", "since": time.time(), "behind": "",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TURN).write_text(json.dumps(turn | changes))


def test_a_later_process_of_the_same_number_is_not_the_job(tmp_path: Path) -> None:
    study, runner = Study(tmp_path), LocalRunner(load_cluster("local"))
    note_turn(study.job_dir("key"))
    assert runner.states(study, JOBS)["key"].state == "running"
    note_turn(study.job_dir("key"), started=(start_time(os.getpid()) or 0) - 3600)
    assert runner.states(study, JOBS)["key"].state == "ended"


def test_of_a_job_on_another_machine_nothing_is_concluded(tmp_path: Path) -> None:
    study, runner = Study(tmp_path), LocalRunner(load_cluster("local"))
    note_turn(study.job_dir("key"), host="elsewhere", pid=1)
    state = runner.states(study, JOBS)["key"]
    assert state.state == "unknown"
    assert "elsewhere" in state.reason


def test_all_cases_go_into_one_job_with_the_profile_s_time_limit() -> None:
    runner = LocalRunner(load_cluster("local"))
    cases = [a_case(gpus=gpus) for gpus in (1, 2)]
    (batch,) = runner.batches(cases)
    assert batch.jobs == (tuple(cases),)
    assert runner.batches([]) == []
    assert batch.timeout_s == load_cluster("local").case_time_s


def test_a_lock_is_not_opened_where_another_user_can_change_what_it_is(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "precious"
    victim.write_text("mine")
    for name in ("linked", "open", "theirs"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "linked" / "lock").symlink_to(victim)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for folder in ("linked", "open", "link"):
        with pytest.raises(InputError, match="ORCH_MACHINE_LOCK"):
            open_lock(tmp_path / folder / "lock")
    if os.getuid() == 0:
        os.chown(tmp_path / "theirs", 12345, -1)
        with pytest.raises(InputError, match="owner 12345"):
            open_lock(tmp_path / "theirs" / "lock")
    assert victim.read_text() == "mine"
    os.close(open_lock(tmp_path / "new" / "lock"))


def test_a_lock_that_cannot_be_had_refuses_the_submit(sandbox: Sandbox) -> None:
    lock = sandbox.root / "locks" / "lock"
    lock.parent.mkdir(mode=0o777)
    lock.parent.chmod(0o777)
    run = sandbox.submit(ORCH_MACHINE_LOCK=str(lock))
    assert run.returncode == 1
    assert "the local job did not start" in run.stderr
    assert "only you can write to" in run.stderr
    assert set(statuses(sandbox)) == {"new"}


def test_a_process_is_known_by_its_number_and_start() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    assert started is not None
    assert still_runs(child.pid, started)
    assert not still_runs(child.pid, started - 60)
    child.kill()
    wait_until(lambda: not still_runs(child.pid, started), "a zombie runs no more")
    child.wait()
    assert start_time(child.pid) is None
