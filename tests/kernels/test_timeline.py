"""Who computed when: spans are complete, on one clock, and show the bubble that theory gives."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import watching
from ranks import Ranks

from kernels.pipeline.schedule import Flow, bubble, idle_share
from kernels.spans import Span
from kernels.strategies import (
    ModelParallel,
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
    TensorParallel,
    ZeroOffload,
)
from kernels.timeline import OFF
from kernels.world import World

STAGE_S = 0.04
NEW_TOKENS = 3


def test_nothing_is_noted_where_nobody_watches() -> None:
    OFF.at(3, 1)
    with OFF.span("compute", "layer", 2):
        pass
    assert not vars(OFF)


def spans_of(
    world: Ranks, schedule: str, stages: int, micro_batches: int
) -> list[Span]:
    """The compute spans of a pipeline of sleeping layers; the rank is the stage."""
    strategy = Parallel(
        pipeline=PipelineParallel(
            degree=stages, schedule=schedule, micro_batches=micro_batches
        )
    )
    every = world.run(watching.sleeping, strategy, NEW_TOKENS, STAGE_S)
    return [each for seen in every for each in seen if each.kind == "compute"]


def first_stage_runs_ahead(spans: list[Span], stages: int) -> bool:
    """Whether the first stage begins a token before the last one has ended the token before."""
    return any(
        min(each.start_s for each in spans if (each.rank, each.token) == (0, token + 1))
        < max(
            each.end_s
            for each in spans
            if (each.rank, each.token) == (stages - 1, token)
        )
        for token in range(NEW_TOKENS - 1)
    )


def idle(spans: list[Span], stages: int) -> float:
    """The idle share of decode."""
    decoding = [each for each in spans if each.token]
    window = (
        min(each.start_s for each in decoding),
        max(each.end_s for each in decoding),
    )
    return idle_share(watching.busy_of(spans), stages, window)


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (2, 8), (4, 5), (4, 8)])
def test_gpipe_fills_and_drains_for_each_token_and_async_does_not(
    stages: int, micro_batches: int, ranks: Callable[[int], Ranks]
) -> None:
    """Told by order: a busy machine delays spans, but never lets gpipe run ahead."""
    world = ranks(stages)
    drains = spans_of(world, "gpipe", stages, micro_batches)
    assert not first_stage_runs_ahead(drains, stages)
    # A delay can keep async from running ahead, though hardly each time.
    runs = (spans_of(world, "async", stages, micro_batches) for _ in range(5))
    assert any(first_stage_runs_ahead(spans, stages) for spans in runs)


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_a_pipeline_is_never_less_idle_than_its_schedule(
    schedule: str, ranks: Callable[[int], Ranks]
) -> None:
    """Other work on the machine can only add idle time."""
    flow = Flow(
        schedule=schedule,
        rows=8,
        prompt_tokens=2,
        new_tokens=NEW_TOKENS,
        micro_batches=4,
    )
    measured = idle(spans_of(ranks(4), schedule, 4, 4), 4)
    assert measured > bubble(flow, 4) - 0.05


@pytest.mark.parametrize(
    ("strategy", "layers"),
    [
        (Parallel(single=Single()), [range(9)]),
        (Parallel(model=ModelParallel(degree=2)), [range(5), range(5, 9)]),
        (
            Parallel(
                pipeline=PipelineParallel(degree=2, schedule="async", micro_batches=2)
            ),
            [range(5), range(5, 9)],
        ),
        (Parallel(tensor=TensorParallel(degree=2)), [range(9)] * 2),
        (Parallel(zero_offload=ZeroOffload()), [range(9)]),
    ],
    ids=lambda value: "+".join(value.names) if isinstance(value, Strategy) else "",
)
def test_every_layer_of_every_micro_batch_and_token_is_seen_once(
    strategy: Strategy, layers: list[range], ranks: Callable[[int], Ranks]
) -> None:
    if strategy.world_size == 1:
        seen = [watching.watched_and_not(World(), "nine layers", strategy)]
    else:
        world = ranks(strategy.world_size)
        seen = world.run(watching.watched_and_not, "nine layers", strategy)
    for rank, (same, spans, late) in enumerate(seen):
        assert same, "watching changes what is computed"
        assert not late, "spans are noted after the watching"
        assert {each.rank for each in spans} == {rank}
        assert all(each.start_s <= each.end_s for each in spans)
        computed = sorted(
            (each.token, each.micro_batch, each.layer)
            for each in spans
            if each.kind == "compute" and each.name == "layer"
        )
        assert computed == sorted(
            (token, micro_batch, layer)
            for token in range(4)
            for micro_batch in range(strategy.micro_batches)
            for layer in layers[rank]
        )
        kinds = {each.kind for each in spans}
        assert strategy.world_size == 1 or "communication" in kinds
        assert (strategy.zero_offload is not None) == ("copy" in kinds)


def test_the_spans_of_every_rank_are_on_the_first_one_s_clock(
    ranks: Callable[[int], Ranks],
) -> None:
    strategy = Parallel(model=ModelParallel(degree=2))
    for began_s, spans, ended_s in ranks(2).run(
        watching.traced_with_shifted_clock, strategy, 1000.0
    ):
        assert spans
        assert all(abs(each.start_s - began_s) < 500 for each in spans)
        assert all(abs(each.end_s - ended_s) < 500 for each in spans)


@pytest.mark.parametrize("shift_s", [5.0, -3.0])
def test_a_clock_that_is_off_is_found_out(
    shift_s: float, ranks: Callable[[int], Ranks]
) -> None:
    found = ranks(3).run(watching.offset_of_shifted_clock, shift_s)
    assert found[0] == 0.0
    assert found[1:] == [pytest.approx(-shift_s, abs=0.05)] * 2


def test_ranks_of_one_machine_share_their_clock_exactly(
    ranks: Callable[[int], Ranks],
) -> None:
    assert ranks(3).run(watching.offset_of_shifted_clock, 0.0) == [0.0] * 3


@pytest.mark.gpu
def test_spans_of_a_gpu_are_the_gpu_s_own_times() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    strategy = Parallel(pipeline=PipelineParallel(schedule="async", micro_batches=2))
    world = World(device=torch.device("cuda", 0))
    start_s = time.perf_counter()
    same, spans, late = watching.watched_and_not(world, "nine layers", strategy)
    assert same
    assert not late
    layers = [each for each in spans if each.name == "layer"]
    assert len(layers) == 9 * 2 * 4
    assert all(each.start_s < each.end_s for each in layers)
    assert all(a.end_s <= b.start_s for a, b in pairwise(layers))
    assert start_s < layers[0].start_s
    assert layers[-1].end_s < time.perf_counter()
