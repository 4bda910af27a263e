"""The groups of ranks that a strategy's axes make: shards, stages, replicas."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.placement import axis_groups
from kernels.strategies import Strategy
from kernels.world import Group, World


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups that this rank is a member of, one per axis of the strategy."""

    shards: Group
    """Holders of the other parts of the same layers."""
    stages: Group
    """Holders of the layers before and after, first stage first."""
    replicas: Group
    """Holders of the same parts for other rows."""

    @classmethod
    def of(cls, strategy: Strategy, world: World) -> "Groups":
        """Make all groups of the world; every rank calls this."""
        axes = axis_groups(strategy)
        return cls(
            shards=world.group_among(axes["shards"]),
            stages=world.group_among(axes["stages"]),
            replicas=world.group_among(axes["replicas"]),
        )

    def close(self) -> None:
        """Free their connections."""
        for group in (self.shards, self.stages, self.replicas):
            group.close()


def gather_uneven(group: Group, x: Tensor, dim: int, parts: list[range]) -> Tensor:
    """Concatenate the members' tensors along `dim`; member i holds the indices `parts[i]`."""
    # all_gather wants equal shapes: pad to the longest part, cut afterwards.
    if group.size == 1:
        return x
    longest = max(map(len, parts))
    size = list(x.shape)
    size[dim] = longest
    padded = x.new_zeros(size)
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    gathered = group.all_gather(padded)
    return torch.cat(
        [
            one.narrow(dim, 0, len(part))
            for one, part in zip(gathered, parts, strict=True)
        ],
        dim=dim,
    )
