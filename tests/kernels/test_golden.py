"""One stored text: should it change, every number measured before was of another model."""

import torch
from answers import SHAPES

from kernels.generate import Batch, Generation
from kernels.parallelize import parallelize
from kernels.strategies import Parallel, Single
from kernels.weights import RandomWeights
from kernels.world import World

GREEDY = [
    1, 110, 23, 105, 105, 105, 105, 73, 105, 1, 49, 65, 105, 105, 49, 45,
    45, 45, 105, 49, 65, 49, 65, 49, 65, 45, 45, 45, 45, 45, 45, 45,
]  # fmt: skip
SAMPLED = [
    5, 49, 97, 108, 102, 41, 105, 105, 21, 57, 9, 120, 75, 41, 105, 130,
    105, 41, 121, 86, 114, 104, 123, 104, 105, 62, 6, 65, 49, 105, 16, 23,
]  # fmt: skip


def text(temperature: float) -> list[int]:
    """32 ids of the toy from weight seed 0, in fp64: rounding does not reach the choice."""
    weights = RandomWeights(SHAPES["gqa"], 0, torch.float64)
    single = Parallel(single=Single())
    engine = parallelize(weights.shape, single, World(), torch.float64, weights)
    generation = Generation(new_tokens=32, temperature=temperature, seed=11)
    ids: list[int] = engine.generate(Batch.of([[1, 20, 30]]), generation)[0].tolist()
    return ids


def test_the_toys_greedy_text_is_the_stored_one() -> None:
    assert text(0.0) == GREEDY


def test_the_toys_sampled_text_is_the_stored_one() -> None:
    assert text(0.8) == SAMPLED
