"""The pipeline's real loop on channels that know no mercy: no deadlock at any size, no mix-up.

Stages are threads. A send ends only when its receive was asked for, and whoever waits in vain
for long has met a deadlock. Hidden states are numbers that every stage changes in its own way.
"""

import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.decode import DecodeState
from kernels.engine import ignore
from kernels.generate import Batch, Generation, NewTokens
from kernels.pipeline.channels import AHEAD
from kernels.pipeline.schedule import ForwardPass
from kernels.pipeline_parallel import PipelineEngine
from kernels.strategies import Parallel, PipelineParallel, Strategy
from kernels.timeline import OFF

PATIENCE_S = 10.0
VOCAB = 89


class OneWay:
    """A one-way channel between two threads; its k-th send meets its k-th receive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: list[tuple[Tensor, threading.Event]] = []
        self._asked: list[tuple[Tensor, threading.Event]] = []
        self._met = 0

    def start_send(self, tensor: Tensor, to: int) -> Any:
        assert to == 1
        return self._put(self._sent, tensor)

    def start_receive(self, tensor: Tensor, source: int) -> Any:
        assert source == 0
        return self._put(self._asked, tensor)

    def _put(self, side: list[tuple[Tensor, threading.Event]], tensor: Tensor) -> Any:
        done = threading.Event()
        with self._lock:
            side.append((tensor, done))
            while self._met < min(len(self._sent), len(self._asked)):
                (sent, left), (room, came) = (
                    self._sent[self._met],
                    self._asked[self._met],
                )
                assert sent.shape == room.shape, "a message for another pass"
                room.copy_(sent)
                left.set()
                came.set()
                self._met += 1
        return SimpleNamespace(wait=lambda: wait_for(done))

    @property
    def is_empty(self) -> bool:
        return len(self._sent) == len(self._asked) == self._met


def wait_for(done: threading.Event) -> None:
    if not done.wait(PATIENCE_S):
        raise TimeoutError("deadlock")


class Stages:
    """A group that can only broadcast."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self._said: Tensor | None = None

    def of(self, stage: int) -> Any:
        return SimpleNamespace(
            broadcast=lambda tensor, source: self._broadcast(tensor, source, stage)
        )

    def _broadcast(self, tensor: Tensor, source: int, stage: int) -> Tensor:
        if stage == source:
            self._said = tensor
        self._barrier.wait()
        assert self._said is not None
        tensor.copy_(self._said)
        self._barrier.wait()
        return tensor


class Numbers(PipelineEngine):
    """A stage whose layers are arithmetic."""

    def __init__(
        self, strategy: Strategy, stage: int, channels: Any, stages: Any
    ) -> None:
        self.strategy, self.channels = strategy, channels
        self.device, self.timeline = torch.device("cpu"), OFF
        self.groups = SimpleNamespace(stages=stages)  # type: ignore[assignment]
        last = strategy.stages - 1
        self.placement = SimpleNamespace(  # type: ignore[assignment]
            stage=stage, is_first=stage == 0, is_last=stage == last
        )
        self.seen: list[tuple[ForwardPass, int]] = []

    def decode_state(self, rows: int, prompt: int, new_tokens: int) -> DecodeState:
        cache: Any = SimpleNamespace(
            rows=rows, slots=prompt + new_tokens, device=self.device,
            begin=lambda pad_B: None, part=lambda of: None,
        )  # fmt: skip
        return DecodeState(cache, new_tokens)

    def new_hidden(self, rows: int, tokens: int) -> Tensor:
        return torch.empty((rows, tokens, 1), dtype=torch.int64)

    def _compute(self, forward: ForwardPass, x: Tensor, state: Any) -> Tensor:
        self.seen.append((forward, x.data_ptr()))
        x_BTD = x[..., None] if self.placement.is_first else x
        assert x_BTD.shape[:2] == (len(forward.rows), len(forward.columns))
        return stage_of(x_BTD, self.placement.stage)

    def choose(self, x_BTD: Tensor, tokens: NewTokens) -> Tensor:
        return x_BTD[:, -1, 0] % VOCAB


def stage_of(x: Tensor, stage: int) -> Tensor:
    return (x * 31 + 7 * stage + 1) % 1_000_003


def expected_ids(batch: Batch, stages: int, new_tokens: int) -> Tensor:
    """Row by row and token by token, with nobody to talk to."""
    last_B, chosen = batch.ids_BT[:, -1], []
    for _ in range(new_tokens):
        for stage in range(stages):
            last_B = stage_of(last_B, stage)
        last_B = last_B % VOCAB
        chosen.append(last_B)
    return torch.stack(chosen, 1)


def run(
    strategy: Strategy, batch: Batch, generation: Generation
) -> tuple[list[Tensor], list[OneWay], list[Numbers]]:
    """Every stage's ids, the channels, and the stages."""
    count = strategy.stages
    onward, back = [OneWay() for _ in range(count - 1)], OneWay()
    stages = Stages(count)
    results: list[Any] = [None] * count
    engines: list[Any] = [None] * count

    def work(stage: int) -> None:
        channels = SimpleNamespace(
            from_previous=onward[stage - 1] if stage else None,
            to_next=onward[stage] if stage < count - 1 else None,
            to_first=back if count > 1 and stage in (0, count - 1) else None,
        )
        engines[stage] = Numbers(strategy, stage, channels, stages.of(stage))
        try:
            rows = range(batch.size)
            results[stage] = engines[stage].run(batch, rows, generation, ignore)
        except Exception as error:
            results[stage] = error

    threads = [threading.Thread(target=work, args=(stage,)) for stage in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results, [*onward, back], engines


@settings(max_examples=150, deadline=None)
@given(
    schedule=st.sampled_from(["gpipe", "async"]),
    stages=st.integers(1, 6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 5),
    new_tokens=st.integers(1, 5),
    micro_batches=st.integers(1, 10),
    prefill=st.integers(0, 20),
    ahead=st.sampled_from(sorted(AHEAD.values())),
)
def test_no_deadlock_and_no_mix_up_at_any_number_of_stages_and_micro_batches(
    schedule: str,
    stages: int,
    rows: int,
    columns: int,
    new_tokens: int,
    micro_batches: int,
    prefill: int,
    ahead: int,
) -> None:
    strategy = Parallel(
        pipeline=PipelineParallel(
            degree=stages,
            schedule=schedule,
            micro_batches=micro_batches,
            prefill_micro_batches=prefill,
        )
    )
    ids_BT = torch.arange(rows * columns).view(rows, columns) % VOCAB
    batch = Batch(ids_BT, torch.zeros(rows, dtype=torch.int64))
    generation = Generation(new_tokens=new_tokens)
    with patch.dict(AHEAD, cpu=ahead):
        results, channels, _ = run(strategy, batch, generation)
    expected = expected_ids(batch, stages, new_tokens)
    assert all(torch.equal(ids, expected) for ids in results)
    assert all(each.is_empty for each in channels)


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_a_stop_leaves_nothing_in_the_channels(schedule: str) -> None:
    strategy = Parallel(
        pipeline=PipelineParallel(degree=3, schedule=schedule, micro_batches=4)
    )
    batch = Batch(torch.arange(4)[:, None], torch.zeros(4, dtype=torch.int64))
    all_ids = tuple(range(VOCAB))
    ending = Generation(new_tokens=50, eos_ids=all_ids, stop_at_eos=True)
    results, channels, _ = run(strategy, batch, ending)
    assert all(each.is_empty for each in channels)
    for ids in results:
        assert torch.equal(ids[:, :1], expected_ids(batch, 3, 1))
        assert (ids[:, 1:] == -1).all()


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_the_first_stage_reads_a_micro_batch_s_ids_from_one_place(
    schedule: str, stages: int
) -> None:
    """So that a captured step can be replayed."""
    strategy = Parallel(
        pipeline=PipelineParallel(
            degree=stages, schedule=schedule, micro_batches=3, prefill_micro_batches=2
        )
    )
    batch = Batch(torch.arange(7)[:, None], torch.zeros(7, dtype=torch.int64))
    _, _, engines = run(strategy, batch, Generation(new_tokens=6))
    decoding = [each for each in engines[0].seen if each[0].token]
    assert len(decoding) == 5 * 3
    assert len({(each.micro_batch, place) for each, place in decoding}) == 3
