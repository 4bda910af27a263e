"""Who owns what: every weight exactly once, and only degrees that a model allows."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.placement
from kernels.placement import (
    Placement,
    axis_groups,
    impossible,
    owned_slices,
    place,
    split_evenly,
    stage_layers,
)
from kernels.shapes import KNOWN, ModelShape, num_elements, tensors
from kernels.strategies import (
    DataParallel,
    ModelParallel,
    Parallel,
    Strategy,
    TensorParallel,
)

SHAPE = ModelShape(
    dim=32, n_layers=5, n_heads=8, n_kv_heads=4, ffn_dim=97, vocab_size=131
)


def strategy(data: int = 1, stages: int = 1, tensor: int = 1) -> Strategy:
    return Parallel(
        tensor=TensorParallel(degree=tensor),
        data=DataParallel(degree=data),
        model=ModelParallel(degree=stages),
    )


def placements(spread: Strategy, shape: ModelShape) -> list[Placement]:
    return [place(spread, shape, rank) for rank in range(spread.world_size)]


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(kernels.placement).failed == 0


@given(count=st.integers(0, 200), parts=st.integers(1, 20))
def test_an_even_split_is_consecutive_complete_and_even(count: int, parts: int) -> None:
    ranges = split_evenly(count, parts)
    assert [index for part in ranges for index in part] == list(range(count))
    lengths = [len(part) for part in ranges]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_a_split_of_ones_own_is_kept() -> None:
    spread = Parallel(model=ModelParallel(degree=3, split=(1, 3, 1)))
    assert stage_layers(spread, 5) == [range(1), range(1, 4), range(4, 5)]


def test_ranks_count_the_tensor_shard_fastest_then_the_stage_then_the_replica() -> None:
    placed = placements(strategy(data=2, stages=2, tensor=2), SHAPE)
    assert [(one.replica, one.stage, one.shard) for one in placed] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1),
        (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_query_heads_are_with_the_kv_head_they_attend_to(tensor: int) -> None:
    share = SHAPE.n_heads // SHAPE.n_kv_heads
    for one in placements(strategy(tensor=tensor), SHAPE):
        assert {head // share for head in one.heads} == set(one.kv_heads)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "spread",
    [
        strategy(),
        strategy(stages=3),
        strategy(tensor=4),
        strategy(stages=5, tensor=2),
        strategy(data=2, stages=2, tensor=2),
    ],
    ids=str,
)
def test_each_replica_owns_every_weight_exactly_once(
    spread: Strategy, tied: bool
) -> None:
    shape = ModelShape(**(vars(SHAPE) | {"tied_embeddings": tied}))
    for replica in range(spread.replicas):
        owned: dict[str, list[int]] = {}
        for one in placements(spread, shape):
            if one.replica == replica:
                for name, part in owned_slices(one, shape).items():
                    size = tensors(shape)[part.source][part.dim]
                    owned.setdefault(name, []).extend(part.owned or range(size))
        expected = tensors(shape) | {"output.weight": (shape.vocab_size, shape.dim)}
        assert owned.keys() == expected.keys()
        for name, indices in owned.items():
            times = spread.shards if "norm" in name else 1
            rows = sorted(set(indices))
            assert sorted(indices) == sorted(rows * times), name
            assert len(rows) in expected[name]


def test_kv_heads_are_copied_where_there_are_more_shards() -> None:
    placed = placements(strategy(tensor=8), SHAPE)
    assert [one.kv_heads.start for one in placed] == [0, 0, 1, 1, 2, 2, 3, 3]
    part = owned_slices(placed[5], SHAPE)["layers.0.attention.wk.weight"]
    assert part.owned == range(8, 12)


def test_only_the_first_stage_embeds_and_only_the_last_one_has_the_head() -> None:
    first, middle, last = placements(strategy(stages=3), SHAPE)
    assert "tok_embeddings.weight" in owned_slices(first, SHAPE)
    assert list(owned_slices(last, SHAPE))[-2:] == ["norm.weight", "output.weight"]
    assert all(name.startswith("layers.") for name in owned_slices(middle, SHAPE))


def test_a_tied_head_reads_the_embedding() -> None:
    shape = KNOWN["llama-3.2-1b"]
    last = placements(strategy(stages=2), shape)[1]
    assert owned_slices(last, shape)["output.weight"].source == "tok_embeddings.weight"


@settings(max_examples=50)
@given(data=st.integers(1, 3), stages=st.integers(1, 4), tensor=st.integers(1, 4))
def test_every_rank_is_in_one_group_of_each_axis(
    data: int, stages: int, tensor: int
) -> None:
    spread = strategy(data, stages, tensor)
    for axis, groups in axis_groups(spread).items():
        ranks = sorted(rank for group in groups for rank in group)
        assert ranks == list(range(spread.world_size))
        assert {len(group) for group in groups} == {getattr(spread, axis)}


def test_members_of_a_group_differ_along_its_axis_only() -> None:
    spread = strategy(data=2, stages=3, tensor=2)
    placed = placements(spread, SHAPE)
    for axis, field in (
        ("replicas", "replica"),
        ("stages", "stage"),
        ("shards", "shard"),
    ):
        others = {"replica", "stage", "shard"} - {field}
        for group in axis_groups(spread)[axis]:
            members = [placed[rank] for rank in group]
            assert [getattr(one, field) for one in members] == list(range(len(group)))
            for other in others:
                assert len({getattr(one, other) for one in members}) == 1


@pytest.mark.parametrize(
    ("spread", "says"),
    [
        (
            strategy(tensor=3),
            "the tensor degree must divide the attention heads: 3 does not divide 8; "
            "take one of 1, 2, 4, 8",
        ),
        (
            strategy(stages=6),
            "a stage needs at least one layer: 6 stages for 5 layers; take at most 5 stages",
        ),
        (
            Parallel(model=ModelParallel(degree=2, split=(5, 1))),
            "split must give each of 2 stages at least one of 5 layers, got [5, 1]",
        ),
    ],
    ids=["heads", "layers", "split"],
)
def test_what_cannot_be_spread_says_why_and_what_can(
    spread: Strategy, says: str
) -> None:
    assert impossible(spread, SHAPE) == [says]


def test_shards_and_kv_heads_must_fit_into_each_other() -> None:
    shape = ModelShape(
        dim=48, n_layers=2, n_heads=12, n_kv_heads=6, ffn_dim=97, vocab_size=131
    )
    assert impossible(strategy(tensor=4), shape) == [
        "the tensor degree must divide the KV heads or be a multiple of them: 4 and 6 are "
        "neither; take one of 1, 2, 3, 6, 12"
    ]
    for tensor in (1, 2, 3, 6, 12):
        assert impossible(strategy(tensor=tensor), shape) == []


def test_every_known_model_spreads_over_two_and_four_ranks() -> None:
    for name, shape in KNOWN.items():
        for degree in (2, 4):
            assert impossible(strategy(stages=degree), shape) == [], name
            if shape.n_heads % degree == 0:
                assert impossible(strategy(tensor=degree), shape) == [], name


def test_shards_of_the_largest_model_add_up_to_it() -> None:
    shape = KNOWN["llama-2-70b"]
    total = 0
    for one in placements(strategy(stages=2, tensor=4), shape):
        for name, part in owned_slices(one, shape).items():
            dims = list(tensors(shape)[part.source])
            if part.owned is not None:
                dims[part.dim] = len(part.owned)
            if one.shard == 0 or "norm" not in name:
                total += num_elements(tuple(dims))
    assert total == 68_976_648_192
