"""What runs inside the ranks of the offload tests."""

import torch
from answers import SHAPES, batch_of, random_weights

from kernels.generate import Generation
from kernels.placement import Strategy
from kernels.strategy import spread
from kernels.world import World
from kernels.zero_offload import OffloadEngine


def build(world: World, shape: str, strategy: Strategy) -> OffloadEngine:
    """An engine of one of the toy shapes in fp32."""
    weights = random_weights(SHAPES[shape], torch.float32)
    engine = spread(SHAPES[shape], strategy, world, torch.float32, weights)
    assert isinstance(engine, OffloadEngine)
    return engine


def streamed_names(
    world: World, shape: str, strategy: Strategy
) -> tuple[int, list[str]]:
    """This rank's weight bytes, and what came through its ring in two tokens."""
    engine = build(world, shape, strategy)
    seen: list[str] = []
    right = engine.streamer.lend

    def lend(name: str):  # type: ignore[no-untyped-def]
        seen.append(name)
        return right(name)

    engine.streamer.lend = lend  # type: ignore[method-assign]
    engine.generate(batch_of(4), Generation(new_tokens=2))
    held = engine.weight_bytes
    engine.close()
    return held, seen
