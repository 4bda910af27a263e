"""What a spread model answers to ragged batches, and whether two answers are the same.

`answers` runs inside the ranks; `difference` is the one comparison that the parity tests trust
and that the negative controls must set off.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape, RopeScaling
from kernels.strategies import Strategy
from kernels.weights import RandomWeights, Weights, open_weights
from kernels.world import World

BATCH_SIZES = (1, 4, 7)
NEW_TOKENS = 12
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


def toy(**changes: Any) -> ModelShape:
    """A small shape with an odd vocabulary and odd feed-forward width: shards are uneven."""
    sizes = {"dim": 48, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4}
    sizes |= {"ffn_dim": 97, "vocab_size": 131, "head_dim": 8, "max_seq_len": 256}
    return ModelShape(**(sizes | changes))


SHAPES = {
    "gqa": toy(),
    "mha": toy(n_kv_heads=8, n_layers=2),
    "one KV head": toy(n_kv_heads=1, n_layers=2),
    "nine layers": toy(n_layers=9, dim=32, head_dim=4),
    "six heads": toy(n_heads=6, n_kv_heads=3),
    "llama-3.2": toy(
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor=32.0, original_max_seq_len=16),
        tied_embeddings=True,
    ),
    "mistral": toy(sliding_window=5),
    "qwen2": toy(qkv_bias=True, norm_eps=1e-6, rope_theta=1e6, tied_embeddings=True),
}


def prompts(batch_size: int, vocab_size: int = 131) -> list[list[int]]:
    """Ragged prompts, of 3 to 17 tokens; the same rows whatever the batch."""
    generator = torch.Generator().manual_seed(7)
    lengths = [9, 3, 17, 5, 12, 4, 16][:batch_size]
    return [
        torch.randint(1, vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]


def batch_of(batch_size: int) -> Batch:
    """The ragged prompts as a batch."""
    return Batch.of(prompts(batch_size))


@cache
def random_weights(shape: ModelShape, dtype: torch.dtype) -> RandomWeights:
    """The toy's weights: fp32 numbers for every dtype."""
    return RandomWeights(shape, 3, dtype)


@dataclass(frozen=True)
class Answer:
    """What a model says to one batch."""

    ids: list[list[int]]
    logits: Tensor = field(repr=False)
    """[B, T, V]"""


def answers(
    world: World,
    source: ModelShape | Path,
    strategy: Strategy,
    dtype: str = "float32",
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    temperature: float = 0.0,
    spoil: Callable[[LlamaEngine], None] | None = None,
) -> list[Answer]:
    """This rank's answer to each batch.

    Args:
        source: a checkpoint's folder, or a shape with random weights.
        spoil: breaks the engine before it answers, for negative controls.
    """
    if isinstance(source, ModelShape):
        weights: Weights = random_weights(source, torch.float32)
    else:
        weights = open_weights(source)
    engine = parallelize(weights.shape, strategy, world, getattr(torch, dtype), weights)
    if spoil is not None:
        spoil(engine)
    generation = Generation(new_tokens=NEW_TOKENS, temperature=temperature, seed=5)
    given = [
        Answer(engine.generate(batch, generation).tolist(), engine.logits(batch))
        for batch in map(batch_of, batch_sizes)
    ]
    engine.close()
    return given


def difference(
    expected: Answer, given: Answer, batch: Batch, tolerance: float
) -> str | None:
    """How two answers to a batch differ, or None. Padding is left out of the comparison."""
    if expected.logits.shape != given.logits.shape:
        return f"logits are {list(given.logits.shape)}"
    real_BT = torch.arange(batch.length) >= batch.pad_B[:, None]
    apart_BTV = (expected.logits.double() - given.logits.double()).abs()
    if not bool(torch.isfinite(apart_BTV[real_BT]).all()):
        return "logits are not finite"
    worst = float(apart_BTV[real_BT].max())
    if worst > tolerance:
        return f"logits differ by {worst:.2g}, more than {tolerance:g}"
    if expected.ids != given.ids:
        return f"ids differ:\n{expected.ids}\n{given.ids}"
    return None
