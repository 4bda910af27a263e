"""The profile on the device at hand, and what the partitioner makes of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ranks import Ranks

from jobs.profiling.profile_layers import hop_s, profile_layers
from kernels.pipeline.layer_costs import LayerTimes, Load, layer_costs
from kernels.pipeline.partition import Device, partition
from kernels.shapes import ModelShape, kv_bytes_per_token, weight_bytes
from kernels.world import World

SHAPE = ModelShape(
    dim=64, n_layers=6, n_heads=4, n_kv_heads=2, ffn_dim=176, vocab_size=512
)
LOAD = Load(dtype="float32", rows=2, rows_in_flight=8, context=20)
TIMES = LayerTimes(layer_s=2.0, embedding_s=0.5, head_s=3.0)


def test_the_costs_of_all_layers_are_the_model_s() -> None:
    costs = layer_costs(TIMES, SHAPE, LOAD)
    norm = 4 * SHAPE.dim
    assert sum(each.weight_bytes for each in costs) == (
        weight_bytes(SHAPE, "float32") - norm
    )
    assert sum(each.kv_bytes for each in costs) == (
        8 * 20 * kv_bytes_per_token(SHAPE, "float32")
    )
    assert [each.seconds for each in costs] == [2.5, 2.0, 2.0, 2.0, 2.0, 5.0]
    assert {each.activation_bytes for each in costs} == {2 * 64 * 4}


def test_a_profile_shows_that_a_large_vocabulary_makes_a_heavy_head() -> None:
    """By far: no clock of a busy machine can turn it round."""
    heavy = replace(SHAPE, vocab_size=200_000)
    times = profile_layers(heavy, LOAD, torch.device("cpu"))
    assert times.head_s > 10 * times.layer_s
    split = partition(layer_costs(times, heavy, LOAD), [Device()] * 2).split
    assert split == (5, 1)


def test_a_profile_needs_no_more_layers_than_the_model_has() -> None:
    times = profile_layers(replace(SHAPE, n_layers=1), LOAD, torch.device("cpu"))
    assert min(times.layer_s, times.embedding_s, times.head_s) > 0


def hop(world: World) -> float:
    everyone = world.group(range(world.size))
    try:
        return hop_s(everyone, world.device, 1000, to=1)
    finally:
        everyone.close()


def test_all_ranks_agree_on_the_time_of_a_hop(ranks: Callable[[int], Ranks]) -> None:
    seconds = ranks(3).run(hop)
    assert seconds == [pytest.approx(seconds[0], rel=0)] * 3
    assert 0 < seconds[0] < 1
