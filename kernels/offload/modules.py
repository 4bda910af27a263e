"""Modules whose weights are elsewhere: lent for one call, or fetched by row."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from kernels.offload.layer_store import Store
from kernels.offload.plan import HEAD, Unit
from kernels.world import Group


class Lender(Protocol):
    """Has units on the device, one at a time."""

    def lend(self, name: str) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Lend a unit's tensors, by parameter name, to work that is issued within the block."""


@contextmanager
def lent(module: nn.Module, unit: str, lender: Lender) -> Iterator[None]:
    """Make the module's parameters views of the unit's buffer within the block, then meta again."""
    with lender.lend(unit) as tensors:
        meta: dict[str, nn.Parameter] = {}
        for name, value in tensors.items():
            meta[name] = _replace(module, name.removeprefix(f"{unit}."), value)
        try:
            yield
        finally:
            for name, parameter in meta.items():
                _replace(module, name.removeprefix(f"{unit}."), parameter)


def _replace(module: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    before = owner.get_parameter(leaf)
    # A late use would read another layer's weights; on the meta device it is an error.
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    return before


class LentLinear(nn.Linear):
    """The output matrix, lent for each call."""

    def __init__(self, of: nn.Linear, lender: Lender) -> None:
        super().__init__(of.in_features, of.out_features, bias=False, device="meta")
        self._lender = lender

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        with lent(self, HEAD, self._lender):
            return super().forward(x_BTD)


class GatheredEmbedding(nn.Module):
    """An embedding of which only the rows of the batch's tokens reach the device."""

    def __init__(
        self,
        unit: Unit,
        name: str,
        *,
        store: Store,
        vocab: range,
        shards: Group,
        dtype: torch.dtype,
    ) -> None:
        """Look rows up in a store.

        Args:
            unit: holds the matrix.
            name: of the matrix in the unit.
            store: holds the unit.
            vocab: token ids of the matrix's rows.
            shards: the ranks that hold the other ids.
            dtype: of the matrix.
        """
        super().__init__()
        self._rows_of = (unit, name)
        self._store = store
        self._vocab = vocab
        self._shards = shards
        self._dtype = dtype

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] of token ids; waits for the ids to be on the host."""
        unique, place_BT = ids_BT.cpu().unique(return_inverse=True)
        width = self._store_width()
        x = torch.zeros((len(unique), width), dtype=self._dtype)
        local = unique - self._vocab.start
        here = (local >= 0) & (local < len(self._vocab))
        if here.any():
            found = self._store.rows(*self._rows_of, local[here].tolist())
            x[here] = found.view(self._dtype)
        x_BTD = x.to(ids_BT.device)[place_BT.to(ids_BT.device)]
        return self._shards.all_reduce(x_BTD)

    def _store_width(self) -> int:
        unit, name = self._rows_of
        return unit.tensor(name).dims[1]
