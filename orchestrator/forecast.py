"""How much memory a case needs, from its shape and placement alone.

A floor, not an estimate: what it says cannot fit is not submitted and is a `#` in the table, so
it must never be too high. Per rank:

    weights   the slices that the placement owns; zero-offload: what is resident, and one buffer
    cache     keys and values of every sequence in flight, prompt and new tokens
    working   what a layer needs at most during the prefill (`offload.plan.working_bytes`), of
              one micro-batch, and `WORKSPACE_BYTES` for the matrix kernels

and in main memory `PROCESS_BYTES` for each process with what it keeps there: weights that wait
to be streamed, a cache on the host. Where there is no GPU all of it is in main memory.
"""

from dataclasses import dataclass
from functools import cache

from kernels.offload.plan import (
    EMBEDDING,
    HEAD,
    NORM,
    Unit,
    plan_offload,
    units_of,
    working_bytes,
)
from kernels.placement import Placement, place
from kernels.shapes import DTYPE_BYTES, ModelShape
from kernels.strategies import Strategy
from orchestrator.case import Case

WORKSPACE_BYTES = 32 * 2**20
PROCESS_BYTES = 256 * 2**20
"""Python with torch, before it loads a model."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank needs at least, in bytes."""

    rank: int
    weight_bytes: int
    cache_bytes: int
    working_bytes: int
    host_bytes: int
    """In main memory, beside the process itself."""

    @property
    def device_bytes(self) -> int:
        """On its GPU."""
        return self.weight_bytes + self.cache_bytes + self.working_bytes


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a case needs at least."""

    ranks: tuple[RankMemory, ...]
    """Of one replica."""
    replicas: int
    budget_bytes: int
    """What the case itself allows on a device; 0: no limit."""
    is_balanced: bool = False
    """The layers of each stage follow from a profile of the devices."""

    @property
    def device_bytes(self) -> int:
        """On the GPU that needs most."""
        each = [rank.device_bytes for rank in self.ranks]
        return sum(each) // len(each) if self.is_balanced else max(each)

    @property
    def host_bytes(self) -> int:
        """In main memory, of all ranks together, if devices have their own memory."""
        each = (rank.host_bytes + PROCESS_BYTES for rank in self.ranks)
        return self.replicas * sum(each)

    @property
    def all_bytes(self) -> int:
        """In main memory if there is no GPU."""
        on_devices = sum(rank.device_bytes for rank in self.ranks)
        return self.host_bytes + self.replicas * on_devices


def forecast(case: Case, shape: ModelShape) -> Forecast:
    """Return what the case needs if its model has that shape."""
    strategy = case.strategy
    one_replica = range(strategy.stages * strategy.shards)
    return Forecast(
        ranks=tuple(_rank(case, shape, rank) for rank in one_replica),
        replicas=strategy.replicas,
        budget_bytes=_budget_bytes(strategy),
        is_balanced=strategy.needs_profile,
    )


def _rank(case: Case, shape: ModelShape, rank: int) -> RankMemory:
    strategy = case.strategy
    placement, units = _owned(strategy, shape, case.dtype, rank)
    on_device, waiting = _weights(strategy, shape, units)
    width = DTYPE_BYTES[case.dtype]
    rows = strategy.in_flight or case.batch_size
    # a prompt of unknown length counts as one token: a floor
    prompt = case.prompt_tokens or 1
    per_token = 2 * len(placement.layers) * len(placement.kv_heads) * shape.head_dim
    cached = rows * (prompt + case.new_tokens) * per_token * width
    working = working_bytes(placement, shape, *_at_once(strategy, rows, prompt), width)
    offload = strategy.zero_offload
    cache_on_host = offload is not None and offload.kv == "host"
    return RankMemory(
        rank=rank,
        weight_bytes=on_device,
        cache_bytes=0 if cache_on_host else cached,
        working_bytes=working + WORKSPACE_BYTES,
        host_bytes=waiting + (cached if cache_on_host else 0),
    )


def _budget_bytes(strategy: Strategy) -> int:
    offload = strategy.zero_offload
    return (offload and offload.memory_budget_bytes) or 0


def _at_once(strategy: Strategy, rows: int, prompt: int) -> tuple[int, int]:
    """Return how many rows, of how many tokens, pass through a layer at once in the prefill."""
    parts = strategy.prefill_micro_batches
    if parts <= rows:
        return -(-rows // parts), prompt
    return 1, max(1, prompt * rows // parts)  # long prompts are cut too


@cache
def _owned(
    strategy: Strategy, shape: ModelShape, dtype: str, rank: int
) -> tuple[Placement, dict[str, Unit]]:
    placement = place(strategy, shape, rank)
    return placement, units_of(placement, shape, dtype)


def _weights(
    strategy: Strategy, shape: ModelShape, units: dict[str, Unit]
) -> tuple[int, int]:
    """Return the bytes on the device, and those that wait in main memory."""
    sizes = {name: _content(unit) for name, unit in units.items()}
    offload = strategy.zero_offload
    if offload is None:
        if shape.tied_embeddings and EMBEDDING in sizes and HEAD in sizes:
            del sizes[HEAD]  # one matrix, held once
        return sum(sizes.values()), 0
    moving = [size for name, size in sizes.items() if name not in (EMBEDDING, NORM)]
    share = 0.0 if offload.resident == "auto" else offload.resident
    plan = plan_offload(moving, share, None)
    streamed = [
        size for size, stays in zip(moving, plan.is_resident, strict=True) if not stays
    ]
    on_device = plan.resident_bytes + max(streamed, default=0) + sizes.get(NORM, 0)
    waiting = sum(streamed) + sizes.get(EMBEDDING, 0)
    return on_device, waiting if offload.source == "host" else 0


def _content(unit: Unit) -> int:
    return sum(tensor.num_bytes for tensor in unit.tensors)


def misfit(
    need: Forecast,
    device_memory_bytes: int | None,
    host_memory_bytes: int | None,
    *,
    device: str = "GPU",
    nodes: int = 1,
) -> str | None:
    """Return why the case cannot fit, for a `#` in the table; None if it may.

    Args:
        need: of the case.
        device_memory_bytes: of each device; None if it has only main memory, or it is not
            known.
        host_memory_bytes: main memory of a node that the case has; None: not known.
        device: what a device is called.
        nodes: of the job, with equally many ranks on each.
    """
    if need.budget_bytes and need.device_bytes > need.budget_bytes:
        needed, allowed = _gib(need.device_bytes, need.budget_bytes)
        return f"needs {needed} on each {device}, memory_budget_bytes allows {allowed}"
    if device_memory_bytes is not None and need.device_bytes > device_memory_bytes:
        needed, there = _gib(need.device_bytes, device_memory_bytes)
        return f"needs {needed} on each {device}, it has {there}"
    total = need.all_bytes if device_memory_bytes is None else need.host_bytes
    on_node = total // nodes
    if host_memory_bytes is not None and on_node > host_memory_bytes:
        needed, there = _gib(on_node, host_memory_bytes)
        return f"needs {needed} of main memory, there is {there}"
    return None


def _gib(*sizes: int) -> list[str]:
    # as few digits as tell them apart
    shown: list[str] = []
    for digits in range(0 if min(sizes) >= 2**30 else 1, 4):
        shown = [f"{size / 2**30:.{digits}f}" for size in sizes]
        if len(set(shown)) == len(shown):
            break
    return [f"{text} GiB" for text in shown]
