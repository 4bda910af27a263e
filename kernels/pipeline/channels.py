"""One-way channels between the stages of a pipeline, and the messages in transit.

Every direction between two neighbours has a process group of its own, with its messages in a
fixed order. On a shared group, sends of one direction would queue before receives of the other,
and two stages could wait for each other.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise

from torch import Tensor
from torch.distributed import Work

from kernels.placement import axis_groups
from kernels.strategies import Strategy
from kernels.timeline import Timeline
from kernels.world import Group, World

AHEAD = {"cpu": 2, "cuda": 0}
"""Device → receives posted before they are needed. On a CPU they overlap with the computation.
On a GPU a receive is a kernel that spins until its message comes: posted early, it would occupy
the device beside the computation, or block it if both streams share a hardware queue."""


class Channels:
    """The channels between this rank and its neighbouring stages."""

    def __init__(self, strategy: Strategy, world: World) -> None:
        """Make all channels of the world; every rank calls this."""
        self._groups: list[Group] = []
        self.from_previous: Group | None = None
        self.to_next: Group | None = None
        self.to_first: Group | None = None
        """From the last stage to the first: both ends of it have it."""
        for stages in axis_groups(strategy)["stages"] if strategy.stages > 1 else ():
            for sender, receiver in pairwise(stages):
                group = world.group((sender, receiver))
                self.to_next = group if world.rank == sender else self.to_next
                self.from_previous = (
                    group if world.rank == receiver else self.from_previous
                )
                self._groups.append(group)
            group = world.group((stages[-1], stages[0]))
            self.to_first = group if group.index >= 0 else self.to_first
            self._groups.append(group)

    def close(self) -> None:
        """Free their connections."""
        for group in self._groups:
            group.close()


class Receiver:
    """Receives what another rank sends, in a fixed order."""

    def __init__(
        self,
        group: Group,
        buffers: Iterator[Tensor],
        ahead: int,
        timeline: Timeline,
    ) -> None:
        """
        Args:
            buffers: yields the tensor for each message, in order; taken when its receive is posted.
            ahead: receives to post before they are needed.
        """
        self._group = group
        self._ahead = ahead
        self._timeline = timeline
        self._buffers = buffers
        self._posted: deque[tuple[Work | None, Tensor]] = deque()

    def receive(self) -> Tensor:
        """Return the next tensor once it is here (on a GPU, the stream waits)."""
        self._post(max(1, self._ahead))
        work, tensor = self._posted.popleft()
        if work is not None:
            with self._timeline.span("communication", "receive"):
                work.wait()
        self._post(self._ahead)
        return tensor

    def _post(self, count: int) -> None:
        for tensor in islice(self._buffers, max(0, count - len(self._posted))):
            self._posted.append((self._group.start_receive(tensor, 0), tensor))


class Sender:
    """Sends to another rank, and keeps what it sends until it has arrived."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sent: deque[tuple[int, Work | None, Tensor]] = deque()

    def send(self, number: int, tensor: Tensor) -> None:
        """Send without waiting, or two stages that send to each other would both wait."""
        tensor = tensor.contiguous()
        self._sent.append((number, self._group.start_send(tensor, 1), tensor))

    def release(self, number: int) -> None:
        """Release the tensors up to this number, which are known to have arrived."""
        while self._sent and self._sent[0][0] <= number:
            work = self._sent.popleft()[1]
            if work is not None:
                work.wait()
