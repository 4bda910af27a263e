"""ZeRO offload (ZeRO-Inference): weights wait in host memory or files and are streamed by layer.

The layers and the output matrix pass through a ring of buffers on the device, each copied while
the layers before it compute. A layer's parameters are on the meta device, where any use fails,
but for the time of its call. The final norm stays, and of the embedding only the batch's rows
are fetched. With a tensor degree each rank streams its own shards only.

A memory budget counts all that the device holds: weights, cache, activations; on a CPU, the
whole process. What exceeds it in a generation is an error, not a note.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from kernels.cache import Step, slots_for
from kernels.engine import OnToken, ignore
from kernels.generate import Batch, Generation
from kernels.llama_engine import SequentialEngine
from kernels.offload.budget import DeviceBudget
from kernels.offload.file_store import FileStore
from kernels.offload.host_cache import LAYERS_ON_DEVICE, HostKVCache
from kernels.offload.plan import (
    EMBEDDING,
    HEAD,
    NORM,
    OffloadPlan,
    Unit,
    plan_offload,
    units_of,
    working_bytes,
)
from kernels.offload.store import HostStore, Store
from kernels.offload.streamer import GatheredEmbedding, LentHead, OnUnit, Streamer
from kernels.weights import Progress, Weights


class OffloadEngine(SequentialEngine):
    """An engine whose layers are on the device only while they compute."""

    def __init__(
        self, *, weights: Weights, progress: Progress | None = None, **parts: Any
    ) -> None:
        super().__init__(**parts)
        assert self.strategy.zero_offload is not None
        self.options = self.strategy.zero_offload
        if self.options.kv == "host":
            self.cache_type = partial(HostKVCache, timeline=lambda: self.timeline)
        units = units_of(self.placement, self.shape, str(self.dtype).split(".")[1])
        self._weight_bytes = _parameter_bytes(units)
        self._cleanup = ExitStack()
        with self._cleanup:
            self._load(units, weights, _reporter(units, progress))
            # Kept for close(); after an error above, everything is freed right here.
            self._cleanup = self._cleanup.pop_all()

    def _load(self, units: dict[str, Unit], weights: Weights, on_unit: OnUnit) -> None:
        store = self._new_store()
        self._cleanup.callback(store.close)
        if self.placement.is_last:
            self._keep_norm(weights)
            on_unit(units.pop(NORM))
        if self.placement.is_first:
            embedding = units.pop(EMBEDDING)
            # For a tied head too: the head may be resident, and then the store does not have it.
            store.put(embedding, weights, self.dtype)
            self.model.tok_embeddings = GatheredEmbedding(
                embedding,
                store=store,
                vocab=self.placement.vocab,
                shards=self.groups.shards,
                dtype=self.dtype,
            )
            on_unit(embedding)
        self._budget = DeviceBudget(self.device, self.options, self.world.local_size)
        moving = [*units.values()]
        plan = self._plan(moving, 0)
        self.streamer = Streamer(
            moving,
            store,
            weights,
            self.dtype,
            self.device,
            timeline=lambda: self.timeline,
        )
        self._cleanup.callback(self.streamer.close)
        self.streamer.use(plan, on_unit)
        if self.model.output is not None:
            self.model.output = LentHead(self.model.output, self.streamer)
        self.weights_wait = store.how()
        self._budget.watch_peak()

    def _new_store(self) -> Store:
        if self.options.source == "disk":
            return FileStore(Path(tempfile.gettempdir()))
        return HostStore(self.device)

    def _keep_norm(self, weights: Weights) -> None:
        assert self.model.norm is not None
        value = weights.read(f"{NORM}.weight").to(self.device, self.dtype, copy=True)
        self.model.norm.weight = nn.Parameter(value, requires_grad=False)

    def _plan(self, units: list[Unit], batch_bytes: int) -> OffloadPlan:
        sizes = [unit.num_bytes for unit in units]
        available = self._budget.available_bytes(batch_bytes)
        return plan_offload(sizes, self.options.resident, available)

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's parameters, wherever they are; a shared one counts once."""
        return self._weight_bytes

    @property
    def peak_bytes(self) -> int:
        """The most this rank's device has held since the weights were loaded."""
        return self._budget.peak_bytes()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x_BTD = self.model.embed(x) if self.placement.is_first else x
        for index, layer in self.model.layers.items():
            prefix = f"layers.{index}"
            with ExitStack() as stack:
                if isinstance(step.cache, HostKVCache):
                    stack.enter_context(step.cache.lend(int(index)))
                lent = stack.enter_context(self.streamer.lend(prefix))
                own = {name.removeprefix(f"{prefix}."): lent[name] for name in lent}
                x_BTD = functional_call(layer, own, (x_BTD, step), tie_weights=False)
        if self.placement.is_last:
            # Here, where it counts as waiting: the choice of ids is noted as computation.
            self.streamer.wait(HEAD)
        return x_BTD

    def generate(
        self, batch: Batch, generation: Generation, on_token: OnToken = ignore
    ) -> Tensor:
        """The new token ids [B, N], on the CPU and the same on every rank.

        Raises:
            OffloadError: weights, cache and activations do not fit the memory budget.
            BudgetError: they took more than planned.
        """
        self._make_room(batch, generation.new_tokens)
        ids_BN = super().generate(batch, generation, on_token)
        self._budget.check()
        return ids_BN

    def logits(self, batch: Batch) -> Tensor:
        self._state = None  # two caches at a time are in no plan
        self._make_room(batch, 0)
        return super().logits(batch)

    def _make_room(self, batch: Batch, new_tokens: int) -> None:
        """Have fewer layers on the device where the batch needs the memory."""
        needed = self._batch_bytes(batch, new_tokens)
        available = self._budget.available_bytes(needed)
        if available is not None and self.streamer.plan.device_bytes > available:
            self.streamer.use(self._plan(self.streamer.units, needed))

    def _batch_bytes(self, batch: Batch, new_tokens: int) -> int:
        """Bytes that a batch takes beside the weights: activations, KV cache and logits."""
        rows, width = len(self._rows(batch)), self.dtype.itemsize
        working = working_bytes(self.placement, self.shape, rows, batch.length, width)
        slots = slots_for(batch.length + new_tokens)
        kv_width = 2 * len(self.placement.kv_heads) * self.shape.head_dim * width
        layers = len(self.placement.layers)
        if self.options.kv == "host":
            # Where the device is the CPU, host memory is in its budget too.
            layers = LAYERS_ON_DEVICE + (layers if self.device.type == "cpu" else 0)
        cache = layers * rows * slots * kv_width
        if new_tokens:
            return working + cache
        # All prompt tokens' logits: a shard's, the same in at least fp32, and all shards'.
        logits = rows * batch.length * self.shape.vocab_size * max(4, width)
        return working + cache + 3 * logits

    def close(self) -> None:
        self.synchronize()
        self._cleanup.close()
        super().close()


def _reporter(units: dict[str, Unit], progress: Progress | None) -> OnUnit:
    """Return what tells how much is loaded, unit by unit."""
    total = sum(unit.num_bytes for unit in units.values())
    done = 0

    def report(unit: Unit) -> None:
        nonlocal done
        done += unit.num_bytes
        if progress is not None:
            progress(done, total)

    return report


def _parameter_bytes(units: dict[str, Unit]) -> int:
    tensors = [tensor for unit in units.values() for tensor in unit.tensors]
    by_source = {tensor.source: tensor.num_bytes for tensor in tensors}
    return sum(by_source.values())
