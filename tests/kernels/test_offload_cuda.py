"""The way to a GPU, with streams that dawdle in its place: no copy and no computation too early.

This proves the order of copies and computations, not that a driver takes the calls.
"""

from pathlib import Path

import dawdling_cuda
import pytest
import torch
from answers import SHAPES, random_weights
from dawdling_cuda import Cuda, Gpu

from kernels.offload.buffer_ring import BufferRing, Event, Stream
from kernels.offload.fetch import BlockFetch, PinnedFetch, fetch_for
from kernels.offload.file_store import FileStore
from kernels.offload.host_cache import HostCache
from kernels.offload.plan import units_of
from kernels.offload.store import HostStore, page_aligned, views
from kernels.placement import place
from kernels.strategies import Parallel, Single

SHAPE = SHAPES["gqa"]
WEIGHTS = random_weights(SHAPE, torch.float32)
UNITS = [
    *units_of(place(Parallel(single=Single()), SHAPE, 0), SHAPE, "float32").values()
]
GPU: torch.device = Gpu()  # type: ignore[assignment]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return dawdling_cuda.install(monkeypatch)


def wrong_tensors(fetch: PinnedFetch | BlockFetch, depth: int, cuda: Cuda) -> list[str]:
    """Names of the tensors that computations saw wrong, over some passes."""
    sizes = [unit.num_bytes for unit in UNITS]
    buffers = [page_aligned(max(sizes)) for _ in range(depth)]
    ring = BufferRing(sizes, buffers, fetch, Stream(GPU))
    ring.start()
    wrong: list[str] = []

    def compute(turn: int, buffer: torch.Tensor) -> None:
        for name, value in views(UNITS[turn], buffer, torch.float32).items():
            if not torch.equal(value, WEIGHTS.read(name)):
                wrong.append(name)

    for _ in range(4):
        for turn in range(len(UNITS)):
            with ring.buffer(turn) as buffer:
                cuda.compute.issue(
                    lambda turn=turn, buffer=buffer: compute(turn, buffer)
                )
    cuda.compute.synchronize()
    ring.drain()
    cuda.compute.synchronize()
    return wrong


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_from_page_locked_memory_every_weight_is_there_in_time(
    depth: int, cuda: Cuda
) -> None:
    store = HostStore(GPU)
    for unit in UNITS:
        store.put(unit, WEIGHTS, torch.float32)
    assert wrong_tensors(fetch_for(store, UNITS, GPU), depth, cuda) == []
    assert sum(cuda.locked.values()) == sum(unit.num_bytes for unit in UNITS)
    assert cuda.unlocked_copies == 0
    store.close()
    assert not cuda.locked


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_from_files_over_staging_blocks_too(
    depth: int, cuda: Cuda, tmp_path: Path
) -> None:
    store = FileStore(tmp_path, block_bytes=8192)
    for unit in UNITS:
        store.put(unit, WEIGHTS, torch.float32)
    fetch = fetch_for(store, UNITS, GPU)
    assert wrong_tensors(fetch, depth, cuda) == []
    assert cuda.unlocked_copies == 0
    fetch.close()
    store.close()
    assert not cuda.locked


def test_the_measure_notices_a_copy_that_does_not_wait(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HostStore(GPU)
    for unit in UNITS:
        store.put(unit, WEIGHTS, torch.float32)
    fetch = fetch_for(store, UNITS, GPU)
    right = fetch.start

    def hasty(unit: int, buffer: torch.Tensor, after: Event) -> object:
        return right(unit, buffer, torch.cuda.Event())  # of nothing

    monkeypatch.setattr(fetch, "start", hasty)
    assert wrong_tensors(fetch, 1, cuda)
    fetch.close()
    store.close()


def test_keys_and_values_in_host_memory_are_saved_before_they_are_fetched_again(
    cuda: Cuda,
) -> None:
    layers = [3, 4, 5]
    cache = HostCache(layers, (2, 3, 8, 4), torch.float32, GPU)
    wrong: list[tuple[int, int]] = []

    def compute(layer: int, token: int, keys: torch.Tensor) -> None:
        told = keys[:, :, :token].eq(layer).all() and not keys[:, :, token:].any()
        if not told:
            wrong.append((layer, token))
        keys[:, :, token] = layer

    for token in range(8):
        for layer in layers:
            with cache.lend(layer) as (keys, _):
                cuda.compute.issue(
                    lambda layer=layer, token=token, keys=keys: compute(
                        layer, token, keys
                    )
                )
    cuda.compute.synchronize()
    cache.close()
    assert not wrong
    assert cuda.unlocked_copies == 0
    assert not cuda.locked
