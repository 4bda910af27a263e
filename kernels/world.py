"""The ranks of a run, and how they communicate.

`World.from_environment` is the only reader of torchrun's variables; everything else is handed
a world. A group of one rank never touches torch.distributed, so a single-device run needs no
process group at all.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class WorldError(ValueError):
    """The environment describes no world that this machine can hold."""


@dataclass(frozen=True, kw_only=True)
class World:
    """All ranks of a run, seen from one of them."""

    rank: int = 0
    local_rank: int = 0
    """Index among the ranks of this node; picks the GPU."""
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout_s: float = 600.0
    """How long a collective may wait for the other ranks before it fails."""

    @classmethod
    def from_environment(
        cls, device: str | None = None, timeout_s: float = 600.0
    ) -> "World":
        """Return the world that torchrun's variables describe; of one rank where they are absent.

        Args:
            device: `cpu` or `cuda`; None takes a GPU where there is one.
            timeout_s: how long a collective may wait for the other ranks.

        Raises:
            WorldError: a variable is no number, or there are fewer GPUs than local ranks.
        """
        rank, size, local_rank, local_size = (
            _number(os.environ, name, default)
            for name, default in (
                ("RANK", 0),
                ("WORLD_SIZE", 1),
                ("LOCAL_RANK", 0),
                ("LOCAL_WORLD_SIZE", 1),
            )
        )
        return cls(
            rank=rank,
            local_rank=local_rank,
            size=size,
            local_size=local_size,
            device=_device(device, local_rank, local_size),
            timeout_s=timeout_s,
        )

    def group(self, ranks: Sequence[int]) -> "Group":
        """Make a group of these ranks. Every rank of the world makes every group, in one order."""
        ranks = tuple(ranks)
        if len(ranks) == 1 or self.size == 1:
            return Group(ranks, self.rank, None)
        # A new group does not take over the timeout that the ranks met with.
        made = dist.new_group(list(ranks), timeout=timedelta(seconds=self.timeout_s))
        group = Group(ranks, self.rank, made)
        if group.index >= 0:
            # Or a member that closes early would cut the line of one that is still connecting.
            group.barrier()
        return group

    def group_among(self, partition: Sequence[Sequence[int]]) -> "Group":
        """Return the group of `partition` that holds this rank; makes the others on the way."""
        groups = [self.group(ranks) for ranks in partition]
        return next(group for group in groups if self.rank in group.ranks)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise WorldError(
            f"{name} must be a whole number, got {text!r}; start through torchrun "
            f"or leave it unset"
        ) from None


def _device(kind: str | None, local_rank: int, local_size: int) -> torch.device:
    kind = kind or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind != "cuda":
        return torch.device(kind)
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise WorldError(
            f"each rank needs a GPU of its own: {local_size} local ranks for {gpus} GPUs; "
            f"start fewer ranks per node or take the device cpu"
        )
    return torch.device("cuda", local_rank)


def join(world: World, meet_at: str | None = None) -> None:
    """Join the process group; does nothing in a world of one.

    Args:
        world: the world of this rank.
        meet_at: `file://` or `tcp://` address; None reads torchrun's MASTER_ADDR and MASTER_PORT.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
    if world.size == 1:
        return
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=meet_at,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=world.timeout_s),
        # NCCL then connects here, and not during the first collective that is timed.
        device_id=world.device if on_gpu else None,
    )


def leave() -> None:
    """Leave the process group; harmless if none was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Group:
    """Ranks that communicate; members are numbered by their index in `ranks`.

    In a group of one, every method returns its argument. Nothing here waits for the device.
    """

    def __init__(
        self, ranks: Sequence[int], rank: int, process_group: dist.ProcessGroup | None
    ) -> None:
        self.ranks = tuple(ranks)
        self.size = len(self.ranks)
        self.index = self.ranks.index(rank) if rank in self.ranks else -1
        """Place of this rank; -1 for an outsider."""
        self._process_group = process_group

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over the members, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._process_group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack every member's tensor in a new first dimension; all must have one shape."""
        if self.size == 1:
            return tensor[None]
        # One flat buffer: NCCL gathers into it without a copy per member.
        flat = tensor.new_empty(self.size * tensor.numel())
        _all_gather(flat, tensor.contiguous().view(-1), group=self._process_group)
        return flat.view(self.size, *tensor.shape)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Return the tensor of member `source`, in place."""
        if self.size > 1:
            dist.broadcast(tensor, self.ranks[source], group=self._process_group)
        return tensor

    def send(self, tensor: Tensor, to: int) -> None:
        """Hand the tensor to member `to`, who calls `receive`."""
        dist.send(tensor.contiguous(), self.ranks[to], group=self._process_group)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """Fill the tensor with what member `source` sends."""
        dist.recv(tensor, self.ranks[source], group=self._process_group)
        return tensor

    def start_send(self, tensor: Tensor, to: int) -> dist.Work | None:
        """`send` without waiting; the tensor (contiguous) must live until the work is done."""
        return dist.isend(tensor, self.ranks[to], group=self._process_group)

    def start_receive(self, tensor: Tensor, source: int) -> dist.Work | None:
        """`receive` without waiting; the tensor holds nothing until the work is done."""
        return dist.irecv(tensor, self.ranks[source], group=self._process_group)

    def barrier(self) -> None:
        """Wait until every member is here."""
        if self.size > 1:
            dist.barrier(group=self._process_group)

    def close(self) -> None:
        """Free the connections. The group cannot be used afterwards."""
        if self._process_group is not None and self.index >= 0:
            dist.destroy_process_group(self._process_group)
        self._process_group = None


Gathered = TypeVar("Gathered")


def object_gatherer(world: World) -> Callable[[Gathered], list[Gathered]]:
    """Return a function that gives every rank the objects of all ranks, in rank order.

    All ranks call this together, and then the function. The objects travel over the CPU, so that
    a full GPU does not matter.
    """
    if world.size == 1:
        return lambda thing: [thing]
    group = dist.new_group(backend="gloo")

    def gather(thing: Gathered) -> list[Gathered]:
        things: list[Any] = [None] * world.size
        dist.all_gather_object(things, thing, group=group)
        return things

    return gather
