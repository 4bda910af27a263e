"""What runs inside the ranks of the pipeline tests."""

import os
import signal
import time

import torch
from answers import SHAPES, batch_of, random_weights
from torch import Tensor, nn

from kernels.cache import KVCache
from kernels.generate import Generation
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.strategies import Strategy
from kernels.world import World


def build(world: World, shape: str, strategy: Strategy) -> LlamaEngine:
    """An engine of one of the toy shapes in fp32."""
    weights = random_weights(SHAPES[shape], torch.float32)
    return parallelize(SHAPES[shape], strategy, world, torch.float32, weights)


def head_bits(
    world: World, shape: str, strategy: Strategy, rows: int
) -> tuple[list[list[int]], list[Tensor]]:
    """The ids and, on the last stage, what the output head gave for each of them."""
    engine = build(world, shape, strategy)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        seen.append(out.clone())

    if engine.model.output is not None:
        engine.model.output.register_forward_hook(keep)
    ids = engine.generate(batch_of(rows), Generation(new_tokens=6)).tolist()
    engine.close()
    return ids, seen


def called_back(world: World, strategy: Strategy) -> list[int]:
    """The tokens that `on_token` was told of, in order."""
    engine = build(world, "nine layers", strategy)
    told: list[int] = []
    engine.generate(batch_of(4), Generation(new_tokens=5), told.append)
    engine.close()
    return told


def until_their_end(
    world: World, shape: str, strategy: Strategy, eos_ids: tuple[int, ...]
) -> list[list[int]]:
    """Greedy ids of rows that end at end tokens."""
    engine = build(world, shape, strategy)
    generation = Generation(new_tokens=12, eos_ids=eos_ids, stop_at_eos=True)
    ids = engine.generate(batch_of(7), generation).tolist()
    engine.close()
    return ids


def with_one_cache_for_all(world: World, strategy: Strategy) -> list[list[int]]:
    """Ids where every micro-batch writes to the cache of the first: what must not happen."""
    right = KVCache.part

    def wrong(cache: KVCache, rows: range) -> KVCache:
        part = right(cache, range(len(rows)))
        part.pad_B = cache.pad_B[rows.start : rows.stop]
        return part

    engine = build(world, "nine layers", strategy)
    KVCache.part = wrong  # type: ignore[method-assign]
    try:
        return engine.generate(batch_of(4), Generation(new_tokens=12)).tolist()
    finally:
        KVCache.part = right  # type: ignore[method-assign]
        engine.close()


def killed(world: World, strategy: Strategy, victim: int, token: int) -> None:
    """Generate without end; one rank is killed after a token, the others leave on an error."""
    engine = build(world, "nine layers", strategy)

    def on_token(index: int) -> None:
        time.sleep(0.01)
        if index == token and world.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        engine.generate(batch_of(4), Generation(new_tokens=200), on_token)
    except RuntimeError:
        os._exit(7)


def tokens_until_all_ended(
    world: World, strategy: Strategy, eos_ids: tuple[int, ...]
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Ids of rows that all end early, the tokens that were worked on, and ids without an end."""
    engine = build(world, "nine layers", strategy)
    told: list[int] = []
    ending = Generation(new_tokens=60, eos_ids=eos_ids, stop_at_eos=True)
    ended = engine.generate(batch_of(4), ending, told.append).tolist()
    after = engine.generate(batch_of(4), Generation(new_tokens=12)).tolist()
    engine.close()
    return ended, told, after
