"""Batches, the choice of the next token, and the end of a row."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from answers import SHAPES, batch_of, prompts, random_weights
from ranks import Ranks

from kernels.generate import (
    NOTHING,
    Batch,
    Generation,
    NewTokens,
    choose,
    gumbel_noise,
)
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.placement import split_evenly
from kernels.strategies import (
    DataParallel,
    ModelParallel,
    Parallel,
    Single,
    Strategy,
    TensorParallel,
)
from kernels.world import World

CPU = torch.device("cpu")
ALONE = World().group([0])


def engine_of(strategy: Strategy, world: World) -> LlamaEngine:
    shape = SHAPES["mha"]
    weights = random_weights(shape, torch.float32)
    return parallelize(shape, strategy, world, torch.float32, weights)


def alone() -> LlamaEngine:
    return engine_of(Parallel(single=Single()), World())


def new_tokens(rows: range, **generation: float) -> NewTokens:
    return NewTokens.of(rows, Generation(new_tokens=4, **generation), CPU)  # type: ignore[arg-type]


def test_prompts_are_padded_on_the_left() -> None:
    batch = Batch.of([[5, 6], [7, 8, 9]])
    assert batch.ids_BT.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert batch.pad_B.tolist() == [1, 0]
    assert (batch.size, batch.length) == (2, 3)


def test_a_batch_may_be_longer_than_its_longest_prompt() -> None:
    assert Batch.of([[5]], length=4).ids_BT.tolist() == [[0, 0, 0, 5]]


def test_a_part_of_a_batch_keeps_its_length() -> None:
    part = Batch.of([[1], [2, 3], [4, 5, 6]]).rows(range(1, 2))
    assert (part.ids_BT.tolist(), part.pad_B.tolist()) == ([[0, 2, 3]], [1])


@pytest.mark.parametrize(
    ("rows", "length", "says"),
    [
        ([], None, "at least one token each"),
        ([[1], []], None, "at least one token each"),
        ([[1, 2, 3]], 2, "a prompt of 3 tokens does not fit a batch 2 tokens long"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    rows: list[list[int]], length: int | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Batch.of(rows, length)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"new_tokens": 0}, "new_tokens must be at least 1, got 0"),
        ({"new_tokens": 1, "temperature": -1.0}, "temperature must be at least 0"),
        ({"new_tokens": 1, "stop_at_eos": True}, "stop_at_eos needs eos_ids"),
    ],
)
def test_a_generation_that_cannot_be_is_refused(
    settings: dict[str, int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Generation(**settings)


def test_of_equal_logits_the_lowest_id_wins() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    chosen_B = choose(logits_BV, new_tokens(range(2)), range(4), ALONE)
    assert chosen_B.tolist() == [1, 0]


def choose_among_shards(world: World, temperature: float) -> list[int]:
    logits_BV = torch.zeros(5, 131)
    logits_BV[1, [70, 40]] = 1.0
    logits_BV[2, [130, 66, 65]] = 2.0
    logits_BV[3] = float("-inf")
    logits_BV[3, 129] = -7.0
    vocab = split_evenly(131, world.size)[world.rank]
    tokens = new_tokens(range(5), temperature=temperature)
    mine_BV = logits_BV[:, vocab.start : vocab.stop]
    shards = world.group(range(world.size))
    return choose(mine_BV, tokens, vocab, shards).tolist()  # type: ignore[no-any-return]


def test_of_equal_logits_on_several_shards_the_lowest_id_wins(
    ranks: Callable[[int], Ranks],
) -> None:
    expected = [0, 40, 65, 129, 0]
    assert choose_among_shards(World(), 0.0) == expected
    for size in (2, 4):
        assert ranks(size).run(choose_among_shards, 0.0) == [expected] * size


def test_shards_sample_as_one_device_does(ranks: Callable[[int], Ranks]) -> None:
    expected = choose_among_shards(World(), 1.0)
    assert expected != choose_among_shards(World(), 0.0)
    assert ranks(4).run(choose_among_shards, 1.0) == [expected] * 4


def test_noise_belongs_to_seed_index_row_and_id() -> None:
    whole = gumbel_noise(new_tokens(range(8), seed=3), range(100))
    part = gumbel_noise(new_tokens(range(2, 5), seed=3), range(40, 70))
    assert torch.equal(whole[2:5, 40:70], part)
    assert whole.unique().numel() > 0.99 * whole.numel()
    other_seed = gumbel_noise(new_tokens(range(8), seed=4), range(100))
    later = new_tokens(range(8), seed=3)
    later.append(torch.zeros(8, dtype=torch.int64))
    for other in (other_seed, gumbel_noise(later, range(100))):
        assert not bool((whole == other).all(1).any())
        assert (
            abs(float(torch.corrcoef(torch.stack([whole, other]).flatten(1))[0, 1]))
            < 0.1
        )


def test_noise_is_gumbels() -> None:
    noise = gumbel_noise(new_tokens(range(400)), range(1000)).flatten().double()
    assert bool(torch.isfinite(noise).all())
    levels = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    quantiles = -torch.log(-torch.log(levels))
    below = torch.searchsorted(noise.sort().values, quantiles) / noise.numel()
    # Kolmogorov's bound for 400,000 draws at one in a million is 0.0043.
    assert float((below - levels).abs().max()) < 0.0043


def test_sampling_follows_the_softmax() -> None:
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0])
    tokens = new_tokens(range(20_000), temperature=0.5)
    drawn_B = choose(logits_V.expand(20_000, 4), tokens, range(4), ALONE)
    shares = torch.bincount(drawn_B, minlength=4) / 20_000
    assert torch.allclose(shares, torch.softmax(logits_V / 0.5, 0), atol=0.015)


def test_a_row_keeps_its_end_token_and_nothing_after_it() -> None:
    generation = Generation(new_tokens=4, eos_ids=(9, 8), stop_at_eos=True)
    tokens = NewTokens.of(range(3), generation, CPU)
    ended = []
    for ids in ([1, 9, 2], [8, 5, 9], [3, 4, 9]):
        tokens.append(torch.tensor(ids))
        ended.append(tokens.all_ended())
    assert ended == [False, True, True]
    assert tokens.ids_BN.tolist() == [
        [1, 8, NOTHING, NOTHING],
        [9, NOTHING, NOTHING, NOTHING],
        [2, 9, NOTHING, NOTHING],
    ]


def test_end_tokens_are_tokens_like_others_unless_they_stop() -> None:
    tokens = NewTokens.of(range(1), Generation(new_tokens=2, eos_ids=(9,)), CPU)
    tokens.append(torch.tensor([9]))
    assert not tokens.all_ended()
    tokens.append(torch.tensor([7]))
    assert tokens.ids_BN.tolist() == [[9, 7]]


def stopped_ids(
    world: World, strategy: Strategy, eos_ids: tuple[int, ...]
) -> tuple[list[list[int]], list[int]]:
    engine = engine_of(strategy, world)
    heard: list[int] = []
    generation = Generation(new_tokens=12, eos_ids=eos_ids, stop_at_eos=True)
    ids_BN = engine.generate(batch_of(4), generation, heard.append)
    engine.close()
    return ids_BN.tolist(), heard


@pytest.mark.parametrize(
    "strategy",
    [
        Parallel(model=ModelParallel(degree=2)),
        Parallel(tensor=TensorParallel(degree=2)),
        Parallel(data=DataParallel(degree=2)),
        Parallel(model=ModelParallel(degree=2), tensor=TensorParallel(degree=2)),
    ],
    ids=lambda one: "+".join(one.names),
)
def test_generation_stops_once_every_row_has_ended_on_every_rank(
    strategy: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    free = alone().generate(batch_of(4), Generation(new_tokens=12)).tolist()
    common = Counter(token for row in free for token in set(row[1:8])).most_common()
    eos_ids = tuple(token for token, _ in common)
    ends = [
        next(index for index, token in enumerate(row) if token in eos_ids)
        for row in free
    ]
    expected = [
        row[: end + 1] + [NOTHING] * (11 - end)
        for row, end in zip(free, ends, strict=True)
    ]
    assert len(set(ends)) > 1, "rows must end at different tokens to show anything"
    by_rank = ranks(strategy.world_size).run(stopped_ids, strategy, eos_ids)
    for ids, heard in by_rank:
        assert ids == expected
        assert heard == list(range(len(heard)))
        # A replica stops by itself; otherwise all ranks hear of the same tokens.
        assert len(heard) == max(ends) + 1 or strategy.replicas > 1
    assert max(len(heard) for _, heard in by_rank) == max(ends) + 1


def heard_tokens(world: World, strategy: Strategy) -> list[int]:
    engine = engine_of(strategy, world)
    heard: list[int] = []
    engine.generate(batch_of(4), Generation(new_tokens=5), heard.append)
    engine.close()
    return heard


def test_every_rank_hears_of_every_token_once_and_in_order(
    ranks: Callable[[int], Ranks],
) -> None:
    strategy = Parallel(model=ModelParallel(degree=2), tensor=TensorParallel(degree=2))
    assert ranks(4).run(heard_tokens, strategy) == [[0, 1, 2, 3, 4]] * 4


def test_an_engine_answers_the_same_after_other_batches() -> None:
    engine = alone()
    generation = Generation(new_tokens=6)
    batches = [Batch.of(prompts(4), 18), Batch.of(prompts(7)[3:], 18), batch_of(1)]
    first = [engine.generate(batch, generation).tolist() for batch in batches]
    again = [engine.generate(batch, generation).tolist() for batch in batches[::-1]]
    assert first == again[::-1]


def test_more_replicas_than_rows_leave_some_idle(ranks: Callable[[int], Ranks]) -> None:
    expected = alone().generate(batch_of(1), Generation(new_tokens=12)).tolist()
    for ids, _ in ranks(2).run(
        stopped_ids, Parallel(data=DataParallel(degree=2)), (131,)
    ):
        assert ids[:1] == expected


def test_text_longer_than_the_model_can_hold_is_refused() -> None:
    with pytest.raises(
        ValueError, match="must fit the model's 256 positions, got 17 \\+ 250"
    ):
        alone().generate(batch_of(4), Generation(new_tokens=250))


def test_decoding_is_one_graph_and_the_same_for_every_token() -> None:
    """What a CUDA graph or a compiled step needs: no branch on data, no shape that changes."""
    engine = alone()
    generation = Generation(new_tokens=6, temperature=0.7)
    expected = engine.generate(batch_of(4), generation)
    state = engine._state
    assert state is not None
    # Dynamo traces without a compiler; it fails at a graph break or a second trace. The step is
    # the state's, which the next generations use again: so the warm-up's graph serves them.
    with torch._dynamo.config.patch(error_on_recompile=True):
        state.step = torch.compile(  # type: ignore[method-assign]
            state.step, backend="eager", fullgraph=True, dynamic=False
        )
        for _ in range(2):
            assert torch.equal(engine.generate(batch_of(4), generation), expected)
        assert engine._state is state
    torch._dynamo.reset()
