"""A step of decode works on the same memory in every generation, so it can be captured once."""

from collections.abc import Iterator

import pytest
import torch
from answers import SHAPES

from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.random_weights import RandomWeights
from kernels.strategies import (
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
    ZeroOffload,
)
from kernels.world import World

SINGLE = Parallel(single=Single())
STRATEGIES = {
    "single": SINGLE,
    "pipeline": Parallel(pipeline=PipelineParallel(degree=1, micro_batches=2)),
    "zero-offload": Parallel(zero_offload=ZeroOffload()),
}
FIRST = Batch.of([[1, 2, 3, 4], [5, 6, 7]])
SECOND = Batch.of([[9, 8], [7, 6, 5, 4]])


def engine_of(strategy: Strategy) -> LlamaEngine:
    weights = RandomWeights(SHAPES["gqa"], 0, torch.float32)
    return parallelize(SHAPES["gqa"], strategy, World(), torch.float32, weights)


def memory_of(engine: LlamaEngine) -> dict[str, int]:
    """Where everything lies that a step reads or writes."""
    state = engine._state
    assert state is not None
    tokens = state.tokens
    lies = {
        "slot": state.slot_1.data_ptr(), "last": tokens.last_B.data_ptr(),
        "ids": tokens.ids_BN.data_ptr(), "index": tokens.index.data_ptr(),
        "rows": tokens.row_B.data_ptr(), "pad": state.cache.pad_B.data_ptr(),
    }  # fmt: skip
    for layer, (keys, values) in state.cache.kv.items():
        lies |= {f"k{layer}": keys.data_ptr(), f"v{layer}": values.data_ptr()}
    for rows, part in state._parts.items():
        lies |= {f"{rows} slot": part.slot_1.data_ptr()}
        lies |= {f"{rows} index": part.tokens.index.data_ptr()}
        lies |= {f"{rows} last": part.tokens.last_B.data_ptr()}
    return lies


@pytest.fixture(params=STRATEGIES)
def engine(request: pytest.FixtureRequest) -> Iterator[LlamaEngine]:
    engine = engine_of(STRATEGIES[request.param])
    yield engine
    engine.close()


def test_every_generation_of_a_shape_uses_the_same_memory(engine: LlamaEngine) -> None:
    generation = Generation(new_tokens=5)
    engine.generate(FIRST, generation)
    before = memory_of(engine)
    engine.generate(SECOND, generation)
    assert memory_of(engine) == before


def test_nothing_of_a_generation_reaches_the_next(engine: LlamaEngine) -> None:
    """Ids that were given out stay, and an end token or a seed of before no longer matters."""
    greedy = Generation(new_tokens=5)
    first = engine.generate(FIRST, greedy)
    kept = first.clone()
    ends = Generation(
        new_tokens=5,
        stop_at_eos=True,
        eos_ids=(int(first[0, 0]),),
        temperature=0.7,
        seed=3,
    )
    engine.generate(SECOND, ends)
    assert torch.equal(engine.generate(FIRST, greedy), kept)
    assert torch.equal(first, kept), (
        "a later generation wrote into ids that were given out"
    )


def test_another_shape_gets_a_state_of_its_own(engine: LlamaEngine) -> None:
    longer = engine.generate(FIRST, Generation(new_tokens=40))
    assert longer.shape == (2, 40)
    assert engine.generate(FIRST, Generation(new_tokens=5)).shape == (2, 5)
