"""A model of four times the memory budget, in a process of its own: prints the ids as JSON.

Usage: python larger_than_memory.py LAYERS single | zero-offload BUDGET_BYTES
"""

import dataclasses
import json
import sys

import torch

from kernels.generate import Batch, Generation
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape
from kernels.strategies import Parallel, Single, ZeroOffload
from kernels.weights import RandomWeights
from kernels.world import World

SHAPE = ModelShape(
    dim=768, n_layers=1, n_heads=12, n_kv_heads=6, ffn_dim=2048, vocab_size=4000
)


def shape_of(layers: int) -> ModelShape:
    """The model of so many layers."""
    return dataclasses.replace(SHAPE, n_layers=layers)


def main(layers: int, name: str, budget_bytes: int) -> None:
    torch.set_num_threads(1)
    shape = shape_of(layers)
    offload = ZeroOffload(source="disk", memory_budget_bytes=budget_bytes or None)
    single = Parallel(single=Single())
    strategy = Parallel(zero_offload=offload) if name == "zero-offload" else single
    weights = RandomWeights(shape, 0, torch.float32)
    engine = parallelize(shape, strategy, World(), torch.float32, weights)
    ids = engine.generate(Batch.of([[1, 2, 3], [4]]), Generation(new_tokens=3))
    engine.close()
    print(json.dumps(ids.tolist()))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
