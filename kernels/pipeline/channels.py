"""One-way lines between the stages of a pipeline, and what is under way on them.

Every direction of every pair of neighbours has a group of its own, its messages in a fixed
order: on one shared group, sends of one direction would queue before receives of the other,
and two stages could wait for each other.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

from torch import Tensor
from torch.distributed import Work

from kernels.placement import axis_groups
from kernels.strategies import Strategy
from kernels.timeline import Timeline
from kernels.world import Group, World

AHEAD = {"cpu": 2, "cuda": 0}
"""Device → receives asked for before they are needed. On a CPU they overlap with the computation.
On a GPU a receive is a kernel that spins until its message comes: asked for early it would take
its place beside the computation, or before it where both streams share a hardware queue."""


class Channels:
    """The one-way lines between this rank and the stages next to it."""

    def __init__(self, strategy: Strategy, world: World) -> None:
        """Make all lines of the world; every rank calls this."""
        self._groups: list[Group] = []
        self.before: Group | None = None
        """From the stage before to this one."""
        self.after: Group | None = None
        """From this stage to the next one."""
        self.back: Group | None = None
        """From the last stage to the first one."""
        for stages in axis_groups(strategy)["stages"] if strategy.stages > 1 else ():
            for sender, receiver in pairwise(stages):
                line = world.group((sender, receiver))
                self.after = line if world.rank == sender else self.after
                self.before = line if world.rank == receiver else self.before
                self._groups.append(line)
            line = world.group((stages[-1], stages[0]))
            self.back = line if line.index >= 0 else self.back
            self._groups.append(line)

    def close(self) -> None:
        """Free their connections."""
        for group in self._groups:
            group.close()


class Inbox:
    """Tensors that another rank sends in a fixed order."""

    def __init__(
        self,
        line: Group,
        rooms: Iterable[Callable[[], Tensor]],
        ahead: int,
        timeline: Timeline,
    ) -> None:
        """
        Args:
            rooms: make the tensors to be filled, in the order of the messages.
            ahead: how many are asked for before they are taken.
        """
        self._line = line
        self._ahead = ahead
        self._timeline = timeline
        self._rooms = iter(rooms)
        self._coming: deque[tuple[Work | None, Tensor]] = deque()

    def take(self) -> Tensor:
        """The next tensor; waits for it (on a GPU, the stream does)."""
        self._ask(max(1, self._ahead))
        work, tensor = self._coming.popleft()
        if work is not None:
            with self._timeline.span("communication", "receive"):
                work.wait()
        self._ask(self._ahead)
        return tensor

    def _ask(self, count: int) -> None:
        while len(self._coming) < count and (room := next(self._rooms, None)):
            tensor = room()
            self._coming.append((self._line.start_receive(tensor, 0), tensor))


class Outbox:
    """Tensors under way to another rank, kept until they have arrived."""

    def __init__(self, line: Group) -> None:
        self._line = line
        self._going: deque[tuple[int, Work | None, Tensor]] = deque()

    def put(self, number: int, tensor: Tensor) -> None:
        """Send without waiting."""
        tensor = tensor.contiguous()
        self._going.append((number, self._line.start_send(tensor, 1), tensor))

    def forget(self, number: int) -> None:
        """Let go of the tensors up to this number, which are known to have arrived."""
        while self._going and self._going[0][0] <= number:
            work = self._going.popleft()[1]
            if work is not None:
                work.wait()
