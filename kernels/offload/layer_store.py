"""Where streamed weights wait: one flat, aligned buffer per unit, here in host memory.

A buffer is written once, tensor by tensor and never more than `CHUNK_BYTES` at a time, so that
this needs room for little more than what it keeps. Files: `kernels.offload.file_store`.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from kernels.offload.device_queue import pin, unpin
from kernels.offload.plan import Piece, Unit
from kernels.weights import Weights, WeightsError

CHUNK_BYTES = 32 * 2**20


def views(unit: Unit, flat: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The unit's tensors by parameter name, as views of its flat uint8 buffer."""
    return {piece.name: _view(piece, flat, dtype) for piece in unit.pieces}


def _view(piece: Piece, flat: Tensor, dtype: torch.dtype) -> Tensor:
    part = flat[piece.start : piece.start + piece.num_bytes]
    return part.view(dtype).view(piece.dims)


def fill(unit: Unit, flat: Tensor, weights: Weights, dtype: torch.dtype) -> None:
    """Read a unit from the checkpoint into its flat buffer, on whatever device that is."""
    for start, chunk in chunks(unit, weights, dtype):
        part = flat[start : start + chunk.nbytes].view(dtype)
        part.copy_(chunk.view(-1))


def chunks(
    unit: Unit, weights: Weights, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Offset and content of consecutive parts of a unit, contiguous and in `dtype`, on the CPU.

    Raises:
        WeightsError: the checkpoint lacks the tensor, or has it in another shape.
    """
    for piece in unit.pieces:
        start = piece.start
        for rows in _row_ranges(piece, weights.dtype.itemsize):
            stored = _read_rows(piece, rows, weights)
            chunk = stored.to(dtype).contiguous()
            yield start, chunk
            start += chunk.nbytes
        if start != piece.start + piece.num_bytes:
            raise WeightsError(
                f"{piece.name} must be {list(piece.dims)}, "
                f"but {piece.source.source} gives {start - piece.start} bytes of {dtype}"
            )


def _row_ranges(piece: Piece, width: int) -> list[range | None]:
    """Parts of the piece's rows that are small enough; [None] where it can only be read whole."""
    rows = piece.dims[0]
    row_bytes = max(1, width * (piece.num_bytes // width) // max(rows, 1))
    if piece.source.owned is not None and piece.source.dim != 0:
        return [None]
    step = max(1, CHUNK_BYTES // row_bytes)
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def _read_rows(piece: Piece, rows: range | None, weights: Weights) -> Tensor:
    source = piece.source
    if rows is None:
        return weights.read(source.source, source.dim, source.owned)
    first = source.owned.start if source.owned is not None else 0
    owned = range(first + rows.start, first + rows.stop)
    return weights.read(source.source, 0, owned)


def page_aligned(num_bytes: int) -> Tensor:
    """Flat uint8 host memory that begins on a page: no more than asked for, and given back."""
    # A normal tensor wherever this is called: other threads write to it.
    with torch.inference_mode(mode=False):
        if not num_bytes:
            return torch.empty(0, dtype=torch.uint8)
        pages = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):
            # Fewer, larger pages to lock for each direct read or copy; a kernel may decline.
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=torch.uint8)


def memory_of(flat: Tensor) -> memoryview:
    """The bytes of a flat uint8 tensor on the CPU."""
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # 3.12 knows it is a buffer


class Store(Protocol):
    """Units of one rank, waiting to be streamed."""

    how: str
    """Where they wait, and how they are read, in words."""

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        """Read a unit from the checkpoint and keep it."""

    def keep(self, unit: Unit, flat: Tensor) -> None:
        """Keep a unit that has been on the device so far."""

    def rows(self, unit: Unit, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of one matrix, as uint8 [rows, bytes of a row]."""

    def close(self) -> None:
        """Give everything back."""


class HostStore:
    """Units in host memory, page-locked where a GPU is to fetch them."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._flat: dict[str, Tensor] = {}
        self.how = "pinned host memory" if pinned else "host memory"

    def flat(self, unit: Unit) -> Tensor:
        """The unit's buffer."""
        return self._flat[unit.name]

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        """Read a unit from the checkpoint and keep it."""
        fill(unit, self._new(unit), weights, dtype)

    def keep(self, unit: Unit, flat: Tensor) -> None:
        """Keep a unit that has been on the device so far."""
        if unit.name not in self._flat:
            self._new(unit).copy_(flat)

    def _new(self, unit: Unit) -> Tensor:
        flat = page_aligned(unit.num_bytes)
        if self._pinned:
            pin(flat)
        self._flat[unit.name] = flat
        return flat

    def rows(self, unit: Unit, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of one matrix, as uint8 [rows, bytes of a row]."""
        piece = unit.piece(name)
        part = self._flat[unit.name][piece.start : piece.start + piece.num_bytes]
        return part.view(piece.dims[0], -1)[torch.tensor(rows, dtype=torch.int64)]

    def close(self) -> None:
        """Give everything back."""
        if self._pinned:
            for flat in self._flat.values():
                unpin(flat)
        self._flat.clear()
