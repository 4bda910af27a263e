"""PipeDream's partition of layers into stages, forward only. Numbers in, integers out, no torch.

A dynamic programme over prefixes: the best way to split the first `j` layers over the first
`m` devices ends with one stage that takes the layers after some `k` on the last `d` devices
(d > 1: sharded by tensor parallelism), so

    best[j][m] = min over k, d of max(best[k][m - d], time of layers k..j on d devices)

(PipeDream, SOSP 2019, section 3.1; its `inference_optimizer_graph.py` for the forward-only
form.) The slowest stage sets the rate of a full pipeline. Among partitions with the same
slowest stage, the one with the most even stages is taken.

For Llama-2 on equal devices this is the equal split. It matters where the output head is heavy
(Llama-3's weighs two layers and more), where devices differ in speed or memory, and where layers
do not divide by stages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kernels.pipeline.layer_costs import LayerCost


class PartitionError(ValueError):
    """No partition exists; the message says what was asked and what there is."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a stage may run on."""

    memory_bytes: float = math.inf
    """For weights, keys and values."""
    speed: float = 1.0
    """How many times as fast as the device of the profile."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """How devices are connected; by default at no cost."""

    bytes_per_s: float = math.inf
    latency_s: float = 0.0

    def hop_s(self, num_bytes: int) -> float:
        """Return the time to send a tensor to the next stage."""
        return self.latency_s + num_bytes / self.bytes_per_s

    def all_reduce_s(self, num_bytes: int, degree: int) -> float:
        """Return the time to sum a tensor over `degree` devices, in a ring."""
        if degree == 1:
            return 0.0
        return self.latency_s + 2 * (degree - 1) / degree * num_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Layers that run on the same devices."""

    layers: range
    devices: range
    """More than one: the tensor degree."""
    seconds: float
    """Of one micro-batch, with the message that brings it."""


@dataclass(frozen=True)
class Partition:
    """The stages, first one first."""

    stages: tuple[Stage, ...]

    @property
    def split(self) -> tuple[int, ...]:
        """Layers of each stage, as the option `split` has them."""
        return tuple(len(stage.layers) for stage in self.stages)


_Cost = Callable[[int, int, int, int], float]
"""Layers from, to, devices from, to → cost of that stage, infinite if it does not fit."""


def partition(
    layers: Sequence[LayerCost],
    devices: Sequence[Device],
    link: Link = Link(),
    degrees: Sequence[int] = (1,),
) -> Partition:
    """Return the stages whose slowest is fastest; all devices are used, in their order.

    Args:
        degrees: how many devices one stage may take, to shard its layers over.

    Raises:
        PartitionError: the layers do not fit, however they are split.
    """
    cost = _stage_cost(layers, devices, link)
    # Twice: first the time of the slowest stage alone, then the most even stages that keep it,
    # which are those with the least sum of squares.
    slowest, _ = _programme(len(layers), len(devices), degrees, cost, max)
    if math.isinf(slowest):
        raise PartitionError(_reason(layers, devices, degrees))

    def squared(*stage: int) -> float:
        seconds = cost(*stage)
        return math.inf if seconds > slowest else seconds**2

    _, cuts = _programme(
        len(layers), len(devices), degrees, squared, lambda a, b: a + b
    )
    return Partition(
        tuple(
            Stage(
                layers=range(k, j), devices=range(n, m), seconds=cost(k, j, n, m)
            )
            for k, j, n, m in cuts
        )
    )  # fmt: skip


def _stage_cost(
    layers: Sequence[LayerCost], devices: Sequence[Device], link: Link
) -> _Cost:
    seconds = [0.0, *accumulate(layer.seconds for layer in layers)]
    held = [0, *accumulate(layer.weight_bytes + layer.kv_bytes for layer in layers)]
    sent = [layer.activation_bytes for layer in layers]

    def cost(k: int, j: int, n: int, m: int) -> float:
        degree = m - n
        memory_bytes = min(device.memory_bytes for device in devices[n:m])
        if (held[j] - held[k]) / degree > memory_bytes:
            return math.inf
        # Shards wait for each other, so the slowest device sets the pace of its stage.
        speed = min(device.speed for device in devices[n:m])
        compute = (seconds[j] - seconds[k]) / degree / speed
        # Two a layer: after attention and after the feed-forward network.
        all_reduces = sum(2 * link.all_reduce_s(each, degree) for each in sent[k:j])
        return compute + all_reduces + (link.hop_s(sent[k - 1]) if k else 0.0)

    return cost


def _programme(
    num_layers: int,
    num_devices: int,
    degrees: Sequence[int],
    cost: _Cost,
    combine: Callable[[float, float], float],
) -> tuple[float, list[tuple[int, int, int, int]]]:
    """Return the least total cost and its stages (k, j, n, m); no stages if it is infinite.

    Args:
        cost: of one stage.
        combine: adds a stage's cost to that of the stages before it.
    """
    best = {(0, 0): 0.0}
    previous: dict[tuple[int, int], tuple[int, int]] = {}
    """Layers and devices (j, m) → those (k, n) before the last stage of the best split."""
    for m in range(1, num_devices + 1):
        for j in range(1, num_layers + 1):
            best[j, m] = math.inf
            for n in sorted({m - degree for degree in degrees if degree <= m}):
                for k in range(j):
                    # Costs are never negative, so this start cannot become the better one.
                    if best.get((k, n), math.inf) >= best[j, m]:
                        continue
                    total = combine(best[k, n], cost(k, j, n, m))
                    if total < best[j, m]:
                        best[j, m], previous[j, m] = total, (k, n)
    least = best[num_layers, num_devices]
    cuts: list[tuple[int, int, int, int]] = []
    j, m = num_layers, num_devices
    while not math.isinf(least) and (j, m) != (0, 0):
        k, n = previous[j, m]
        cuts.append((k, j, n, m))
        j, m = k, n
    return least, cuts[::-1]


def _reason(
    layers: Sequence[LayerCost], devices: Sequence[Device], degrees: Sequence[int]
) -> str:
    needed = sum(layer.weight_bytes + layer.kv_bytes for layer in layers)
    room = sum(device.memory_bytes for device in devices)
    return (
        f"the layers must fit their stages, each stage on one of {list(degrees)} devices: "
        f"{len(layers)} layers need {needed} bytes, {len(devices)} devices have {room}; "
        f"take more devices, a smaller batch or another tensor degree"
    )
