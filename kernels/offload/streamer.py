"""The weights of one rank: some stay on the device, the others are streamed there in turn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.offload.buffer_ring import BufferRing, Stream
from kernels.offload.fetch import fetch_for
from kernels.offload.plan import HEAD, OffloadPlan, Unit
from kernels.offload.store import Store, device_memory, fill, views
from kernels.timeline import Timeline
from kernels.weights import Weights
from kernels.world import Group

OnUnit = Callable[[Unit], None]
"""Called with each unit once it is loaded."""


class Streamer:
    """Lends units in the order of use, for ever, whether they are resident or streamed."""

    def __init__(
        self,
        units: Sequence[Unit],
        store: Store,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        timeline: Callable[[], Timeline],
    ) -> None:
        self.units = list(units)
        self._store = store
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self._timeline = timeline
        self._resident: dict[str, Tensor] = {}
        self._stored: set[str] = set()
        self._running = ExitStack()

    def use(self, plan: OffloadPlan, on_unit: OnUnit = lambda unit: None) -> None:
        """Keep units resident as planned from now on, and begin to fetch the others.

        What is not where it should be is read from the checkpoint.
        """
        self._running.close()
        self.plan = plan
        is_resident = dict(zip(self.units, plan.is_resident, strict=True))
        # Freed before others are loaded: the device may hold no more than one plan at a time.
        for unit in self.units:
            if not is_resident[unit]:
                self._resident.pop(unit.name, None)
        for unit in self.units:
            self._load(unit, is_resident[unit])
            on_unit(unit)
        streamed = [unit for unit in self.units if not is_resident[unit]]
        self._turns = {unit.name: turn for turn, unit in enumerate(streamed)}
        fetch = fetch_for(self._store, streamed, self._device, self._timeline)
        self._running.callback(fetch.close)
        self._ring = BufferRing(
            [unit.num_bytes for unit in streamed],
            [device_memory(plan.buffer_bytes, self._device) for _ in range(plan.depth)],
            fetch,
            Stream(self._device),
        )
        self._running.callback(self._ring.close)
        self._ring.start()

    def _load(self, unit: Unit, is_resident: bool) -> None:
        """Read a unit from the checkpoint, unless it is where it should be already."""
        if is_resident and unit.name not in self._resident:
            flat = device_memory(unit.num_bytes, self._device)
            fill(unit, flat, self._weights, self._dtype)
            self._resident[unit.name] = flat
        elif not is_resident and unit.name not in self._stored:
            self._store.put(unit, self._weights, self._dtype)
            self._stored.add(unit.name)

    @contextmanager
    def lend(self, name: str) -> Iterator[dict[str, Tensor]]:
        """Lend a unit's tensors, by parameter name, to work that is issued within the block."""
        [unit] = [unit for unit in self.units if unit.name == name]
        if name in self._resident:
            yield views(unit, self._resident[name], self._dtype)
            return
        self.wait(name)
        with self._ring.buffer(self._turns[name]) as flat:
            yield views(unit, flat, self._dtype)

    def wait(self, name: str) -> None:
        """Make work issued from now on run after the arrival of this unit, the next in turn."""
        if name not in self._resident:
            with self._timeline().span("communication", "weights"):
                self._ring.wait(self._turns[name])

    def close(self) -> None:
        """Free all memory; the store is the caller's."""
        self._running.close()
        self._resident.clear()


class LentHead(nn.Linear):
    """The output matrix, lent for each call."""

    def __init__(self, head: nn.Linear, streamer: Streamer) -> None:
        super().__init__(head.in_features, head.out_features, False, device="meta")
        self._streamer = streamer

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        with self._streamer.lend(HEAD) as tensors:
            return functional.linear(x_BTD, tensors[f"{HEAD}.weight"])


class GatheredEmbedding(nn.Module):
    """An embedding of which only the rows of the batch's tokens reach the device."""

    def __init__(
        self,
        unit: Unit,
        *,
        store: Store,
        vocab: range,
        shards: Group,
        dtype: torch.dtype,
    ) -> None:
        """Look up token ids of `vocab` in a unit of the store; `shards` have the others."""
        super().__init__()
        self._unit = unit
        self._store = store
        self._vocab = vocab
        self._shards = shards
        self._dtype = dtype

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] of token ids; waits for the ids to be on the host."""
        [matrix] = self._unit.tensors
        unique, place_BT = ids_BT.cpu().unique(return_inverse=True)
        x = torch.zeros((len(unique), matrix.dims[1]), dtype=self._dtype)
        local = unique - self._vocab.start
        here = (local >= 0) & (local < len(self._vocab))
        if here.any():
            rows = self._store.rows(self._unit, local[here].tolist())
            x[here] = rows.view(self._dtype)
        x_BTD = x.to(ids_BT.device)[place_BT.to(ids_BT.device)]
        return self._shards.all_reduce(x_BTD)
