"""ZeRO offload (ZeRO-Inference): weights wait in host memory or files and are streamed by layer.

The layers and the output matrix pass through a ring of slots on the device while the layer
before computes. While a layer computes its parameters are views of its slot; at other times
they are on the meta device, where any use fails. The final norm stays, and of the embedding
only the batch's rows are fetched. With a tensor degree each rank streams its own shards only.

A memory budget counts all that the device holds: weights, cache, activations; on a CPU, the
whole process. What exceeds it in a generation is an error, not a note.
"""

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from kernels.cache import KVCache, Step, slots_for
from kernels.engine import OnToken, ignore
from kernels.generate import Batch, Generation
from kernels.llama_engine import SequentialEngine
from kernels.offload.device_budget import DeviceBudget
from kernels.offload.host_cache import SLOTS, HostKVCache
from kernels.offload.layer_store import Store
from kernels.offload.modules import GatheredEmbedding, LentLinear, lent
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
from kernels.offload.stream import Streamer, how_stored, new_store
from kernels.timeline import Timeline
from kernels.weights import Progress, Weights


class OffloadEngine(SequentialEngine):
    """An engine whose layers are on the device only while they compute."""

    def __init__(
        self, *, weights: Weights, progress: Progress | None = None, **parts: Any
    ) -> None:
        super().__init__(**parts)
        assert self.strategy.zero_offload is not None
        self.options = self.strategy.zero_offload
        self._cleanup = ExitStack()
        if self.options.kv == "host":
            self.cache_type = HostKVCache
        units = units_of(self.placement, self.shape, str(self.dtype).split(".")[1])
        self._weight_bytes = _parameter_bytes(units)
        with self._cleanup:
            self._load(units, weights, progress)
            # Kept for close(); after an error above, everything is given back right here.
            self._cleanup = self._cleanup.pop_all()

    def _load(
        self, units: dict[str, Unit], weights: Weights, progress: Progress | None
    ) -> None:
        report = _Reporter(units, progress)
        store = new_store(self.options.source, self.device, self._cleanup)
        if self.placement.is_last:
            self._keep_norm(weights)
            report(units.pop(NORM))
        if self.placement.is_first:
            # For a tied head too: the head may come to stay on the device, out of the store.
            embedding = units.pop(EMBEDDING)
            store.put(embedding, weights, self.dtype)
            self._gather_embedding(embedding, store)
            report(embedding)
        self._sizes = [unit.num_bytes for unit in units.values()]
        self._budget = DeviceBudget(self.device, self.options, self.world.local_size)
        self._budget.set_base()
        plan = self._plan(working_bytes=0)
        streamed = [*units.values()]
        self.streamer = Streamer(
            streamed, plan, store, weights, self.dtype, self.device, report
        )
        self._cleanup.callback(self.streamer.close)
        if self.model.output is not None:
            self.model.output = LentLinear(self.model.output, self.streamer)
        self.weights_wait = how_stored(store)
        self._budget.begin()

    def _plan(self, working_bytes: int) -> OffloadPlan:
        available = self._budget.available_bytes(working_bytes)
        return plan_offload(self._sizes, self.options.resident, available)

    def _keep_norm(self, weights: Weights) -> None:
        assert self.model.norm is not None
        value = weights.read(f"{NORM}.weight").to(self.device, self.dtype, copy=True)
        self.model.norm.weight = nn.Parameter(value, requires_grad=False)

    def _gather_embedding(self, embedding: Unit, store: Store) -> None:
        self.model.tok_embeddings = GatheredEmbedding(
            embedding,
            f"{EMBEDDING}.weight",
            store=store,
            vocab=self.placement.vocab,
            shards=self.groups.shards,
            dtype=self.dtype,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's parameters, wherever they are; a shared one counts once."""
        return self._weight_bytes

    @property
    def peak_bytes(self) -> int:
        """The most this rank's device has held since the weights were loaded."""
        return self._budget.peak_bytes()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Hidden states [B, T, D] of ids, each layer's weights in place while it computes."""
        x_BTD = self.model.embed(x) if self.placement.is_first else x
        for index, layer in self.model.layers.items():
            with ExitStack() as stack:
                if isinstance(step.cache, HostKVCache):
                    stack.enter_context(step.cache.lend(int(index)))
                stack.enter_context(lent(layer, f"layers.{index}", self.streamer))
                x_BTD = layer(x_BTD, step)
        if self.placement.is_last:
            # Here, where it counts as waiting: the choice of ids is noted as computation.
            self.streamer.wait(HEAD)
        return x_BTD

    def new_cache(self, rows: int, length: int) -> KVCache:
        """A cache for this many rows of at most `length` tokens, prompt and new ones."""
        cache = super().new_cache(rows, length)
        if isinstance(cache, HostKVCache):
            cache.watch(self.timeline)
        return cache

    def watch(self, timeline: Timeline) -> None:
        """Tell this timeline from now on what is done, and copied, when."""
        super().watch(timeline)
        self.streamer.watch(timeline)
        if self._state is not None and isinstance(self._state.cache, HostKVCache):
            self._state.cache.watch(timeline)

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
        """The logits [B, T, V] of whole prompts, on the CPU and the same on every rank."""
        self._state = None  # two caches at a time are in no plan
        self._make_room(batch, 0)
        return super().logits(batch)

    def _make_room(self, batch: Batch, new_tokens: int) -> None:
        """Keep fewer layers resident, or fewer on their way, where the batch needs the memory."""
        rows, width = len(self._rows(batch)), self.dtype.itemsize
        working = working_bytes(self.placement, self.shape, rows, batch.length, width)
        slots = slots_for(batch.length + new_tokens)
        per_layer = 2 * rows * slots * len(self.placement.kv_heads)
        working += self._layers_cached() * per_layer * self.shape.head_dim * width
        if new_tokens == 0:
            working += 3 * rows * batch.length * self.shape.vocab_size * 4
        available = self._budget.available_bytes(working)
        if available is not None and self.streamer.plan.device_bytes > available:
            self.streamer.change(self._plan(working))

    def _layers_cached(self) -> int:
        """Layers whose keys and values take the device's memory; a CPU's host memory is its own."""
        if self.options.kv == "device":
            return len(self.placement.layers)
        on_host = self.device.type == "cpu"
        return SLOTS + (len(self.placement.layers) if on_host else 0)

    def close(self) -> None:
        """Free the groups, memory and files; the engine is of no use afterwards."""
        self.synchronize()
        self._cleanup.close()
        super().close()


class _Reporter:
    """Tells how much is loaded, unit by unit."""

    def __init__(self, units: dict[str, Unit], progress: Progress | None) -> None:
        self._total = sum(unit.num_bytes for unit in units.values())
        self._progress = progress
        self._done = 0

    def __call__(self, unit: Unit) -> None:
        self._done += unit.num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _parameter_bytes(units: dict[str, Unit]) -> int:
    by_source = {
        piece.source: piece.num_bytes
        for unit in units.values()
        for piece in unit.tensors
    }
    return sum(by_source.values())
