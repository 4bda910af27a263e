"""Spread a model over the ranks: from a shape and a strategy to an engine."""

from typing import Any

import torch

from kernels.engine import Engine, SequentialEngine
from kernels.groups import Groups
from kernels.llama import Llama
from kernels.model_parallel import model_parallel
from kernels.pipeline.channels import Channels
from kernels.pipeline_parallel import PipelineEngine
from kernels.placement import Placement, Strategy, impossible, owned_slices, place
from kernels.shapes import ModelShape
from kernels.tensor_parallel import tensor_parallel
from kernels.weights import Progress, Weights, load_into
from kernels.world import World
from kernels.zero_offload import OffloadEngine


class StrategyError(ValueError):
    """A model that cannot be spread so, or not over this world; the message says why."""


def spread(
    shape: ModelShape,
    strategy: Strategy,
    world: World,
    dtype: torch.dtype,
    weights: Weights,
    progress: Progress | None = None,
) -> Engine:
    """This rank's part of the model, its weights loaded. All ranks of the world call it.

    Raises:
        StrategyError: the degrees fit neither the model nor the world.
    """
    _check(shape, strategy, world)
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
    if strategy.offloads:
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
            f"the degrees must multiply to the number of ranks: data {strategy.data} × stages "
            f"{strategy.stages} × tensor {strategy.tensor} for {world.size} ranks"
        )
    if strategy.offloads and strategy.schedule != "sequential":
        reasons.append(
            f"zero-offload streams each layer once a pass: schedule {strategy.schedule} would "
            f"need it once a micro-batch; take model or tensor with zero-offload"
        )
    if reasons:
        raise StrategyError("; ".join(reasons))


def cut(shape: ModelShape, placement: Placement, groups: Groups) -> Llama:
    """The rank's part of the model on the meta device, joined to the other ranks' parts."""
    with torch.device("meta"):
        model = Llama(shape)
    model_parallel(model, placement)
    if groups.shards.size > 1:
        tensor_parallel(model, placement, groups.shards)
    return model.eval().requires_grad_(False)
