"""What zero-offload keeps on a device, what it streams there, and how many bytes that takes.

Integers only, no torch. A *unit* is what travels in one piece: a layer, or the head (the output
matrix). The final norm is small and stays. The embedding is never on the device: of it only the
rows of the batch's tokens are needed, and they are gathered on the host.

Units pass through a ring of buffers in the order of use, for ever: after the head comes the first
streamed layer, for the next token.

    depth 3    buffer 0   layer 0   layer 3   head …
               buffer 1   layer 1   layer 4   layer 0 …    ← while layer 3 computes,
               buffer 2   layer 2   layer 5   layer 1 …      4 and 5 are fetched
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from kernels.placement import Placement, Slice, owned_slices
from kernels.shapes import DTYPE_BYTES, ModelShape, num_elements, tensors

PAGE_BYTES = 4096
"""Units are padded to a multiple of it, as are addresses and offsets, for direct reads of files."""
TENSOR_ALIGNMENT = 256
"""A tensor begins at a multiple of it within its unit: matrix kernels are fastest so."""
MAX_DEPTH = 3
"""Buffers of a ring: one is computed with, one is waiting, one is copied to."""
EMBEDDING, NORM, HEAD = "tok_embeddings", "norm", "output"
"""The units that are not layers."""


class OffloadError(ValueError):
    """What zero-offload is asked for does not fit; the message has the bytes and the way out."""


@dataclass(frozen=True, kw_only=True)
class PackedTensor:
    """One tensor within a unit's flat buffer."""

    name: str
    """Of the parameter."""
    source: Slice
    dims: tuple[int, ...]
    start: int
    """Offset in the buffer, in bytes."""
    num_bytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.start + self.num_bytes


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Tensors that are copied together, one after another in one buffer."""

    name: str
    tensors: tuple[PackedTensor, ...]
    num_bytes: int
    """A multiple of `PAGE_BYTES`."""


def round_up(num_bytes: int, multiple: int = PAGE_BYTES) -> int:
    """Return the least multiple that is no less.

    >>> round_up(4097)
    8192
    """
    return -(-num_bytes // multiple) * multiple


def units_of(placement: Placement, shape: ModelShape, dtype: str) -> dict[str, Unit]:
    """Return every unit of a rank by its name (`layers.3`), in order of use."""
    whole, width = tensors(shape), DTYPE_BYTES[dtype]
    packed: dict[str, list[PackedTensor]] = {}
    for name, part in owned_slices(placement, shape).items():
        unit = packed.setdefault(_unit_name(name), [])
        dims = _local_dims(whole[part.source], part)
        tensor = PackedTensor(
            name=name,
            source=part,
            dims=dims,
            start=round_up(unit[-1].end, TENSOR_ALIGNMENT) if unit else 0,
            num_bytes=num_elements(dims) * width,
        )
        unit.append(tensor)
    return {
        name: Unit(name=name, tensors=tuple(unit), num_bytes=round_up(unit[-1].end))
        for name, unit in packed.items()
    }


def _unit_name(parameter: str) -> str:
    words = parameter.split(".")
    return ".".join(words[:2]) if words[0] == "layers" else words[0]


def _local_dims(dims: tuple[int, ...], part: Slice) -> tuple[int, ...]:
    if part.owned is None:
        return dims
    return (*dims[: part.dim], len(part.owned), *dims[part.dim + 1 :])


@dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """Which units stay on the device, and the ring that the others pass through."""

    is_resident: tuple[bool, ...]
    """For each unit, in order of use."""
    resident_bytes: int
    buffer_bytes: int
    """Of the largest streamed unit."""
    depth: int
    """Buffers: streamed units on the device at once, those being fetched included."""

    @property
    def device_bytes(self) -> int:
        """Weights on the device, those being fetched included."""
        return self.resident_bytes + self.depth * self.buffer_bytes


def plan_offload(
    sizes: Sequence[int], resident: float | Literal["auto"], available_bytes: int | None
) -> OffloadPlan:
    """Decide which units of these sizes stay on the device and which are streamed.

    Args:
        sizes: bytes of each unit, in order of use.
        resident: share of the units that stays, or `auto`: as many as fit.
        available_bytes: what the weights on the device may take; None for no limit.

    Raises:
        OffloadError: they do not fit, even with a single buffer.
    """
    room = inf if available_bytes is None else available_bytes
    if resident == "auto":
        # Two buffers, so that what is streamed is fetched ahead, come before residents.
        counts = range(len(sizes), 0, -1)
        fits = (
            count for count in counts if _plan(sizes, count, 2).device_bytes <= room
        )
        count = next(fits, 0)
    else:
        count = round(resident * len(sizes))
    for depth in range(MAX_DEPTH, 0, -1):
        plan = _plan(sizes, count, depth)
        if plan.device_bytes <= room:
            return plan
    raise OffloadError(
        f"the device must hold the resident weights, {plan.resident_bytes} bytes, and one "
        f"buffer, {plan.buffer_bytes} bytes; its memory budget leaves {max(room, 0)} "
        f"beside the cache, activations and, on a CPU, the process; raise memory_budget_bytes by "
        f"{plan.device_bytes - room} or keep less resident"
    )


def _plan(sizes: Sequence[int], count: int, depth: int) -> OffloadPlan:
    stays = evenly(len(sizes), count)
    streamed = [size for index, size in enumerate(sizes) if index not in stays]
    return OffloadPlan(
        is_resident=tuple(index in stays for index in range(len(sizes))),
        resident_bytes=sum(sizes[index] for index in stays),
        buffer_bytes=max(streamed, default=0),
        depth=depth if streamed else 0,
    )


def evenly(count: int, chosen: int) -> frozenset[int]:
    """Choose `chosen` of `count` indices at even distances; the last index is the first choice.

    Even, so that every streamed unit has the same time to arrive. The last index is the head.

    >>> sorted(evenly(8, 3))
    [2, 5, 7]
    """
    return frozenset(
        index
        for index in range(count)
        if (index + 1) * chosen // count > index * chosen // count
    )


def working_bytes(
    placement: Placement, shape: ModelShape, rows: int, tokens: int, width: int
) -> int:
    """Estimate what a pass of `tokens` tokens a row holds at once beside weights and cache.

    That is the widest point of a layer (the feed-forward, with two copies of the hidden states in
    fp32 for the norm), the mask, and the logits of one token of each row.
    """
    wide = 3 * len(placement.ffn) + 4 * shape.dim
    heads = 3 * len(placement.heads) * shape.head_dim
    mask = tokens * len(placement.heads) // max(1, len(placement.kv_heads))
    per_token = (wide + heads + 2 * mask) * width + 2 * shape.dim * 4
    return rows * (tokens * per_token + 3 * len(placement.vocab) * 4)
