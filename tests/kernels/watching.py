"""What runs inside the ranks of the timeline tests."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from answers import SHAPES, batch_of, random_weights
from piped import build
from torch import Tensor, nn

from jobs.tracing import recorder
from jobs.tracing.recorder import clock_offset_s, recording
from jobs.tracing.trace import repeat_traced
from kernels.cache import Step
from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.spans import Span, busy
from kernels.strategies import Strategy
from kernels.world import World


class Sleeper(nn.Module):
    """A layer that takes its time and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def forward(self, x_BTD: Tensor, _step: Step) -> Tensor:
        time.sleep(self.seconds)
        return x_BTD


def sleeping(
    world: World, strategy: Strategy, new_tokens: int, stage_s: float
) -> list[Span]:
    """The spans of a generation whose stages take `stage_s` for any micro-batch."""
    shape = SHAPES["nine layers"]
    engine = parallelize(
        shape, strategy, world, torch.float32, random_weights(shape, torch.float32)
    )
    sleepers = {layer: Sleeper() for layer in engine.model.layers}
    engine.model.layers.update(sleepers)
    batch = Batch.of([[1, 2], [3], [4, 5], [6], [7], [8], [9], [1], [2]])
    engine.generate(
        batch, Generation(new_tokens=2)
    )  # connections are made at first use
    next(iter(sleepers.values())).seconds = stage_s
    with recording(engine) as seen:
        _meet(engine)
        engine.generate(batch, Generation(new_tokens=new_tokens))
    engine.close()
    return seen.spans()


def _meet(engine: LlamaEngine) -> None:
    engine.groups.stages.barrier()


def watched_and_not(
    world: World, shape: str, strategy: Strategy
) -> tuple[bool, list[Span], int]:
    """Whether ids are the same when watched; the spans; spans noted after the watching."""
    engine = build(world, shape, strategy)
    generation = Generation(new_tokens=4)
    ids = engine.generate(batch_of(4), generation)
    with recording(engine) as seen:
        again = engine.generate(batch_of(4), generation)
    spans = seen.spans()
    engine.generate(batch_of(4), generation)
    engine.close()
    late = {id(span) for span in seen.spans() if span.kind == "compute"}
    computed = [span for span in spans if span.kind == "compute"]
    return torch.equal(ids, again), spans, len(late) - len(computed)


@contextmanager
def clock_ahead(seconds: float) -> Iterator[None]:
    """Let the recorder's clock on this rank be so far ahead."""
    true_time = recorder.time
    recorder.time = SimpleNamespace(  # type: ignore[assignment]
        perf_counter=lambda: time.perf_counter() + seconds
    )
    try:
        yield
    finally:
        recorder.time = true_time


def offset_of_shifted_clock(world: World, shift_s: float) -> float:
    """The offset that is found where the clocks of all but the first rank are ahead."""
    everyone = world.group(range(world.size))
    with clock_ahead(shift_s if world.rank else 0.0):
        offset_s = clock_offset_s(everyone, world.device)
    everyone.close()
    return offset_s


def traced_with_shifted_clock(
    world: World, strategy: Strategy, shift_s: float
) -> tuple[float, list[Span], float]:
    """The spans of a traced repetition between two looks at the true clock."""
    engine = build(world, "nine layers", strategy)
    began_s = time.perf_counter()
    with clock_ahead(shift_s if world.rank else 0.0):
        traced = repeat_traced(
            engine, batch_of(4), Generation(new_tokens=2), with_flame=False
        )
    engine.close()
    return began_s, traced.spans, time.perf_counter()


def busy_of(spans: list[Span]) -> list[tuple[float, float]]:
    """The busy intervals of all ranks."""
    ranks = {span.rank for span in spans}
    return [
        interval
        for rank in ranks
        for interval in busy(span for span in spans if span.rank == rank)
    ]
