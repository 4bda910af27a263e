"""Pipeline parallel on real processes: every schedule gives the ids of the model alone."""

import pickle
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import piped
import pytest
import torch
from answers import (
    BATCH_SIZES,
    SHAPES,
    TOLERANCE,
    Answer,
    answers,
    batch_of,
    difference,
)
from ranks import Ranks

from kernels.strategies import (
    DataParallel,
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
    TensorParallel,
)
from kernels.world import World

SINGLE = Parallel(single=Single())


def pipeline(stages: int, schedule: str, micro_batches: int, **more: Any) -> Strategy:
    degrees = {"data": DataParallel, "tensor": TensorParallel}
    others = {name: part(degree=more.pop(name, 1)) for name, part in degrees.items()}
    own = PipelineParallel(
        degree=stages, schedule=schedule, micro_batches=micro_batches, **more
    )
    return Parallel(pipeline=own, **others)


def label(value: object) -> str:
    if not isinstance(value, Strategy):
        return str(value)
    words = [value.schedule, f"{value.stages} stages", f"{value.micro_batches} parts"]
    words += [f"{value.prefill_micro_batches} to prefill"] * (
        value.prefill_micro_batches > 0
    )
    words += [f"data {value.replicas}"] * (value.replicas > 1)
    words += [f"tensor {value.shards}"] * (value.shards > 1)
    words += [f"split {value.split}"] * bool(value.split)
    return ", ".join(words)


@cache
def alone(shape: str) -> list[Answer]:
    return answers(World(), SHAPES[shape], SINGLE)


def check(shape: str, strategy: Strategy, ranks: Callable[[int], Ranks]) -> None:
    for given in ranks(strategy.world_size).run(answers, SHAPES[shape], strategy):
        for one, other, size in zip(alone(shape), given, BATCH_SIZES, strict=True):
            found = difference(one, other, batch_of(size), TOLERANCE["float32"])
            assert found is None, f"batch of {size}: {found}"


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("micro_batches", "prefill"), [(1, 0), (2, 0), (3, 1), (4, 9), (8, 2)]
)
def test_a_pipeline_answers_as_the_model_alone(
    schedule: str,
    stages: int,
    micro_batches: int,
    prefill: int,
    ranks: Callable[[int], Ranks],
) -> None:
    """Batches of 1, 4 and 7 ragged rows: fewer and more than micro-batches, and uneven."""
    check(
        "nine layers",
        pipeline(stages, schedule, micro_batches, prefill_micro_batches=prefill),
        ranks,
    )


@pytest.mark.parametrize(
    ("shape", "strategy"),
    [
        ("gqa", pipeline(2, "gpipe", 2, tensor=2)),
        ("gqa", pipeline(2, "async", 4, tensor=2, prefill_micro_batches=8)),
        ("gqa", pipeline(2, "gpipe", 4, data=2)),
        ("gqa", pipeline(2, "async", 2, data=2)),
        ("gqa", pipeline(2, "async", 2, data=2, tensor=2)),
        ("one KV head", pipeline(2, "async", 2, tensor=2)),
        ("nine layers", pipeline(3, "async", 3, split=(5, 1, 3))),
        ("llama-3.2", pipeline(2, "async", 2, prefill_micro_batches=20)),
        ("mistral", pipeline(2, "gpipe", 2, prefill_micro_batches=20)),
        ("qwen2", pipeline(2, "async", 4)),
    ],
    ids=label,
)
def test_a_pipeline_combined_with_others_answers_as_the_model_alone(
    shape: str, strategy: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    check(shape, strategy, ranks)


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
@pytest.mark.parametrize("stages", [2, 4])
def test_one_micro_batch_gives_the_bits_of_the_model_alone(
    schedule: str, stages: int, ranks: Callable[[int], Ranks]
) -> None:
    expected = piped.head_bits(World(), "nine layers", SINGLE, 4)
    given = ranks(stages).run(
        piped.head_bits, "nine layers", pipeline(stages, schedule, 1), 4
    )
    for ids, _ in given:
        assert ids == expected[0]
    bits = given[-1][1]
    assert len(bits) == len(expected[1]) == 6
    assert all(map(torch.equal, bits, expected[1]))


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_sampling_draws_the_same_ids_whatever_the_micro_batches(
    schedule: str, ranks: Callable[[int], Ranks]
) -> None:
    expected = answers(World(), SHAPES["gqa"], SINGLE, temperature=1.0)
    assert [one.ids for one in expected] != [one.ids for one in alone("gqa")]
    strategy = pipeline(2, schedule, 3, prefill_micro_batches=2)
    for given in ranks(2).run(
        answers, SHAPES["gqa"], strategy, "float32", BATCH_SIZES, 1.0
    ):
        assert [one.ids for one in given] == [one.ids for one in expected]


def test_a_replica_samples_its_own_rows_of_the_batch(
    ranks: Callable[[int], Ranks],
) -> None:
    """The noise of a row follows from its place in the whole batch, not in the replica's."""
    expected = answers(World(), SHAPES["gqa"], SINGLE, temperature=1.0)
    strategy = pipeline(1, "gpipe", 2, data=2)
    for given in ranks(2).run(
        answers, SHAPES["gqa"], strategy, "float32", BATCH_SIZES, 1.0
    ):
        assert [one.ids for one in given] == [one.ids for one in expected]


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_rows_end_at_end_tokens_as_in_the_model_alone(
    schedule: str, ranks: Callable[[int], Ranks]
) -> None:
    eos_ids = tuple(row[index] for index, row in enumerate(alone("gqa")[-1].ids))
    expected = piped.until_their_end(World(), "gqa", SINGLE, eos_ids)
    assert any(-1 in row for row in expected)
    for given in ranks(2).run(
        piped.until_their_end, "gqa", pipeline(2, schedule, 2), eos_ids
    ):
        assert given == expected


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_all_stages_stop_soon_after_every_row_has_ended(
    schedule: str, ranks: Callable[[int], Ranks]
) -> None:
    eos_ids = tuple({row[5] for row in alone("nine layers")[1].ids})
    expected = piped.tokens_until_all_ended(World(), SINGLE, eos_ids)
    assert max(expected[1]) <= 5
    strategy = pipeline(3, schedule, 4, prefill_micro_batches=2)
    for ids, told, after in ranks(3).run(
        piped.tokens_until_all_ended, strategy, eos_ids
    ):
        assert ids == expected[0]
        assert told == list(range(16))
        # Nothing of what was under way when all stopped is left on the lines.
        assert after == alone("nine layers")[1].ids


@pytest.mark.parametrize("schedule", ["gpipe", "async"])
def test_every_rank_is_told_of_every_token_once_and_in_order(
    schedule: str, ranks: Callable[[int], Ranks]
) -> None:
    strategy = pipeline(3, schedule, 4, prefill_micro_batches=6)
    for told in ranks(3).run(piped.called_back, strategy):
        assert told == [0, 1, 2, 3, 4]


def test_micro_batches_that_share_a_cache_are_found_out(
    ranks: Callable[[int], Ranks],
) -> None:
    """A negative control: the parity tests above can fail."""
    given = ranks(2).run(piped.with_one_cache_for_all, pipeline(2, "async", 4))
    assert given[0] != alone("nine layers")[1].ids


@pytest.mark.parametrize(
    ("victim", "token", "strategy"),
    [
        (0, 0, pipeline(3, "async", 4)),
        (1, 3, pipeline(3, "gpipe", 4)),
        (2, 3, pipeline(3, "async", 4)),
        (1, 2, pipeline(2, "async", 2, tensor=2)),
    ],
    ids=label,
)
def test_no_rank_outlives_a_killed_one(
    victim: int, token: int, strategy: Strategy
) -> None:
    codes = exit_codes(strategy, victim, token)
    assert codes[victim] == -9
    others = [code for rank, code in enumerate(codes) if rank != victim]
    assert others == [7] * len(others), "None: still there after 30 s"


def exit_codes(strategy: Strategy, victim: int, token: int) -> list[int | None]:
    world = Ranks(strategy.world_size)
    try:
        world.run(piped.called_back, strategy)  # the ranks start outside of the 30 s
        for _, pipe in world._workers:
            pipe.send_bytes(pickle.dumps((piped.killed, (strategy, victim, token))))
        end = time.monotonic() + 30
        for worker, _ in world._workers:
            worker.join(max(0.0, end - time.monotonic()))
        return [worker.exitcode for worker, _ in world._workers]
    finally:
        world.close()
