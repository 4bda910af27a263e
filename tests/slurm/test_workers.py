"""Real workers on a real Slurm: torchrun on one node and on two, and what can kill them.

Each of these loads torch a few times, so there are few of them, and each shows several things.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import demand_slurm
from virtual_slurm import VirtualSlurm

CHECKOUT = Path(__file__).resolve().parents[2]
PROFILE = Path(__file__).with_name("virtual.yaml")
GRID: dict[str, Any] = {
    "study": "work",
    "models": {
        "toy": {
            "random": {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2,
                       "ffn_dim": 96, "vocab_size": 128}
        }
    },
    "fixed": {"model": "toy", "dtype": "float32", "batch_size": 2, "prompt_tokens": 8,
              "new_tokens": 6, "warmup": 0, "repeats": 1},
}  # fmt: skip
ENDLESS = {"strategy": "tensor", "gpus": 2, "repeats": 100_000}


ACCOUNTING = [
    pytest.param(True, id="with_accounting"),
    pytest.param(False, id="without_accounting"),
]


class Desk:
    """`orch` of this checkout, with results and a profile of its own."""

    def __init__(self, slurm: VirtualSlurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self.study = folder / "results/work"

    def submit(self, include: list[Any], *more: str, **profile: Any) -> None:
        grid, site = self.folder / "grid.yaml", self.folder / "site.yaml"
        site.write_text(yaml.safe_dump({"extends": str(PROFILE)} | profile))
        grid.write_text(
            yaml.safe_dump(GRID | {"include": include, "cluster": str(site)})
        )
        self.orch("submit", "--grid", str(grid), *more)

    def orch(self, *arguments: str) -> str:
        environment = self.slurm.environment | {
            "ORCH_RESULTS": str(self.study.parent),
            "PYTHONPATH": str(CHECKOUT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env=environment, cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.orch("status", "--json"))
        return rows

    def drained(self, timeout: float = 300) -> None:
        """Wait until no job is left."""

        def is_empty() -> bool:
            return not self.slurm.command("squeue", "-h").strip()

        self.slurm.wait(is_empty, "the queue to be empty", timeout)

    def workers(self, program: str = "jobs.bench") -> list[psutil.Process]:
        """The running processes of this desk's jobs that run a module."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            mine = any(str(self.folder) in word for word in words)
            pairs = itertools.pairwise(words)
            if mine and ("-m", program) in pairs and "python" in words[0]:
                found.append(process)
        return found

    def has(self, ranks: int) -> Callable[[], bool]:
        return lambda: len(self.workers()) == ranks

    def leavings(self) -> list[list[str]]:
        """Command lines of what is still there of this desk's jobs."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if any(str(self.study) in word for word in words):
                found.append(words)
        return found


@pytest.fixture
def desk(slurm: VirtualSlurm, tmp_path: Path) -> Desk:
    """On each kind of cluster, with accounting and without."""
    return Desk(slurm, tmp_path)


def test_two_nodes_of_two_ranks_give_the_same_ids_as_one_process(desk: Desk) -> None:
    """Were the ranks of the nodes mixed up, or a GPU taken twice, the ids would differ."""
    desk.submit(
        [
            {"strategy": "single", "gpus": 1},
            {"strategy": "tensor", "gpus": 4},
            {"strategy": {"pipeline": {"schedule": "async", "micro_batches": 2}}, "gpus": 4},
        ],
        devices={"fake": {"per_node": 2}},
    )  # fmt: skip
    desk.drained()
    records = [json.loads(file.read_text()) for file in desk.study.rglob("record.json")]
    assert [record["status"] for record in records] == ["ok"] * 3, records
    assert len({record["ids_digest"] for record in records}) == 1
    hosts = [
        sorted(rank["host"] for rank in record["ranks"])
        for record in records
        if record["case"]["gpus"] == 4
    ]
    assert [len(set(names)) for names in hosts] == [2, 2]
    assert all(names[0] == names[1] and names[2] == names[3] for names in hosts)
    assert desk.leavings() == []


def test_a_killed_rank_ends_its_case_within_seconds_and_not_the_next(
    desk: Desk,
) -> None:
    desk.submit([ENDLESS, {"strategy": "tensor", "gpus": 2}], "--cases-per-job", "2")
    desk.slurm.wait(desk.has(2), "two ranks", 120)
    first = {process.pid for process in desk.workers()}
    desk.workers()[-1].kill()
    began = time.monotonic()

    def are_gone() -> bool:
        return not first & {process.pid for process in desk.workers()}

    desk.slurm.wait(are_gone, "the other rank to end", 30)
    assert time.monotonic() - began < 20
    desk.drained()
    killed, well = desk.rows()
    assert (killed["status"], well["status"]) == ("failed", "ok")
    assert any("SIGKILL" in line or "signal 9" in line.lower() or "-9" in line
               for line in killed["evidence"]), killed  # fmt: skip
    assert "SIGKILL" in desk.orch("logs", killed["case_id"])
    assert desk.leavings() == []


def test_a_hung_rank_is_ended_at_the_cases_time(desk: Desk) -> None:
    desk = desk
    desk.submit([ENDLESS], case_time="25s")
    desk.slurm.wait(desk.has(2), "two ranks", 120)
    os.kill(desk.workers()[-1].pid, signal.SIGSTOP)
    desk.drained()
    (found,) = desk.rows()
    assert (found["status"], found["cause"]) == ("failed", "timeout")
    assert desk.leavings() == []


@pytest.mark.parametrize("end", ["scancel", "time limit", "preemption"])
def test_a_job_that_slurm_ends_files_a_record_with_the_cause(
    desk: Desk, end: str
) -> None:
    partition = {"partition": "cancelled"} if end == "preemption" else {}
    desk.submit([ENDLESS], **partition)
    desk.slurm.wait(lambda: desk.workers("torch.distributed.run"), "torchrun", 120)
    (job_id,) = desk.slurm.command("squeue", "-h", "-o", "%A").split()
    if end == "scancel":
        desk.slurm.command("scancel", job_id)
    elif end == "time limit":
        desk.slurm.command("scontrol", "update", f"jobid={job_id}", "endtime=now+1")
    else:
        desk.slurm.command("sbatch", "--partition=main", "--nodes=3", "--exclusive",
                           "--output=/dev/null", "--wrap=true")  # fmt: skip
    desk.drained()
    (found,) = desk.rows()
    cause = {"scancel": "cancelled", "time limit": "timeout", "preemption": "preempted"}
    assert (found["status"], found["cause"]) == ("failed", cause[end]), found
    assert desk.leavings() == []


def test_a_requeued_job_measures_only_the_interrupted_case_again(desk: Desk) -> None:
    """The supervisor files `preempted`; after the requeue it skips what is done."""
    short, long = {"strategy": "tensor", "gpus": 2}, ENDLESS | {"repeats": 300}
    often = {"ORCH_HEARTBEAT_S": "0.2"}
    desk.submit([short, long], "--cases-per-job", "2", requeue=True, environment=often)

    def is_measuring() -> bool:
        attempts = list(desk.study.glob("cases/*/attempt-1"))
        under_way = [each for each in attempts if not (each / "record.json").exists()]
        beats = [each / "heartbeat.json" for each in under_way if len(attempts) == 2]
        return any("measuring" in each.read_text() for each in beats if each.exists())

    desk.slurm.wait(is_measuring, "the second case to be measured", 120)
    os.kill(desk.workers()[-1].pid, signal.SIGSTOP)  # so that it cannot end meanwhile
    (job_id,) = desk.slurm.command("squeue", "-h", "-o", "%A").split()
    desk.slurm.command("scontrol", "requeue", job_id)

    def waits() -> bool:
        return bool(desk.slurm.command("squeue", "-h", "-t", "PD").strip())

    desk.slurm.wait(waits, "the job to be requeued", 60)
    # By itself Slurm would begin two minutes later.
    desk.slurm.command("scontrol", "update", f"jobid={job_id}", "starttime=now")
    desk.drained()
    rows = desk.rows()
    assert [(row["status"], row["attempt"]) for row in rows] == [
        ("ok", 1),
        ("ok", 2),
    ], rows
    first = desk.study / "cases" / rows[1]["case_id"] / "attempt-1/record.json"
    assert json.loads(first.read_text())["cause"] == "preempted"
    assert desk.leavings() == []


@pytest.fixture(params=ACCOUNTING)
def small_memory(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[VirtualSlurm]:
    """A node that kills what uses more memory than was asked for."""
    demand_slurm()
    folder = tmp_path_factory.mktemp("small")
    with VirtualSlurm(
        folder, nodes=1, accounting=request.param, enforce_memory=True
    ) as slurm:
        monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        yield slurm


def test_too_little_main_memory_is_the_cause(
    small_memory: VirtualSlurm, tmp_path: Path
) -> None:
    desk = Desk(small_memory, tmp_path)
    # The profile promises more than the job gets, or the case would not be submitted.
    desk.submit([{"strategy": "single", "gpus": 1}], options=["--mem=150M"])
    desk.drained()
    (found,) = desk.rows()
    assert (found["status"], found["cause"]) in {
        ("oom", "oom_host"),
        ("lost", "oom_host"),
    }
    assert not found["retryable"] or found["status"] == "lost"
    assert desk.leavings() == []


@pytest.fixture(params=ACCOUNTING)
def small_disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VirtualSlurm]:
    """A cluster that has results on a disk of a megabyte."""
    demand_slurm()
    disk = tmp_path / "results"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        folder = tmp_path / "slurm"
        with VirtualSlurm(folder, nodes=1, accounting=request.param) as slurm:
            monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
            yield slurm
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_record_waits_for_a_full_disk_to_have_room_again(
    small_disk: VirtualSlurm, tmp_path: Path
) -> None:
    desk = Desk(small_disk, tmp_path)
    # Long enough that the disk is full before the worker has a record to file.
    desk.submit([{"strategy": "single", "gpus": 1, "repeats": 200}])
    small_disk.wait(desk.workers, "the worker", 120)
    filler = tmp_path / "results/filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024))
    small_disk.wait(lambda: not desk.workers(), "the worker to end", 120)
    assert not list(desk.study.rglob("record.json"))
    filler.unlink()
    desk.drained()
    (found,) = desk.rows()
    assert found["status"] == "ok"
    assert desk.leavings() == []
