"""Measures what each layer costs on the device at hand, for `kernels.pipeline.partition`.

The layers of a Llama differ only at the ends, so three things are timed, as decode uses them:
a layer, the embedding, the output head. Several copies of the layer are gone through in turn,
so that none is still in a cache when it is used again; as in a whole model.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from kernels.cache import KVCache, Step, slots_for
from kernels.llama import Llama, rotary_tables
from kernels.pipeline.layer_costs import LayerTimes, Load, layer_bytes
from kernels.shapes import ModelShape
from kernels.world import Group

_BEYOND_CACHES_BYTES = 256 * 2**20
_REPEATS = 15


@torch.inference_mode()
def profile_layers(shape: ModelShape, load: Load, device: torch.device) -> LayerTimes:
    """Time a layer, the embedding and the head of this shape on this device."""
    copies = min(shape.n_layers, -(-_BEYOND_CACHES_BYTES // layer_bytes(shape, load)))
    dtype = getattr(torch, load.dtype)
    model = _random_model(replace(shape, n_layers=copies), dtype, device)
    step = _step(model.shape, dtype, device, load)
    ids_BT = torch.zeros((load.rows, 1), dtype=torch.int64, device=device)
    x_BTD = model.embed(ids_BT)
    seconds = [
        _median_s(work, device)
        for work in (
            lambda: model.transform(x_BTD, step),
            lambda: model.embed(ids_BT),
            lambda: model.head(x_BTD),
        )
    ]
    return LayerTimes(
        layer_s=seconds[0] / copies, embedding_s=seconds[1], head_s=seconds[2]
    )


def _random_model(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> Llama:
    with torch.device("meta"):
        model = Llama(shape)
    model = model.to(dtype).to_empty(device=device)
    for parameter in model.parameters():
        # Some numbers: what is left in memory could be denormal, which CPUs are slow at.
        nn.init.uniform_(parameter, -0.02, 0.02)
    return model.eval().requires_grad_(False)


def _step(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, load: Load
) -> Step:
    cache = KVCache(
        layers=range(shape.n_layers),
        rows=load.rows,
        length=load.context,
        heads=shape.n_heads,
        kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        tables=rotary_tables(shape, slots_for(load.context), device, dtype),
        window=shape.sliding_window,
        dtype=dtype,
    )
    return cache.step(torch.tensor([load.context - 1], device=device))


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    work()  # kernels are chosen, memory is got
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hop_s(everyone: Group, device: torch.device, num_bytes: int, to: int) -> float:
    """Return the seconds to hand so many bytes from the first member to member `to`.

    Half of the quickest of some round trips. All members call it and get the same answer; alone
    there is nobody to hand it to, and it is 0.
    """
    if everyone.size == 1:
        return 0.0
    parcel = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    trips = torch.zeros(_REPEATS, dtype=torch.float64, device=device)
    for trip in range(_REPEATS):
        start = time.perf_counter()
        if everyone.index == 0:
            everyone.send(parcel, to)
            everyone.receive(parcel, to)
        elif everyone.index == to:
            everyone.receive(parcel, 0)
            everyone.send(parcel, 0)
        _wait(device)
        trips[trip] = time.perf_counter() - start
    return float(everyone.broadcast(trips, 0).min()) / 2
