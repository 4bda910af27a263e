"""`balance: profiled`: the layers of each stage, by PipeDream's partition of a profile.

Every kind of device of the case is profiled once, as decode uses it. The profiles are kept in
the user's cache folder, by all that they depend on, so that the next case finds them.
"""

import hashlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.environment import cpu_model
from jobs.profiling.profile_layers import hop_s, profile_layers
from kernels.pipeline.layer_costs import LayerTimes, Load, layer_costs
from kernels.pipeline.partition import Device, Link, partition
from kernels.shapes import ModelShape
from kernels.strategies import Strategy
from kernels.world import World, object_gatherer
from orchestrator.case import Case
from orchestrator.study.files import write_whole

_ROOM = 0.9
"""Of a GPU's free memory, what weights and cache may take; the rest is for the computation."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one rank found its device to be."""

    name: str
    times: LayerTimes
    memory_bytes: float


def with_profiled_split(
    case: Case,
    shape: ModelShape,
    context: int,
    world: World,
    gatherer: Callable[[World], Callable[[Found], list[Found]]] = object_gatherer,
) -> Strategy:
    """Return the case's strategy with the layers of each stage from a profile. All ranks call it.

    Args:
        context: tokens of a sequence, prompt and new ones.
        gatherer: makes the function that gives every rank what all of them found.

    Raises:
        PartitionError: the model does not fit the devices, however it is split.
    """
    strategy = case.strategy
    in_flight = strategy.in_flight or case.batch_size
    load = Load(
        dtype=case.dtype,
        rows=-(-in_flight // strategy.micro_batches),
        rows_in_flight=in_flight,
        context=context,
    )
    found = gatherer(world)(_find(shape, load, world))
    link = Link(latency_s=_hop_s(strategy, world, load.rows * shape.dim * load.width))
    return strategy.with_split(split_for(strategy, shape, load, found, link))


def split_for(
    strategy: Strategy, shape: ModelShape, load: Load, found: list[Found], link: Link
) -> tuple[int, ...]:
    """Return the layers per stage, from what the ranks found; the first replica stands for all."""
    names = {each.name for each in found}
    times = {name: _typical(found, name) for name in names}
    first = times[found[0].name]
    devices = [
        Device(
            memory_bytes=each.memory_bytes,
            speed=first.layer_s / times[each.name].layer_s,
        )
        for each in found[: strategy.stages * strategy.shards]
    ]
    costs = layer_costs(first, shape, load)
    return partition(costs, devices, link, degrees=(strategy.shards,)).split


def _typical(found: list[Found], name: str) -> LayerTimes:
    # Equal devices count as equal, whatever disturbed the one or other profile.
    mine = [each.times for each in found if each.name == name]
    return LayerTimes(
        layer_s=statistics.median(each.layer_s for each in mine),
        embedding_s=statistics.median(each.embedding_s for each in mine),
        head_s=statistics.median(each.head_s for each in mine),
    )


def _find(shape: ModelShape, load: Load, world: World) -> Found:
    device = world.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        room = _ROOM * torch.cuda.mem_get_info(device)[0]
    else:
        name, room = cpu_model(), math.inf
    key = {
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "shape": asdict(shape),
        "load": asdict(load),
    }
    file = cache_folder() / f"{_digest(key)}.json"
    times = _cached(file)
    if times is None:
        times = profile_layers(shape, load, device)
        _keep(file, key, times)
    return Found(name=name, times=times, memory_bytes=room)


def _hop_s(strategy: Strategy, world: World, num_bytes: int) -> float:
    everyone = world.group(range(world.size))
    try:
        return hop_s(everyone, world.device, num_bytes, to=strategy.shards)
    finally:
        everyone.close()


def cache_folder() -> Path:
    """Return where profiles are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orch" / "profiles"


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _cached(file: Path) -> LayerTimes | None:
    try:
        times = LayerTimes(**json.loads(file.read_text(encoding="utf-8"))["times"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is measured again
    kept = asdict(times).values()
    return times if all(isinstance(each, float) and each > 0 for each in kept) else None


def _keep(file: Path, key: dict[str, Any], times: LayerTimes) -> None:
    text = json.dumps({"key": key, "times": asdict(times)}, indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text + "\n", durable=False)
    except OSError as error:
        print(f"the profile is not kept: {error}", file=sys.stderr)
