"""Cutting a model for a rank, without processes, and what `spread` refuses."""

from collections.abc import Callable

import pytest
import torch
from answers import SHAPES, random_weights
from ranks import Ranks
from torch import nn

from kernels.groups import Groups
from kernels.llama import Attention, Llama
from kernels.parallelize import cut, parallelize
from kernels.placement import axis_groups, owned_slices, place
from kernels.shapes import KNOWN, ModelShape, num_elements, tensors, weight_bytes
from kernels.strategies import (
    ModelParallel,
    Parallel,
    Single,
    Strategy,
    StrategyError,
    TensorParallel,
)
from kernels.world import Group, World


def cut_for(shape: ModelShape, strategy: Strategy, rank: int) -> Llama:
    """The rank's part on the meta device; its groups are never talked over."""
    mine = {
        axis: next(Group(group, rank, None) for group in groups if rank in group)
        for axis, groups in axis_groups(strategy).items()
    }
    return cut(shape, place(strategy, shape, rank), Groups(**mine))


@pytest.mark.parametrize("name", ["llama-2-70b", "llama-3.2-1b", "qwen2.5-7b"])
@pytest.mark.parametrize(
    "strategy",
    [
        Parallel(single=Single()),
        Parallel(model=ModelParallel(degree=3)),
        Parallel(tensor=TensorParallel(degree=4)),
        Parallel(model=ModelParallel(degree=2), tensor=TensorParallel(degree=2)),
    ],
    ids=lambda one: "+".join(one.names),
)
def test_a_rank_holds_the_slices_of_its_placement(
    name: str, strategy: Strategy
) -> None:
    shape = KNOWN[name]
    for rank in range(strategy.world_size):
        model = cut_for(shape, strategy, rank)
        held = {key: list(p.shape) for key, p in model.named_parameters()}
        expected = {}
        for key, part in owned_slices(place(strategy, shape, rank), shape).items():
            dims = list(tensors(shape)[part.source])
            if part.owned is not None:
                dims[part.dim] = len(part.owned)
            expected[key] = dims
        assert held == expected


def test_local_head_counts_belong_to_the_attention_not_to_the_shape() -> None:
    shape = KNOWN["llama-2-70b"]
    model = cut_for(shape, Parallel(tensor=TensorParallel(degree=8)), rank=5)
    assert model.shape is shape
    heads = {
        (module.n_heads, module.n_kv_heads)
        for module in model.modules()
        if isinstance(module, Attention)
    }
    assert heads == {(8, 1)}


def test_linears_know_their_local_sizes() -> None:
    model = cut_for(SHAPES["gqa"], Parallel(tensor=TensorParallel(degree=4)), rank=3)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


def test_each_half_block_is_summed_once() -> None:
    model = cut_for(SHAPES["gqa"], Parallel(tensor=TensorParallel(degree=4)), rank=0)
    summed = sorted(
        name.split(".", 2)[2]
        for name, module in model.named_modules()
        if module._forward_hooks
    )
    assert summed == ["attention.wo"] * 3 + ["feed_forward.w2"] * 3


def test_layers_keep_their_names_on_their_stage() -> None:
    model = cut_for(
        SHAPES["nine layers"], Parallel(model=ModelParallel(degree=2)), rank=1
    )
    assert list(model.layers) == ["5", "6", "7", "8"]
    assert model.tok_embeddings is None
    assert model.output is not None


def weight_bytes_of(world: World, shape: ModelShape, strategy: Strategy) -> int:
    weights = random_weights(shape, torch.float32)
    engine = parallelize(shape, strategy, world, torch.bfloat16, weights)
    engine.close()
    return engine.weight_bytes


def test_a_tied_head_shares_its_memory_with_the_embedding() -> None:
    shape = SHAPES["qwen2"]
    held = weight_bytes_of(World(), shape, Parallel(single=Single()))
    assert held == weight_bytes(shape, "bfloat16")


def test_weight_bytes_are_those_of_the_rank(ranks: Callable[[int], Ranks]) -> None:
    shape = SHAPES["gqa"]
    shards = Parallel(tensor=TensorParallel(degree=2))
    norms = (2 * shape.n_layers + 1) * shape.dim * 2
    held = ranks(2).run(weight_bytes_of, shape, shards)
    assert sum(held) == weight_bytes(shape, "bfloat16") + norms
    stages = Parallel(model=ModelParallel(degree=2))
    held = ranks(2).run(weight_bytes_of, shape, stages)
    assert sum(held) == weight_bytes(shape, "bfloat16")
    embedding = num_elements(tensors(shape)["tok_embeddings.weight"]) * 2
    assert held[0] > embedding


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (Parallel(tensor=TensorParallel(degree=3)), "3 does not divide 8"),
        (
            Parallel(tensor=TensorParallel(degree=4)),
            "replicas 1 × stages 1 × shards 4 for 1 ranks",
        ),
    ],
    ids=["degree", "world"],
)
def test_what_fits_neither_model_nor_world_is_refused_before_loading(
    strategy: Strategy, says: str
) -> None:
    shape = SHAPES["gqa"]
    weights = random_weights(shape, torch.float32)
    with pytest.raises(StrategyError, match=says):
        parallelize(shape, strategy, World(), torch.float32, weights)


def test_progress_is_told_of_every_byte() -> None:
    shape = SHAPES["gqa"]
    told: list[tuple[int, int]] = []
    weights = random_weights(shape, torch.float32)
    parallelize(
        shape,
        Parallel(single=Single()),
        World(),
        torch.float32,
        weights,
        lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (weight_bytes(shape, "float32"),) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)
