"""Every way of spreading a model gives the answers of the model alone, and those of others' code.

A failure here means that a strategy computes another function than the model: no number
measured with it is worth anything.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from answers import (
    BATCH_SIZES,
    NEW_TOKENS,
    SHAPES,
    TOLERANCE,
    Answer,
    answers,
    batch_of,
    difference,
    prompts,
    random_weights,
)
from oracle import oracle, oracle_ids, oracle_logits
from plain import plain_logits
from ranks import Ranks

from kernels.placement import impossible
from kernels.strategies import (
    DataParallel,
    ModelParallel,
    Parallel,
    Single,
    Strategy,
    TensorParallel,
)
from kernels.world import World

SINGLE = Parallel(single=Single())


def strategy(data: int = 1, stages: int = 1, tensor: int = 1) -> Strategy:
    return Parallel(
        data=DataParallel(degree=data),
        model=ModelParallel(degree=stages),
        tensor=TensorParallel(degree=tensor),
    )


SPREADS = [
    ("gqa", strategy(stages=2)),
    ("gqa", strategy(stages=3)),
    ("gqa", strategy(tensor=2)),
    ("gqa", strategy(tensor=4)),
    ("gqa", strategy(tensor=8)),
    ("gqa", strategy(data=2)),
    ("gqa", strategy(stages=2, tensor=2)),
    ("gqa", strategy(data=2, stages=2)),
    ("gqa", strategy(data=2, tensor=2)),
    ("gqa", strategy(data=2, stages=2, tensor=2)),
    ("mha", strategy(stages=2)),
    ("mha", strategy(tensor=8)),
    ("one KV head", strategy(tensor=4)),
    ("nine layers", strategy(stages=2)),
    ("nine layers", strategy(stages=4)),
    ("nine layers", strategy(stages=8)),
    ("six heads", strategy(tensor=3)),
    ("six heads", strategy(stages=3)),
    ("llama-3.2", strategy(stages=2)),
    ("llama-3.2", strategy(tensor=2)),
    ("mistral", strategy(stages=2)),
    ("mistral", strategy(tensor=2)),
    ("qwen2", strategy(stages=2)),
    ("qwen2", strategy(tensor=2)),
    ("qwen2", strategy(tensor=4)),
]


def label(value: object) -> str:
    if isinstance(value, Strategy):
        parts = {"data": value.replicas, "stages": value.stages, "tensor": value.shards}
        return " ".join(f"{name}{n}" for name, n in parts.items() if n > 1) or "single"
    return str(value)


@cache
def others_answers(name: str) -> list[Answer]:
    """transformers' greedy ids and logits, for each batch."""
    model = oracle(random_weights(SHAPES[name], torch.float32))
    batches = map(batch_of, BATCH_SIZES)
    return [
        Answer(oracle_ids(model, batch, NEW_TOKENS), oracle_logits(model, batch))
        for batch in batches
    ]


@cache
def plain_answers(name: str) -> list[Answer]:
    """The plain fp64 forward of each row alone; ids as transformers has them."""
    weights = random_weights(SHAPES[name], torch.float32)
    return [
        Answer(
            others.ids, _padded([plain_logits(weights, row) for row in prompts(size)])
        )
        for size, others in zip(BATCH_SIZES, others_answers(name), strict=True)
    ]


@cache
def single_answers(name: str) -> list[Answer]:
    return answers(World(), SHAPES[name], SINGLE)


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    length = max(map(len, rows))
    padding = [row.new_zeros(length - len(row), row.shape[1]) for row in rows]
    return torch.stack([torch.cat(pair) for pair in zip(padding, rows, strict=True)])


def check(
    expected: list[Answer],
    given: list[Answer],
    tolerance: float,
    sizes: tuple[int, ...] = BATCH_SIZES,
) -> None:
    by_size = dict(zip(BATCH_SIZES, expected, strict=True))
    for other, size in zip(given, sizes, strict=True):
        found = difference(by_size[size], other, batch_of(size), tolerance)
        assert found is None, f"batch of {size}: {found}"


def fewer_where_many(spread: Strategy) -> tuple[int, ...]:
    """Batch sizes: one will do where eight ranks share few cores."""
    return BATCH_SIZES if spread.world_size < 8 else (4,)


@pytest.mark.parametrize("name", SHAPES)
def test_the_model_alone_answers_as_transformers_does(name: str) -> None:
    check(others_answers(name), single_answers(name), TOLERANCE["float32"])


@pytest.mark.parametrize("name", SHAPES)
def test_the_model_alone_in_fp64_is_the_plain_forward(name: str) -> None:
    given = answers(World(), SHAPES[name], SINGLE, "float64")
    check(plain_answers(name), given, TOLERANCE["float64"])


@pytest.mark.parametrize(("name", "spread"), SPREADS, ids=label)
def test_a_spread_model_answers_as_transformers_does(
    name: str, spread: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    shape = SHAPES[name]
    assert not impossible(spread, shape)
    for given in ranks(spread.world_size).run(answers, shape, spread):
        check(others_answers(name), given, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("gqa", strategy(stages=2, tensor=2)),
        ("gqa", strategy(tensor=8)),
        ("six heads", strategy(tensor=3)),
        ("llama-3.2", strategy(tensor=2)),
        ("mistral", strategy(tensor=2)),
        ("qwen2", strategy(stages=2)),
    ],
    ids=label,
)
def test_a_spread_model_in_fp64_is_the_plain_forward(
    name: str, spread: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    world, sizes = ranks(spread.world_size), fewer_where_many(spread)
    for given in world.run(answers, SHAPES[name], spread, "float64", sizes):
        check(plain_answers(name), given, TOLERANCE["float64"], sizes)


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_model_parallel_gives_the_bits_of_the_model_alone(
    stages: int, ranks: Callable[[int], Ranks]
) -> None:
    alone = single_answers("nine layers")
    shape = SHAPES["nine layers"]
    for given in ranks(stages).run(answers, shape, strategy(stages=stages)):
        for one, other in zip(alone, given, strict=True):
            assert torch.equal(one.logits, other.logits)
            assert one.ids == other.ids


@pytest.mark.parametrize(
    "spread",
    [
        strategy(stages=2),
        strategy(tensor=2),
        strategy(data=2),
        strategy(stages=2, tensor=2),
        strategy(tensor=8),
    ],
    ids=label,
)
def test_sampling_draws_the_same_ids_however_the_model_is_spread(
    spread: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    shape, sizes = SHAPES["gqa"], fewer_where_many(spread)
    alone = answers(World(), shape, SINGLE, "float32", sizes, temperature=1.0)
    assert alone[-1].ids not in [one.ids for one in single_answers("gqa")]
    world = ranks(spread.world_size)
    for given in world.run(answers, shape, spread, "float32", sizes, 1.0):
        assert [one.ids for one in given] == [one.ids for one in alone]


def test_bfloat16_stays_near_fp32(ranks: Callable[[int], Ranks]) -> None:
    """Shards round their sums apart; texts may part, logits may not."""
    alone = single_answers("gqa")
    for given in ranks(2).run(answers, SHAPES["gqa"], strategy(tensor=2), "bfloat16"):
        for one, other, size in zip(alone, given, BATCH_SIZES, strict=True):
            batch = batch_of(size)
            real_BT = torch.arange(batch.length) >= batch.pad_B[:, None]
            apart = (one.logits - other.logits)[real_BT].abs().max()
            assert other.logits.dtype == torch.float32
            assert apart <= 0.1 * one.logits[real_BT].std()
