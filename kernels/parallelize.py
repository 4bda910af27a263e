"""Parallelize a model: from a shape and a strategy to this rank's engine."""

from typing import Any

import torch

from kernels.groups import Groups
from kernels.llama import Llama
from kernels.llama_engine import LlamaEngine, SequentialEngine
from kernels.model_parallel import model_parallel
from kernels.pipeline.channels import Channels
from kernels.pipeline_parallel import PipelineEngine
from kernels.placement import Placement, impossible, owned_slices, place
from kernels.shapes import ModelShape
from kernels.strategies import Strategy, StrategyError
from kernels.tensor_parallel import tensor_parallel
from kernels.weights import Progress, Weights, load_into
from kernels.world import World
from kernels.zero_offload import OffloadEngine


def parallelize(
    shape: ModelShape,
    strategy: Strategy,
    world: World,
    dtype: torch.dtype,
    weights: Weights,
    progress: Progress | None = None,
) -> LlamaEngine:
    """Load this rank's part of the model. All ranks of the world call it.

    Raises:
        StrategyError: the degrees do not fit the model or the world.
    """
    _check(shape, strategy, world)
    engine = _loaded(shape, strategy, world, dtype, weights, progress)
    engine.synchronize()  # copies to a GPU may still be under way
    return engine


def _loaded(
    shape: ModelShape,
    strategy: Strategy,
    world: World,
    dtype: torch.dtype,
    weights: Weights,
    progress: Progress | None,
) -> LlamaEngine:
    placement = place(strategy, shape, world.rank)
    groups = Groups.of(strategy, world)
    model = cut(shape, placement, groups)
    parts: dict[str, Any] = {
        "model": model,
        "strategy": strategy,
        "world": world,
        "groups": groups,
        "dtype": dtype,
    }
    if strategy.zero_offload is not None:
        return OffloadEngine(weights=weights, progress=progress, **parts)
    slices = owned_slices(placement, shape)
    load_into(model, slices, weights, world.device, dtype, progress)
    if strategy.schedule != "sequential":
        return PipelineEngine(channels=Channels(strategy, world), **parts)
    return SequentialEngine(**parts)


def _check(shape: ModelShape, strategy: Strategy, world: World) -> None:
    reasons = impossible(strategy, shape)
    if strategy.world_size != world.size:
        reasons.append(
            f"the degrees must multiply to the number of ranks: replicas {strategy.replicas} × "
            f"stages {strategy.stages} × shards {strategy.shards} for {world.size} ranks"
        )
    if reasons:
        raise StrategyError("; ".join(reasons))


def cut(shape: ModelShape, placement: Placement, groups: Groups) -> Llama:
    """Return the rank's part of the model on the meta device, joined to the other ranks' parts."""
    with torch.device("meta"):
        model = Llama(shape)
    if groups.stages.size > 1:
        model_parallel(model, placement)
    if groups.shards.size > 1:
        tensor_parallel(model, placement, groups.shards)
    return model.eval().requires_grad_(False)
