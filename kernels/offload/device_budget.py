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
        """The strategy's budget; where it has none and needs one, what is free on the device.

        Args:
            device: of this rank.
            strategy: has the budget.
            local_size: ranks that share this machine's memory.

        Raises:
            OffloadError: a budget that weights in host memory would break by themselves.
        """
        self._device = device
        self.limit_bytes = options.memory_budget_bytes or None
        if device.type == "cpu" and self.limit_bytes and options.source == "host":
            raise OffloadError(
                "a CPU's memory budget counts the weights in host memory too: "
                "memory_budget_bytes with source: host; take source: disk"
            )
        if self.limit_bytes is None and options.resident == "auto":
            self._planned_bytes: int | None = self._free_bytes(local_size)
        else:
            self._planned_bytes = self.limit_bytes
        self._base_bytes = 0

    def _free_bytes(self, local_size: int) -> int:
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            return free * 95 // 100 + self._held_bytes()
        return memory.available_bytes() * 9 // 10 // local_size + self._held_bytes()

    def _held_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        memory.trim()
        return memory.resident_bytes()

    def set_base(self) -> None:
        """What is held now is there for good; the rest of the budget is to be planned."""
        self._base_bytes = self._held_bytes()

    def available_bytes(self, working_bytes: int) -> int | None:
        """What weights may take beside a cache and activations of so many bytes; None: any."""
        if self._planned_bytes is None:
            return None
        taken = self._base_bytes + working_bytes + _MARGIN_BYTES
        return self._planned_bytes - taken

    def begin(self) -> None:
        """Watch the peak from here on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            memory.reset_peak()

    def check(self) -> None:
        """See that the peak kept within the budget.

        Raises:
            BudgetError: it did not.
        """
        if self.limit_bytes is None:
            return
        on_gpu = self._device.type == "cuda"
        allowed = self.limit_bytes if on_gpu else int(self.limit_bytes * _CPU_TOLERANCE)
        peak = self.peak_bytes()
        if peak > allowed:
            raise BudgetError(
                f"{'the GPU' if on_gpu else 'the process'} held {peak} bytes at its peak, "
                f"memory_budget_bytes allows {self.limit_bytes}; raise it, or take a smaller "
                f"batch or shorter sequences"
            )

    def peak_bytes(self) -> int:
        """The most that was held since `begin`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return memory.peak_resident_bytes()
