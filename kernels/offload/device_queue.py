"""Where a device computes and copies, in order, and the events between the two.

A CPU computes as work is issued, so its points are always in the past. A GPU's points are events
in streams; it must copy from page-locked memory, or the host waits for every copy.
"""

import torch
from torch import Tensor

from kernels.offload.buffer_ring import Event, Queue


class _Past:
    def synchronize(self) -> None:
        pass


class HostQueue:
    """The CPU, whose computations are done once they are issued."""

    def record(self) -> Event:
        return _Past()

    def wait(self, event: Event) -> None:
        event.synchronize()


class CudaQueue:
    """The GPU's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, event: Event) -> None:
        wait_on(torch.cuda.current_stream(self._device), event)


def wait_on(stream: torch.cuda.Stream, event: Event) -> None:
    """Make work that the stream is given from now on run after `event`."""
    assert isinstance(event, torch.cuda.Event)
    stream.wait_event(event)


def queue_of(device: torch.device) -> Queue:
    """Return the queue in which a device computes."""
    return CudaQueue(device) if device.type == "cuda" else HostQueue()


def copy_on(stream: torch.cuda.Stream, target: Tensor, source: Tensor) -> Event:
    """Issue a copy on a stream and return the event of its end."""
    event = torch.cuda.Event()
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
        event.record(stream)
    return event


def pin(flat: Tensor) -> None:
    """Lock host memory in place, so that a GPU can copy from it while the host goes on.

    Registered, not allocated by torch: torch's pinned allocator rounds up to powers of two.
    """
    error = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), flat.nbytes, 0)
    if int(error):
        raise MemoryError(
            f"{flat.nbytes} bytes of host memory cannot be pinned (CUDA error {int(error)}): "
            f"give the job more memory, see `ulimit -l`, or take source: disk"
        )


def unpin(flat: Tensor) -> None:
    """Undo `pin`; nothing may be copying from the memory any more."""
    torch.cuda.cudart().cudaHostUnregister(flat.data_ptr())
