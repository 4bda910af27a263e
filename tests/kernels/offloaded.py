"""What runs inside the ranks of the offload tests."""

import os
import signal
import sys

import torch
from answers import SHAPES, batch_of, random_weights

from kernels.generate import Generation
from kernels.parallelize import parallelize
from kernels.strategies import Strategy
from kernels.world import World
from kernels.zero_offload import OffloadEngine


def build(world: World, shape: str, strategy: Strategy) -> OffloadEngine:
    """An engine of one of the toy shapes in fp32."""
    weights = random_weights(SHAPES[shape], torch.float32)
    engine = parallelize(SHAPES[shape], strategy, world, torch.float32, weights)
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


def killed(world: World, strategy: Strategy, victim: int, token: int) -> None:
    """Generate without end; one rank is killed after a token, the others leave on an error.

    They leave as a program does, with their reading threads still at work.
    """
    engine = build(world, "nine layers", strategy)

    def on_token(index: int) -> None:
        if index == token and world.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        engine.generate(batch_of(4), Generation(new_tokens=200), on_token)
    except RuntimeError:
        sys.exit(7)
