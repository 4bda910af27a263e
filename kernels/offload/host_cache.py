"""Keys and values in host memory: each layer's come to the device for the time of the layer.

The whole cache of a layer travels both ways. On a link that carries both directions at once
what goes back costs nothing beside the weights that come.

Shapes, in names: B rows, N KV heads, S slots, H head width.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels.cache import KVCache
from kernels.offload.buffer_ring import BufferRing, Event
from kernels.offload.device_queue import (
    HostQueue,
    copy_on,
    pin,
    queue_of,
    unpin,
    wait_on,
)
from kernels.offload.fetch import Parts
from kernels.offload.layer_store import page_aligned
from kernels.timeline import OFF, Timeline

SLOTS = 2
"""Layers whose keys and values are on the device at once."""


class HostKVCache(KVCache):
    """A KV cache whose layers are on the device only while they compute."""

    def __init__(self, *, layers: Iterable[int], **parts: Any) -> None:
        super().__init__(layers=(), **parts)
        size = (self.rows, parts["kv_heads"], self.slots, parts["head_dim"])
        self._host = HostCache([*layers], size, parts["dtype"], self.device)
        # Page-locked memory must be unlocked before it is freed.
        weakref.finalize(self, self._host.close)

    @contextmanager
    def lend(self, layer: int) -> Iterator[None]:
        """The layer's keys and values are on the device within the block."""
        with self._host.lend(layer) as pair:
            self.kv[layer] = pair
            try:
                yield
            finally:
                del self.kv[layer]

    def watch(self, timeline: Timeline) -> None:
        """Tell this timeline from now on what is copied when."""
        self._host.watch(timeline)


class HostCache:
    """The cache of some rows, all layers in host memory, two at a time on the device."""

    def __init__(
        self,
        layers: Sequence[int],
        size: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """An empty cache.

        Args:
            layers: those of this rank, in order of use.
            size: B, N, S, H.
            dtype: of keys and values.
            device: where they are computed with.
        """
        self._size = (2, *size)
        self._dtype = dtype
        self._turns = {layer: turn for turn, layer in enumerate(layers)}
        num_bytes = torch.Size(self._size).numel() * dtype.itemsize
        self._copier = _Copier(layers, num_bytes, device)
        # A layer must not be fetched for the next token before this token's keys are saved.
        depth = min(SLOTS, len(layers))
        with torch.inference_mode(mode=False):
            slots = torch.empty(depth * num_bytes, dtype=torch.uint8, device=device)
        sizes = [num_bytes] * len(layers)
        self._ring = BufferRing(sizes, slots, depth, self._copier, queue_of(device))

    @contextmanager
    def lend(self, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values [B, N, S, H] of a layer, saved at the end of the block."""
        with self._ring.buffer(self._turns[layer]) as flat:
            keys, values = flat.view(self._dtype).view(self._size).unbind()
            yield keys, values

    def watch(self, timeline: Timeline) -> None:
        """Tell this timeline from now on what is copied when."""
        self._copier.timeline = timeline

    def close(self) -> None:
        """Give the memory back."""
        self._ring.drain()
        self._copier.close()


class _Copier:
    """Fetches a layer's cache and saves it again, both on one stream of its own per direction."""

    timeline: Timeline = OFF

    def __init__(
        self, layers: Sequence[int], num_bytes: int, device: torch.device
    ) -> None:
        self._layers = layers
        self._on_gpu = device.type == "cuda"
        # Fresh maps hold zeros: a weight of zero times a NaN left in memory would be a NaN.
        self._host = [page_aligned(num_bytes) for _ in layers]
        if self._on_gpu:
            for flat in self._host:
                pin(flat)
            self._fetching = torch.cuda.Stream(device)
            self._saving = torch.cuda.Stream(device)

    def start(self, unit: int, slot: Tensor, after: Event) -> Parts:
        """Begin to copy a layer's cache into `slot` after `after`."""
        if not self._on_gpu:
            with self._span("fetch KV", unit):
                slot.copy_(self._host[unit])
            return Parts.issued(None)
        wait_on(self._fetching, after)
        with torch.cuda.stream(self._fetching), self._span("fetch KV", unit):
            event = copy_on(self._fetching, slot, self._host[unit])
        return Parts.issued(event)

    def finish(self, unit: int, slot: Tensor, computed: Event) -> Event:
        """Save a layer's cache; the slot is free once that is done."""
        if not self._on_gpu:
            computed.synchronize()
            with self._span("save KV", unit):
                self._host[unit].copy_(slot)
            return HostQueue().record()
        wait_on(self._saving, computed)
        with torch.cuda.stream(self._saving), self._span("save KV", unit):
            return copy_on(self._saving, self._host[unit], slot)

    def _span(self, name: str, unit: int) -> AbstractContextManager[None]:
        return self.timeline.span("copy", name, self._layers[unit])

    def close(self) -> None:
        """Wait for the copies under way, and give the memory back."""
        if self._on_gpu:
            self._fetching.synchronize()
            self._saving.synchronize()
            for flat in self._host:
                unpin(flat)
        self._host.clear()
