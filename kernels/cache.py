"""The KV cache: static tensors, of which a micro-batch uses some rows.

Rows are left-padded to one length, so a token's slot in the cache is the same for every row;
what differs by row is how many slots at the front are padding. A step is made of tensors
only: the same Python runs for every token, and a CUDA graph may replay it.

    slot       0  1  2  3  4 | 5 …        row 0, pad 2:  slots 2, 3, 4 are positions 0, 1, 2
    row 0      -  -  a  b  c | new        row 1, pad 0:  slots 0 … 4 are positions 0 … 4
    row 1      d  e  f  g  h | new

Shapes, in names: B rows, T tokens of this step, S slots, N KV heads, H head width.
"""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

_SLOT_MULTIPLE = 8
"""Fused attention kernels read masks in 16-byte pieces."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What every layer needs to know about the tokens of one step."""

    cache: "KVCache"
    slots_T: Tensor
    """Where in the cache this step's keys and values go."""
    cos: Tensor
    """[B, 1, T, H/2], at each token's position."""
    sin: Tensor
    mask: Tensor
    """[B, 1, G * T, S] added to the scores of the G query heads that share a KV head."""

    def write(
        self, layer: int, k_BNTH: Tensor, v_BNTH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep this step's keys and values; all of the layer's, [B, N, S, H] each."""
        k_BNSH, v_BNSH = self.cache.kv[layer]
        # Slots are a tensor, not a Python slice: a captured graph can write elsewhere.
        k_BNSH.index_copy_(2, self.slots_T, k_BNTH)
        v_BNSH.index_copy_(2, self.slots_T, v_BNTH)
        return k_BNSH, v_BNSH


class KVCache:
    """Keys and values of some rows, for the layers a rank owns."""

    def __init__(
        self,
        *,
        layers: Iterable[int],
        rows: int,
        length: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        tables: tuple[Tensor, Tensor],
        window: int | None,
        dtype: torch.dtype,
    ) -> None:
        """An empty cache of at least `length` slots.

        Args:
            layers: indices of the layers that will write to it.
            rows: B.
            length: tokens of the prompt and all new ones.
            heads: query heads held on this rank.
            kv_heads: KV heads held on this rank.
            head_dim: H.
            tables: cosines and sines of `rotary_tables`, for `slots_for(length)` positions.
            window: positions a query sees, itself included; None for all.
            dtype: of keys and values.
        """
        self.cos_SH, self.sin_SH = tables
        self.device = self.cos_SH.device
        self.rows = rows
        self.slots = slots_for(length)
        self._groups = heads // kv_heads
        self._window = window
        self._dtype = dtype
        # Zeros, not empty: a weight of zero times a NaN left in memory would be a NaN.
        size = (2, rows, kv_heads, self.slots, head_dim)
        self.kv = {
            layer: tuple(torch.zeros(size, dtype=dtype, device=self.device).unbind())
            for layer in layers
        }
        self.pad_B = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._all_slots = torch.arange(self.slots, device=self.device)

    def begin(self, pad_B: Tensor) -> None:
        """Take new rows with this much padding. Old keys stay, unseen until overwritten."""
        self.pad_B.copy_(pad_B)

    def part(self, rows: range) -> "KVCache":
        """Some of the rows, as a cache in the same memory."""
        cut = slice(rows.start, rows.stop)
        # Views: what a micro-batch writes is in the whole cache, too.
        part = copy(self)
        part.rows = len(rows)
        part.pad_B = self.pad_B[cut]
        part.kv = {layer: (k[cut], v[cut]) for layer, (k, v) in self.kv.items()}
        return part

    def step(self, slots_T: Tensor) -> Step:
        """Return the step whose tokens stand in these slots."""
        # Padding would have negative positions; it is masked, so any valid one will do.
        positions_BT = (slots_T - self.pad_B[:, None]).clamp(min=0)
        return Step(
            cache=self,
            slots_T=slots_T,
            cos=self.cos_SH[positions_BT][:, None],
            sin=self.sin_SH[positions_BT][:, None],
            mask=self._mask(slots_T),
        )

    def _mask(self, slots_T: Tensor) -> Tensor:
        distance_TS = slots_T[:, None] - self._all_slots
        seen_TS = distance_TS >= 0
        if self._window is not None:
            seen_TS &= distance_TS < self._window
        seen_BTS = seen_TS & (self._all_slots >= self.pad_B[:, None, None])
        # A padding token sees itself: a softmax over nothing would be NaN.
        seen_BTS = seen_BTS | (distance_TS == 0)
        # An additive mask: a boolean one is turned into this form again in every layer.
        mask_BTS = torch.zeros_like(seen_BTS, dtype=self._dtype)
        mask_BTS.masked_fill_(~seen_BTS, float("-inf"))
        return mask_BTS.repeat(1, self._groups, 1)[:, None]

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(part.nbytes for pair in self.kv.values() for part in pair)


def slots_for(length: int) -> int:
    """Slots that a cache for `length` tokens has."""
    return -(-length // _SLOT_MULTIPLE) * _SLOT_MULTIPLE
