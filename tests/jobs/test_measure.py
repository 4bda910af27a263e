"""What a measurement makes of an engine: each engine here is a real one that misbehaves once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.bench import LoadingLine, compose
from jobs.measure import Work, measure, prepare, rank_facts
from jobs.progress import ProgressBoard
from kernels.engine import Engine, EngineFacts, OnToken, ignore
from kernels.generate import Batch, Generation
from kernels.world import World
from orchestrator.record import Record
from tests.orchestrator.made import START, a_case

CHECKOUT = Path(__file__).resolve().parents[2]
CASE = a_case(
    "tensor", batch_size=2, prompt_tokens=5, new_tokens=4, warmup=1, repeats=3
)


class Misbehaving:
    """An engine that passes everything on, and spoils the generations that it is told to.

    It has the four members of an `Engine` and no other, so it also shows that these suffice.
    """

    def __init__(
        self,
        engine: Engine,
        spoil: Callable[[int, Tensor], Tensor],
        *,
        mute: bool = False,
    ) -> None:
        self._engine, self._spoil, self._mute = engine, spoil, mute
        self.generations = 0

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    def generate(
        self, batch: Batch, generation: Generation, on_token: OnToken = ignore
    ) -> Tensor:
        ids_BN = self._engine.generate(
            batch, generation, ignore if self._mute else on_token
        )
        self.generations += 1
        return self._spoil(self.generations - 1, ids_BN)

    def facts(self, batch: Batch) -> EngineFacts:
        return self._engine.facts(batch)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def work() -> Work:
    reporter = ProgressBoard.open(None, 1).reporter(0)
    return prepare(CASE, World(), reporter, LoadingLine(reporter, speaks=False))


def record_with(
    work: Work, spoil: Callable[[int, Tensor], Tensor], **how: Any
) -> Record:
    spoilt = replace(work, engine=Misbehaving(work.engine, spoil, **how))
    report = measure(spoilt, ProgressBoard.open(None, 1).reporter(0))
    return compose(spoilt, [report], 1, START)


def as_it_is(_generation: int, ids_BN: Tensor) -> Tensor:
    return ids_BN


def test_an_engine_with_the_four_members_is_measured(work: Work) -> None:
    record = record_with(work, as_it_is)
    assert (record.status, record.evidence) == ("ok", [])
    assert len(record.samples) == CASE.repeats


def test_ids_outside_the_vocabulary_make_the_result_invalid(work: Work) -> None:
    record = record_with(work, lambda _, ids_BN: ids_BN + 10_000)
    assert record.status == "invalid"
    assert any("outside the vocabulary" in line for line in record.evidence)


def test_a_repeat_that_differs_makes_the_result_invalid(work: Work) -> None:
    def last_differs(generation: int, ids_BN: Tensor) -> Tensor:
        return (ids_BN + 1) % 256 if generation == CASE.repeats else ids_BN

    record = record_with(work, last_differs)
    assert record.status == "invalid"
    assert any("gave 2 different texts" in line for line in record.evidence)
    assert len(record.evidence) == len(set(record.evidence)), "a problem is told twice"


def test_tokens_that_were_never_marked_make_the_result_invalid(work: Work) -> None:
    record = record_with(work, as_it_is, mute=True)
    assert record.status == "invalid"


def test_warm_up_is_not_measured_and_every_repeat_is(work: Work) -> None:
    """The first generation is slow, as in real life; what is measured must not know of it."""
    slow_s = 1.0
    began: list[float] = []

    def first_is_slow(generation: int, ids_BN: Tensor) -> Tensor:
        began.append(time.perf_counter())
        return ids_BN

    class SlowAtFirst(Misbehaving):
        def generate(
            self, batch: Batch, generation: Generation, on_token: OnToken = ignore
        ) -> Tensor:
            if self.generations == 0:
                time.sleep(slow_s)
            return super().generate(batch, generation, on_token)

    spoilt = replace(work, engine=SlowAtFirst(work.engine, first_is_slow))
    report = measure(spoilt, ProgressBoard.open(None, 1).reporter(0))
    assert len(began) == CASE.warmup + CASE.repeats
    assert len(report.times) == CASE.repeats
    # Measured windows lie between the ends of the generations, so none can hold the slow one.
    window_s = began[-1] - began[0]
    assert sum(times[-1] for times in report.times) <= window_s


def test_the_time_of_loading_is_in_seconds() -> None:
    began = time.perf_counter()
    reporter = ProgressBoard.open(None, 1).reporter(0)
    made = prepare(CASE, World(), reporter, LoadingLine(reporter, speaks=False))
    assert 0 < made.load_s <= time.perf_counter() - began


@pytest.mark.gpu
def test_the_peak_of_a_gpu_counts_what_was_freed_again() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    world = World(device=torch.device("cuda", 0))
    reporter = ProgressBoard.open(None, 1).reporter(0)
    made = prepare(CASE, world, reporter, LoadingLine(reporter, speaks=False))
    del_me = torch.empty(1 << 28, dtype=torch.uint8, device=world.device)
    del del_me
    facts = rank_facts(made)
    assert facts.peak_memory_bytes > 1 << 28 > torch.cuda.memory_allocated()
    assert facts.peak_reserved_bytes >= facts.peak_memory_bytes
    assert (facts.device_memory_bytes or 0) > facts.peak_memory_bytes


LATE = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from jobs.bench import LoadingLine
from jobs.measure import measure, prepare
from jobs.progress import ProgressBoard
from kernels.world import World, join, leave
from orchestrator.case import Case
from tests.jobs.test_measure import Misbehaving

case, late, seen = Path(sys.argv[1]), Path(sys.argv[2]), []

class Watching(Misbehaving):
    def generate(self, *args):
        seen.append(late.exists())
        return super().generate(*args)

world = World.from_environment()
join(world)
reporter = ProgressBoard.open(None, 2).reporter(world.rank)
work = prepare(
    Case.model_validate_json(case.read_text()), world, reporter, LoadingLine(reporter, False)
)
if world.rank == 1:
    time.sleep(1)
    late.touch()
measure(replace(work, engine=Watching(work.engine, lambda _, ids: ids)), reporter)
if world.rank == 0:
    Path(sys.argv[3]).write_text(json.dumps(seen))
work.engine.close()
leave()
"""


def test_no_rank_begins_before_the_last_one_is_there(tmp_path: Path) -> None:
    """What a rank waits for a late one must not be in its window."""
    program, case, seen = (tmp_path / name for name in ("late.py", "case.json", "seen"))
    program.write_text(LATE)
    two = a_case("tensor", 2, prompt_tokens=5, new_tokens=4, warmup=0, repeats=2)
    case.write_text(two.model_dump_json())
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--local-addr=127.0.0.1", "--nproc-per-node=2", str(program), str(case),
        str(tmp_path / "late"), str(seen),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(seen.read_text()) == [True, True]
