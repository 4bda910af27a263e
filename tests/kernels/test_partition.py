"""PipeDream's dynamic programme: optimal, within memory, and equal where equal is best."""

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.pipeline.layer_costs import (
    LayerCost,
    LayerTimes,
    Load,
    layer_bytes,
    layer_costs,
)
from kernels.pipeline.partition import (
    Device,
    Link,
    Partition,
    PartitionError,
    partition,
)
from kernels.placement import split_evenly
from kernels.shapes import KNOWN


def layer(seconds: float, num_bytes: int = 0, activations: int = 0) -> LayerCost:
    return LayerCost(
        seconds=seconds,
        weight_bytes=num_bytes,
        kv_bytes=0,
        activation_bytes=activations,
    )


def compositions(total: int, parts: tuple[int, ...] | None) -> Iterator[list[int]]:
    if total == 0:
        yield []
    for first in parts or range(1, total + 1):
        if first <= total:
            yield from ([first, *rest] for rest in compositions(total - first, parts))


def brute_force(
    layers: list[LayerCost], devices: list[Device], link: Link, degrees: tuple[int, ...]
) -> float:
    """The slowest stage of the best of all partitions, each one tried."""
    best = math.inf
    for shards in compositions(len(devices), degrees):
        for counts in compositions(len(layers), None):
            if len(counts) == len(shards):
                best = min(best, slowest(layers, devices, link, counts, shards))
    return best


def slowest(
    layers: list[LayerCost],
    devices: list[Device],
    link: Link,
    counts: list[int],
    shards: list[int],
) -> float:
    worst, at, first = 0.0, 0, 0
    for count, degree in zip(counts, shards, strict=True):
        mine, on = layers[at : at + count], devices[first : first + degree]
        held = sum(each.weight_bytes + each.kv_bytes for each in mine) / degree
        if any(held > device.memory_bytes for device in on):
            return math.inf
        speed = min(device.speed for device in on)
        time = sum(each.seconds for each in mine) / degree / speed
        for each in mine if degree > 1 else ():
            moved = 2 * (degree - 1) / degree * each.activation_bytes
            time += 2 * (link.latency_s + moved / link.bytes_per_s)
        if at:
            time += link.latency_s + layers[at - 1].activation_bytes / link.bytes_per_s
        worst, at, first = max(worst, time), at + count, first + degree
    return worst


some_layers = st.builds(
    LayerCost,
    seconds=st.integers(0, 20).map(float),
    weight_bytes=st.integers(0, 9),
    kv_bytes=st.integers(0, 3),
    activation_bytes=st.integers(0, 6),
)
some_devices = st.builds(
    Device,
    memory_bytes=st.sampled_from([math.inf, math.inf, 30.0, 18.0]),
    speed=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
)
links = st.builds(
    Link,
    bytes_per_s=st.sampled_from([math.inf, 1.0, 4.0]),
    latency_s=st.sampled_from([0.0, 0.5]),
)


@given(
    st.lists(some_layers, min_size=1, max_size=9),
    st.lists(some_devices, min_size=1, max_size=4),
    links,
    st.sampled_from([(1,), (2,), (1, 2), (1, 2, 4)]),
)
def test_it_is_as_good_as_the_best_of_all_partitions(
    layers: list[LayerCost],
    devices: list[Device],
    link: Link,
    degrees: tuple[int, ...],
) -> None:
    expected = brute_force(layers, devices, link, degrees)
    if math.isinf(expected):
        with pytest.raises(PartitionError):
            partition(layers, devices, link, degrees)
        return
    found = partition(layers, devices, link, degrees)
    assert slowest_s(found) == pytest.approx(expected)


@given(
    st.lists(some_layers, min_size=4, max_size=9),
    st.lists(some_devices, min_size=1, max_size=4),
)
def test_stages_follow_each_other_and_hold_all_layers_and_devices(
    layers: list[LayerCost], devices: list[Device]
) -> None:
    try:
        stages = partition(layers, devices, degrees=(1, 2)).stages
    except PartitionError:
        return
    assert stages[0].layers.start == stages[0].devices.start == 0
    assert stages[-1].layers.stop == len(layers)
    assert stages[-1].devices.stop == len(devices)
    for before, after in pairwise(stages):
        assert before.layers.stop == after.layers.start
        assert before.devices.stop == after.devices.start
    assert all(stage.layers and stage.devices for stage in stages)


def slowest_s(found: Partition) -> float:
    return max(stage.seconds for stage in found.stages)


def llama(name: str) -> list[LayerCost]:
    """The layers where reading the weights from memory is all that counts."""
    load = Load(dtype="bfloat16", rows=4, rows_in_flight=4, context=0)
    shape, bytes_per_s = KNOWN[name], 1.7e12
    row = load.width * shape.dim
    times = LayerTimes(
        layer_s=layer_bytes(shape, load) / bytes_per_s,
        embedding_s=load.rows * row / bytes_per_s,
        head_s=shape.vocab_size * row / bytes_per_s,
    )
    return layer_costs(times, shape, load)


def ideal(layers: list[LayerCost], devices: int) -> float:
    return sum(each.seconds for each in layers) / devices


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("model", ["llama-2-7b", "llama-2-13b", "llama-2-70b"])
def test_equal_layers_are_best_for_llama_2(model: str, devices: int) -> None:
    found = partition(llama(model), [Device()] * devices)
    equal = split_evenly(KNOWN[model].n_layers, devices)
    assert [stage.layers for stage in found.stages] == equal


@pytest.mark.parametrize(
    ("model", "excess"),
    [("llama-2-7b", 1.060), ("llama-2-13b", 1.038), ("llama-2-70b", 1.011)],
)
def test_the_head_makes_the_last_of_four_stages_the_slowest_of_llama_2(
    model: str, excess: float
) -> None:
    layers = llama(model)
    found = partition(layers, [Device()] * 4)
    assert slowest_s(found) / ideal(layers, 4) == pytest.approx(excess, abs=1e-3)


def test_it_beats_the_equal_split_where_the_head_is_as_heavy_as_llama_3_has_it() -> (
    None
):
    layers, devices = llama("llama-3-8b"), [Device()] * 4
    found = partition(layers, devices)
    assert sorted(found.split[:3]) == [8, 9, 9]
    assert found.split[3] == 6
    equal = max(
        sum(layers[index].seconds for index in stage) for stage in split_evenly(32, 4)
    )
    assert slowest_s(found) / ideal(layers, 4) == pytest.approx(1.046, abs=1e-3)
    assert equal / ideal(layers, 4) == pytest.approx(1.210, abs=1e-3)


def test_a_device_twice_as_fast_takes_twice_the_layers() -> None:
    found = partition([layer(1.0)] * 9, [Device(speed=2.0), Device()])
    assert found.split == (6, 3)


def test_a_small_memory_takes_fewer_layers_than_its_speed_would_allow() -> None:
    devices = [Device(memory_bytes=20), Device()]
    found = partition([layer(1.0, num_bytes=10)] * 8, devices)
    assert found.split == (2, 6)


def test_a_heavy_layer_is_sharded_where_that_is_allowed() -> None:
    layers = [layer(1.0), layer(1.0), layer(4.0)]
    found = partition(layers, [Device()] * 3, degrees=(1, 2))
    assert [len(stage.devices) for stage in found.stages] == [1, 2]
    assert slowest_s(found) == 2.0


def test_a_slow_link_is_crossed_where_the_activations_are_small() -> None:
    layers = [layer(1.0, activations=each) for each in (9, 9, 1, 9)]
    found = partition(layers, [Device()] * 2, Link(bytes_per_s=1.0))
    assert found.split == (3, 1)


def test_ties_are_broken_towards_even_stages() -> None:
    layers = [layer(1.0)] * 6 + [layer(4.0)]
    assert partition(layers, [Device()] * 3).split == (3, 3, 1)


def test_more_devices_than_layers_is_refused_with_the_numbers() -> None:
    with pytest.raises(PartitionError, match=r"2 layers .* 3 devices"):
        partition([layer(1.0)] * 2, [Device()] * 3)
