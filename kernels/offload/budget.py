"""What a device may hold while weights are streamed to it, and what it did hold at most."""

import torch

from kernels import memory
from kernels.offload.plan import OffloadError
from kernels.strategies import ZeroOffload

_CPU_TOLERANCE = 1.1
"""A CPU's budget counts the whole process, of which allocators and libraries are a part."""
_MARGIN_BYTES = 80 * 2**20
"""Workspace of matrix kernels, and what allocators round up."""


class BudgetError(RuntimeError):
    """The device held more than the memory budget allows."""


class DeviceBudget:
    """The budget of one device: a GPU's allocations, or on a CPU the memory of the process."""

    def __init__(
        self, device: torch.device, options: ZeroOffload, local_size: int
    ) -> None:
        """Plan with what the budget leaves beside what is held now.

        Without a budget, `resident: auto` plans with what is free, which on a CPU is shared by
        `local_size` ranks.

        Raises:
            OffloadError: a budget that weights in host memory would break by themselves.
        """
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._limit_bytes = limit = options.memory_budget_bytes
        if limit and not self._on_gpu and options.source == "host":
            raise OffloadError(
                f"a CPU's memory budget counts the weights in host memory too, got "
                f"memory_budget_bytes: {limit} with source: host; take source: disk"
            )
        self._room_bytes: int | None = None
        if limit:
            self._room_bytes = limit - self._held_bytes()
        elif options.resident == "auto":
            self._room_bytes = self._free_bytes(local_size)

    def _held_bytes(self) -> int:
        if self._on_gpu:
            return torch.cuda.memory_allocated(self._device)
        return memory.resident_bytes()

    def _free_bytes(self, local_size: int) -> int:
        if self._on_gpu:
            return torch.cuda.mem_get_info(self._device)[0] * 95 // 100
        return memory.available_bytes() * 9 // 10 // local_size

    def available_bytes(self, batch_bytes: int) -> int | None:
        """Return what weights may take beside a batch of so many bytes; None: any number."""
        if self._room_bytes is None:
            return None
        return self._room_bytes - batch_bytes - _MARGIN_BYTES

    def watch_peak(self) -> None:
        """Forget the peak so far."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            memory.reset_peak()

    def peak_bytes(self) -> int:
        """Return the most that was held since `watch_peak`."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated(self._device)
        return memory.peak_resident_bytes()

    def check(self) -> None:
        """Check that the peak is within the budget.

        Raises:
            BudgetError: it is not.
        """
        limit, peak = self._limit_bytes, self.peak_bytes()
        if limit and peak > limit * (1 if self._on_gpu else _CPU_TOLERANCE):
            raise BudgetError(
                f"{'the GPU' if self._on_gpu else 'the process'} held {peak} bytes at its "
                f"peak, memory_budget_bytes allows {limit}; raise it, or take a smaller "
                f"batch or shorter sequences"
            )
