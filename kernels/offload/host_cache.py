"""Keys and values in host memory: each layer's are copied to the device while it computes.

The whole cache of a layer is copied both ways. On a link that carries both directions at once
what goes back costs nothing beside the weights that come.

Shapes, in names: B rows, N KV heads, S slots, H head width.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels.cache import KVCache
from kernels.offload.buffer_ring import Arrival, BufferRing, Event, Stream, issued
from kernels.offload.store import HostMemory, device_memory
from kernels.timeline import OFF, Timeline

LAYERS_ON_DEVICE = 2
"""Layers whose keys and values are on the device at once."""


class HostKVCache(KVCache):
    """A KV cache whose layers are on the device only while they compute."""

    def __init__(
        self, *, layers: Iterable[int], timeline: Callable[[], Timeline], **parts: Any
    ) -> None:
        super().__init__(layers=(), **parts)
        size = (self.rows, parts["kv_heads"], self.slots, parts["head_dim"])
        self._host = HostCache([*layers], size, parts["dtype"], self.device, timeline)
        # Page-locked memory must be unlocked before it is freed.
        weakref.finalize(self, self._host.close)

    @contextmanager
    def lend(self, layer: int) -> Iterator[None]:
        """Have the layer's keys and values on the device within the block."""
        with self._host.lend(layer) as pair:
            self.kv[layer] = pair
            try:
                yield
            finally:
                del self.kv[layer]


class HostCache:
    """The keys and values of all layers in host memory, and a ring of buffers for them."""

    def __init__(
        self,
        layers: Sequence[int],
        size: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        timeline: Callable[[], Timeline] = lambda: OFF,
    ) -> None:
        """Make an empty cache of `size` (B, N, S, H) for these layers, in order of use."""
        self._layers = list(layers)
        self._size = (2, *size)
        self._dtype = dtype
        self._timeline = timeline
        num_bytes = torch.Size(self._size).numel() * dtype.itemsize
        self._memory = HostMemory(device)
        # Fresh pages hold zeros: a weight of zero times a NaN left in memory would be a NaN.
        self._flat = [self._memory.allocate(num_bytes) for _ in layers]
        # Two streams, so that one layer is saved while the next is fetched.
        self._fetching = Stream(device, new=True)
        self._saving = Stream(device, new=True)
        # With more buffers than layers, a layer would be fetched again before it is saved.
        depth = min(LAYERS_ON_DEVICE, len(layers))
        buffers = [device_memory(num_bytes, device) for _ in range(depth)]
        sizes = [num_bytes] * len(layers)
        self._ring = BufferRing(sizes, buffers, self, Stream(device))

    @contextmanager
    def lend(self, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Lend the keys and values [B, N, S, H] of a layer; they are saved after the block."""
        with self._ring.buffer(self._layers.index(layer)) as flat:
            keys, values = flat.view(self._dtype).view(self._size).unbind()
            yield keys, values

    def start(self, unit: int, buffer: Tensor, after: Event) -> Arrival:
        span = self._span("fetch KV", unit)
        return issued(self._fetching.copy(buffer, self._flat[unit], after, span))

    def finish(self, unit: int, buffer: Tensor, computed: Event) -> Event:
        span = self._span("save KV", unit)
        return self._saving.copy(self._flat[unit], buffer, computed, span)

    def _span(self, name: str, unit: int) -> AbstractContextManager[None]:
        return self._timeline().span("copy", name, self._layers[unit])

    def close(self) -> None:
        """Wait for the copies under way, and free the memory."""
        self._ring.drain()
        self._fetching.synchronize()
        self._saving.synchronize()
        self._flat.clear()
        self._memory.free()
