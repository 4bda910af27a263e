"""Where streamed weights wait: each unit flat, here in host memory (`file_store`: in a file).

A unit is read from the checkpoint tensor by tensor and at most `CHUNK_BYTES` at a time, so that
loading takes little memory beside the unit.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from kernels.offload.plan import PackedTensor, Unit
from kernels.weights import Weights, WeightsError

CHUNK_BYTES = 32 * 2**20
"""What is read from the checkpoint at a time."""
BLOCK_BYTES = 8 * 2**20
"""What one thread reads at a time: large enough for any disk's full rate."""


def views(unit: Unit, flat: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the unit's tensors by parameter name, as views of its flat uint8 buffer."""
    return {
        tensor.name: flat[tensor.start : tensor.end].view(dtype).view(tensor.dims)
        for tensor in unit.tensors
    }


def fill(unit: Unit, flat: Tensor, weights: Weights, dtype: torch.dtype) -> None:
    """Read a unit from the checkpoint into its flat buffer, on any device."""
    for start, chunk in chunks(unit, weights, dtype):
        part = flat[start : start + chunk.nbytes].view(dtype)
        part.copy_(chunk.view(-1))


def chunks(
    unit: Unit, weights: Weights, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Read a unit in consecutive parts: yield the offset and content of each.

    The content is contiguous, in `dtype` and on the CPU.

    Raises:
        WeightsError: the checkpoint lacks the tensor, or has it in another shape.
    """
    for tensor in unit.tensors:
        start = tensor.start
        for dim, owned in _pieces(tensor):
            read = weights.read(tensor.source.source, dim, owned)
            chunk = read.to(dtype).contiguous()
            yield start, chunk
            start += chunk.nbytes
        if start != tensor.end:
            raise WeightsError(
                f"{tensor.name} must be {list(tensor.dims)}, "
                f"but {tensor.source.source} gives {start - tensor.start} bytes of {dtype}"
            )


def _pieces(tensor: PackedTensor) -> list[tuple[int, range]]:
    """Cut a tensor into rows of at most `CHUNK_BYTES`: the dimension and indices to read."""
    source = tensor.source
    # A shard of columns lies scattered over all rows of the file: it is read whole.
    if source.owned is not None and source.dim != 0:
        return [(source.dim, source.owned)]
    rows = range(tensor.dims[0]) if source.owned is None else source.owned
    step = max(1, CHUNK_BYTES * len(rows) // max(1, tensor.num_bytes))
    return [(0, rows[first : first + step]) for first in range(0, len(rows), step)]


def page_aligned(num_bytes: int) -> Tensor:
    """Allocate flat uint8 host memory that begins on a page, holds zeros and is not rounded up."""
    # Not an inference tensor, whatever mode the caller is in: other threads write to it.
    with torch.inference_mode(mode=False):
        pages = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):
            # Fewer pages to lock for each direct read or copy; a kernel may decline.
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=torch.uint8)


def device_memory(num_bytes: int, device: torch.device) -> Tensor:
    """Allocate flat uint8 memory on a device; on a CPU on whole pages, as direct reads need."""
    if device.type == "cpu":
        return page_aligned(num_bytes)
    with torch.inference_mode(mode=False):
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def memory_of(flat: Tensor) -> memoryview:
    """Return the bytes of a flat uint8 tensor on the CPU, not a copy."""
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # 3.12 knows it is a buffer


class HostMemory:
    """Flat host memory, page-locked where a GPU copies to and from it while the host goes on."""

    def __init__(self, device: torch.device) -> None:
        self._is_locked = device.type == "cuda"
        self._flat: list[Tensor] = []

    def allocate(self, num_bytes: int) -> Tensor:
        """Allocate flat uint8 memory of zeros that begins on a page.

        Raises:
            MemoryError: it cannot be locked.
        """
        flat = page_aligned(num_bytes)
        if self._is_locked:
            # Registered, not allocated by torch: torch's allocator rounds up to powers of two.
            runtime = torch.cuda.cudart()
            error = int(runtime.cudaHostRegister(flat.data_ptr(), flat.nbytes, 0))
            if error:
                raise MemoryError(
                    f"{num_bytes} bytes of host memory cannot be pinned (CUDA error {error}): "
                    f"give the job more memory, see `ulimit -l`, or take source: disk"
                )
        self._flat.append(flat)
        return flat

    def free(self) -> None:
        """Free all of it; nothing may be copying any more."""
        for flat in self._flat:
            if self._is_locked:
                torch.cuda.cudart().cudaHostUnregister(flat.data_ptr())
        self._flat.clear()


class Store(Protocol):
    """Holds the streamed units of one rank."""

    block_bytes: int
    """What is read at a time."""

    def how(self) -> str:
        """Tell where the units are and how they are read, in words."""

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        """Read a unit from the checkpoint and keep it."""

    def read_block(self, unit: Unit, start: int, target: Tensor) -> None:
        """Fill `target`, flat uint8, with the unit's bytes from `start` on.

        On a GPU, which only page-locked memory can fill, the current stream does so later.
        """

    def rows(self, unit: Unit, rows: Sequence[int]) -> Tensor:
        """Return some rows of a unit that is one matrix, as uint8 [rows, bytes of a row]."""

    def close(self) -> None:
        """Free the memory or files."""


class HostStore:
    """Units in host memory, page-locked where a GPU is to fetch them."""

    block_bytes = BLOCK_BYTES

    def __init__(self, device: torch.device) -> None:
        self._memory = HostMemory(device)
        self._is_pinned = device.type == "cuda"
        self._flat: dict[str, Tensor] = {}

    def how(self) -> str:
        return "pinned host memory" if self._is_pinned else "host memory"

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        self._flat[unit.name] = self._memory.allocate(unit.num_bytes)
        fill(unit, self._flat[unit.name], weights, dtype)

    def read_block(self, unit: Unit, start: int, target: Tensor) -> None:
        source = self._flat[unit.name][start : start + len(target)]
        target.copy_(source, non_blocking=True)

    def rows(self, unit: Unit, rows: Sequence[int]) -> Tensor:
        [matrix] = unit.tensors
        flat = self._flat[unit.name][: matrix.num_bytes]
        return flat.view(matrix.dims[0], -1)[list(rows)]

    def close(self) -> None:
        self._flat.clear()
        self._memory.free()
