"""A job by the real `python -m jobs.launch`: torchrun, ranks, records; and faults injected."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs.make_checkpoint import make_checkpoint
from kernels.shapes import ModelShape
from kernels.strategies import PARTS, Parallel
from kernels.weights import RandomWeights
from orchestrator.case import Case
from orchestrator.grids.strategies import resolve
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.record import Heartbeat, Record, read_record
from orchestrator.study.files import Study

CHECKOUT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=512
)
PROMPTS = "jobs/prompts/alpaca-sample.json"
LONG = 100_000
"""More repeats than anybody waits for."""


def case(name: str, ranks: int, **more: Any) -> Case:
    strategy = resolve(Parallel(**{name: PARTS[name]()}), ranks, batch_size=2)
    defaults: dict[str, Any] = {
        "model": "toy", "random": SHAPE, "dtype": "float32", "batch_size": 2,
        "prompt_tokens": 6, "new_tokens": 5, "repeats": 2,
    }  # fmt: skip
    return Case(label=name, strategy=strategy, gpus=ranks, **{**defaults, **more})


def job_spec_file(
    folder: Path, cases: list[Case], timeouts_s: Sequence[int | None] = ()
) -> Path:
    study = Study(folder)
    study.create()
    for each in cases:
        study.file_case(each)
    job = JobSpec(
        study=str(folder),
        key="k",
        cases=[
            JobCase(case_id=each.case_id, first_attempt=1, timeout_s=timeout_s)
            for each, timeout_s in zip_longest(cases, timeouts_s)
        ],
    )
    file = study.jobs_dir / "job.json"
    file.write_text(job.model_dump_json())
    return file


def command(job: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.launch", str(job)]


def environ(**limits: str) -> dict[str, str]:
    return os.environ | {"ORCH_HEARTBEAT_S": "0.2"} | limits


def launch(job: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(job), cwd=CHECKOUT, env=environ(), capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def only_record(study: Path, of: Case) -> Record:
    (attempt,) = Study(study).attempts(of.case_id)
    record = attempt.read_record()
    assert record is not None
    return record


def is_rank(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return "jobs.bench" in words and "torch.distributed.run" not in words


class Running:
    """A launch under way, and everything it started."""

    def __init__(self, folder: Path, of: Case, **limits: str) -> None:
        self.case = of
        self.study = folder
        job = job_spec_file(folder, [of])
        self.process = subprocess.Popen(
            command(job),
            cwd=CHECKOUT,
            env=environ(**limits),
            stdout=subprocess.PIPE,
            text=True,
        )

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ranks(self) -> list[psutil.Process]:
        return [each for each in self.descendants() if is_rank(each)]

    def await_measuring(self) -> None:
        self.await_that(lambda: "measuring" in self.phase())

    def phase(self) -> str:
        attempts = Study(self.study).attempts(self.case.case_id)
        if not attempts or not attempts[0].heartbeat_file.exists():
            return ""
        text = attempts[0].heartbeat_file.read_text()
        return Heartbeat.model_validate_json(text).phase

    def await_that(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < until, "it never came to that"
            assert self.process.poll() is None, "it ended too early"
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Running]]:
    """Start a launch; whatever is left of it ends with the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed launch cannot tidy up
    started: list[tuple[Running, list[psutil.Process]]] = []

    def begin(of: Case, **limits: str) -> Running:
        running = Running(tmp_path / "study", of, **limits)
        running.await_that(lambda: len(running.ranks()) == of.gpus)
        started.append((running, running.descendants()))
        running.await_measuring()
        return running

    yield begin
    for running, processes in started:
        for each in [*processes, psutil.Process()]:
            if each.pid != os.getpid() and each.is_running():
                each.kill()
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


# ---- a whole job


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Case]]:
    """A study whose job was launched: a checkpoint three ways, and a case that must fail."""
    folder = tmp_path_factory.mktemp("launched") / "study"
    checkpoint = folder.parent / "checkpoint"
    make_checkpoint(checkpoint, "hf", RandomWeights(SHAPE, 0, torch.float32))
    real = {"random": None, "path": str(checkpoint), "prompts": PROMPTS}
    cases = {
        "missing": case("single", 1, random=None, path="no/such/folder"),
        "single": case("single", 1, **real),
        "tensor": case("tensor", 2, **real),
        "model": case("model", 2, **real),
    }
    done = launch(job_spec_file(folder, list(cases.values())))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, cases


def test_every_case_of_a_job_gets_its_record(
    study: tuple[Path, dict[str, Case]],
) -> None:
    folder, cases = study
    statuses = {name: only_record(folder, each).status for name, each in cases.items()}
    assert statuses == {
        "missing": "failed",
        "single": "ok",
        "tensor": "ok",
        "model": "ok",
    }


def test_a_case_that_a_person_must_mend_says_what(
    study: tuple[Path, dict[str, Case]],
) -> None:
    record = only_record(study[0], study[1]["missing"])
    assert (record.cause, record.retryable) == ("config", False)
    assert "no/such/folder is no folder" in record.evidence[0]
    assert record.environment.software.torch


def test_every_strategy_gives_the_same_ids(study: tuple[Path, dict[str, Case]]) -> None:
    folder, cases = study
    names = ("single", "tensor", "model")
    digests = {only_record(folder, cases[name]).ids_digest for name in names}
    assert len(digests) == 1


def test_a_record_holds_every_rank_and_every_token(
    study: tuple[Path, dict[str, Case]],
) -> None:
    record = only_record(study[0], study[1]["tensor"])
    assert [rank.rank for rank in record.ranks] == [0, 1]
    assert all(rank.peak_memory_bytes > rank.weight_bytes for rank in record.ranks)
    assert [len(sample.token_s) for sample in record.samples] == [5, 5]
    assert (record.output_tokens, record.prompt_lengths) == (10, [6, 6])


def test_nothing_is_left_in_an_attempt_but_its_three_files(
    study: tuple[Path, dict[str, Case]],
) -> None:
    folder, cases = study
    for each in cases.values():
        (attempt,) = Study(folder).attempts(each.case_id)
        names = sorted(file.name for file in attempt.folder.iterdir())
        assert names == ["heartbeat.json", "record.json", "worker.log"]


def test_launched_again_everything_is_done(study: tuple[Path, dict[str, Case]]) -> None:
    folder, cases = study
    done = launch(Study(folder).jobs_dir / "job.json")
    assert done.returncode == 0
    assert done.stdout.count("has a record, attempt 1") == len(cases)
    assert all(
        len(Study(folder).attempts(each.case_id)) == 1 for each in cases.values()
    )


# ---- faults


def test_a_killed_rank_ends_the_others_and_is_recorded(
    start: Callable[..., Running],
) -> None:
    running = start(case("tensor", 2, repeats=LONG))
    processes = running.descendants()
    # Rank 1, so that rank 0 is alive and could write nonsense.
    victim = next(each for each in running.ranks() if each.environ()["RANK"] == "1")
    victim.kill()
    code, output = running.end()
    assert code == 0, output
    assert not any(each.is_running() for each in processes)
    record = only_record(running.study, running.case)
    assert (record.status, record.cause, record.retryable) == (
        "failed",
        "unknown",
        True,
    )
    assert "exitcode: -9" in record.evidence[0]
    assert "local_rank: 1" in record.evidence[0]


def test_a_cancelled_job_records_how_far_it_came_and_leaves_nothing(
    start: Callable[..., Running],
) -> None:
    running = start(case("tensor", 2, repeats=LONG))
    processes = running.descendants()
    running.process.terminate()
    code, output = running.end()
    assert code == 128 + signal.SIGTERM, output
    assert not any(each.is_running() for each in processes)
    record = only_record(running.study, running.case)
    assert (record.status, record.cause) == ("failed", "cancelled")
    assert "measuring" in record.evidence[1]


def test_a_killed_launch_leaves_no_rank_behind(start: Callable[..., Running]) -> None:
    running = start(case("tensor", 2, repeats=LONG))
    processes = running.descendants()
    running.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_a_hung_rank_is_ended_and_named(start: Callable[..., Running]) -> None:
    running = start(case("tensor", 2, repeats=LONG), ORCH_STALL_S="20")
    processes = running.descendants()
    victim = next(each for each in running.ranks() if each.environ()["RANK"] == "1")
    victim.suspend()
    code, output = running.end()
    assert code == 0, output
    assert not any(each.is_running() for each in processes)
    record = only_record(running.study, running.case)
    assert (record.status, record.cause) == ("failed", "timeout")
    assert "no rank made progress for 20 s" in record.evidence[0]


def test_a_result_outlives_a_folder_that_cannot_be_written_for_a_while(
    start: Callable[..., Running],
) -> None:
    running = start(case("single", 1, new_tokens=60, repeats=40))
    (attempt,) = Study(running.study).attempts(running.case.case_id)
    aside = attempt.folder.rename(attempt.folder.with_name("aside"))
    running.await_that(lambda: not running.ranks())
    aside.rename(attempt.folder)
    code, output = running.end()
    assert code == 0, output
    assert only_record(running.study, running.case).status == "ok"


def test_a_result_that_cannot_be_written_at_all_is_printed(
    start: Callable[..., Running],
) -> None:
    running = start(case("single", 1, new_tokens=60, repeats=40), ORCH_DISK_S="0.1")
    (attempt,) = Study(running.study).attempts(running.case.case_id)
    attempt.folder.rename(attempt.folder.with_name("aside"))
    code, output = running.end()
    assert code == 1
    line = next(each for each in output.splitlines() if "orch: record of" in each)
    record = read_record(line[line.index("{") :], "stdout")
    assert (record.status, record.case) == ("ok", running.case)


def test_out_of_host_memory_is_a_finding(tmp_path: Path) -> None:
    large = ModelShape(
        dim=4096, n_layers=4, n_heads=4, n_kv_heads=4, ffn_dim=65536, vocab_size=320
    )
    of = case("single", 1, random=large)
    job = job_spec_file(tmp_path / "study", [of])
    limited = ["bash", "-c", 'ulimit -v 4000000; exec "$@"', "bash", *command(job)]
    done = subprocess.run(limited, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = only_record(tmp_path / "study", of)
    assert (record.status, record.cause, record.retryable) == ("oom", "oom_host", False)
    assert "allocate" in record.evidence[0]


def test_a_case_that_takes_too_long_is_ended_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    endless, short = case("single", 1, repeats=LONG), case("single", 1)
    job = job_spec_file(tmp_path / "study", [endless, short], [8])
    done = launch(job)
    assert done.returncode == 0, done.stdout + done.stderr
    record = only_record(tmp_path / "study", endless)
    assert (record.cause, record.retryable) == ("timeout", False)
    assert only_record(tmp_path / "study", short).status == "ok"


def test_a_case_that_cannot_be_read_does_not_stop_the_next(tmp_path: Path) -> None:
    broken, sound = case("single", 1, seed=1), case("single", 1)
    job = job_spec_file(tmp_path / "study", [broken, sound])
    Study(tmp_path / "study").case_file(broken.case_id).write_text("{")
    done = launch(job)
    assert done.returncode == 1
    assert "cannot be read as a case" in done.stdout
    assert only_record(tmp_path / "study", sound).status == "ok"


def test_workers_that_cannot_be_started_are_recorded(tmp_path: Path) -> None:
    of = case("single", 1)
    job = job_spec_file(tmp_path / "study", [of])
    # A temporary folder that passes Python's own test and then takes no folder.
    program = (
        "import sys, tempfile; from jobs.launch.supervisor import main; "
        "tempfile.tempdir = '/proc/self'; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(job)], cwd=CHECKOUT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = only_record(tmp_path / "study", of)
    assert (record.cause, record.retryable) == ("launch", True)
    assert "could not be started" in record.evidence[0]
