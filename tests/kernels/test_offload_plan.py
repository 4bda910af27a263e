"""What stays, what is streamed, and how much memory that takes: integers, on paper."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.offload.plan import (
    PAGE_BYTES,
    TENSOR_ALIGNMENT,
    OffloadError,
    evenly,
    plan_offload,
    units_of,
)
from kernels.placement import owned_slices, place
from kernels.shapes import DTYPE_BYTES, KNOWN, weight_bytes
from kernels.strategies import Parallel, TensorParallel, ZeroOffload

sizes_of_units = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.2-1b", "qwen2.5-0.5b"])
def test_units_hold_every_parameter_of_a_rank_once_and_apart(
    model: str, tensor: int
) -> None:
    shape = KNOWN[model]
    if shape.n_heads % tensor:
        tensor = 2
    strategy = Parallel(
        tensor=TensorParallel(degree=tensor), zero_offload=ZeroOffload()
    )
    placement = place(strategy, shape, rank=tensor - 1)
    units = units_of(placement, shape, "bfloat16")
    assert list(units) == [
        "tok_embeddings",
        *(f"layers.{layer}" for layer in range(shape.n_layers)),
        "norm",
        "output",
    ]
    pieces = [piece for unit in units.values() for piece in unit.tensors]
    assert [piece.name for piece in pieces] == list(owned_slices(placement, shape))
    for unit in units.values():
        assert unit.num_bytes % PAGE_BYTES == 0
        ends = [0, *(piece.start + piece.num_bytes for piece in unit.tensors)]
        for piece, end in zip(unit.tensors, ends, strict=False):
            assert piece.start % TENSOR_ALIGNMENT == 0
            assert end <= piece.start < end + TENSOR_ALIGNMENT
        assert ends[-1] <= unit.num_bytes


def test_the_shards_of_all_ranks_are_the_model() -> None:
    shape, strategy = KNOWN["llama-2-7b"], Parallel(tensor=TensorParallel(degree=4))
    held = 0
    for rank in range(4):
        for unit in units_of(place(strategy, shape, rank), shape, "float16").values():
            held += sum(piece.num_bytes for piece in unit.tensors)
    norms = (2 * shape.n_layers + 1) * shape.dim * DTYPE_BYTES["float16"]
    assert held == weight_bytes(shape, "float16") + 3 * norms


@given(st.integers(1, 40), st.data())
def test_what_stays_is_spread_evenly_with_the_head_first(
    count: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, count))
    stays = evenly(count, chosen)
    assert len(stays) == chosen
    assert not chosen or count - 1 in stays
    gaps = sorted(stays)
    apart = {b - a for a, b in pairwise(gaps)}
    assert max(apart, default=1) - min(apart, default=1) <= 1


def test_a_share_of_the_units_stays() -> None:
    plan = plan_offload([10] * 8, 0.5, None)
    assert sum(plan.is_resident) == 4
    assert (plan.resident_bytes, plan.device_bytes, plan.depth) == (40, 70, 3)
    assert plan_offload([10] * 8, 1.0, None).device_bytes == 80
    assert plan_offload([10] * 8, 0.0, None).resident_bytes == 0


@given(sizes_of_units, st.integers(0, 700))
def test_auto_keeps_as_much_as_fits_and_no_more(
    sizes: list[int], available: int
) -> None:
    try:
        plan = plan_offload(sizes, "auto", available)
    except OffloadError:
        assert available < max(sizes)
        return
    assert plan.device_bytes <= available
    kept = sum(plan.is_resident)
    if kept < len(sizes):
        more = evenly(len(sizes), kept + 1)
        streamed = [size for at, size in enumerate(sizes) if at not in more]
        needed = sum(sizes[at] for at in more) + 2 * max(streamed, default=0)
        assert needed > available


def test_a_buffer_holds_the_largest_unit_that_is_streamed() -> None:
    assert plan_offload([10, 30, 20], 0.0, None).device_bytes == 3 * 30
    assert plan_offload([10, 20, 70], 1 / 3, None).device_bytes == 70 + 3 * 20


@pytest.mark.parametrize(("available", "depth"), [(30, 3), (29, 2), (19, 1)])
def test_a_tight_budget_makes_the_ring_shallower(available: int, depth: int) -> None:
    assert plan_offload([10, 10, 10], 0.0, available).depth == depth


def test_what_cannot_fit_is_refused_with_its_bytes_and_the_way_out() -> None:
    with pytest.raises(OffloadError, match=r"buffer, 10 bytes.* leaves 9 .* by 1 or"):
        plan_offload([10, 10], 0.0, 9)
