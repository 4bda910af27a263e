"""Streamed weights give the bits of the model alone, wherever they wait and whatever stays.

A failure here means that a layer computed with another layer's weights, or with its own before
they had arrived.
"""

import gc
import os
import pickle
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import offloaded
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
    random_weights,
)
from ranks import Ranks

from jobs.tracing.recorder import recording
from kernels import memory
from kernels.generate import Batch, Generation
from kernels.offload.file_store import ReadError
from kernels.offload.plan import OffloadError, plan_offload
from kernels.parallelize import parallelize
from kernels.strategies import (
    DataParallel,
    ModelParallel,
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
    StrategyError,
    TensorParallel,
    ZeroOffload,
)
from kernels.world import World
from kernels.zero_offload import OffloadEngine

SINGLE = Parallel(single=Single())


def offload(
    *, data: int = 1, stages: int = 1, tensor: int = 1, **options: Any
) -> Strategy:
    split = options.pop("split", None)
    return Parallel(
        data=DataParallel(degree=data),
        model=ModelParallel(degree=stages, split=split),
        tensor=TensorParallel(degree=tensor),
        zero_offload=ZeroOffload(**options),
    )


def label(value: object) -> str:
    if not isinstance(value, Strategy):
        return str(value)
    degrees = {"data": value.replicas, "model": value.stages, "tensor": value.shards}
    words = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
    if how := value.zero_offload:
        words += [how.source, f"resident {how.resident}", f"KV on {how.kv}"]
    return ", ".join(words)


@cache
def alone(shape: str, dtype: str = "float32") -> list[Answer]:
    return answers(World(), SHAPES[shape], SINGLE, dtype)


@pytest.mark.parametrize("shape", ["gqa", "llama-3.2", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "strategy",
    [
        offload(),
        offload(source="disk"),
        offload(resident=0.5),
        offload(resident=0.5, source="disk", kv="host"),
        offload(resident=1.0),
        offload(resident="auto"),
        offload(kv="host"),
    ],
    ids=label,
)
def test_streamed_weights_give_the_bits_of_the_model_alone(
    shape: str, strategy: Strategy
) -> None:
    given = answers(World(), SHAPES[shape], strategy)
    for one, other in zip(alone(shape), given, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.ids == other.ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_in_other_dtypes_too(dtype: str) -> None:
    given = answers(World(), SHAPES["gqa"], offload(source="disk"), dtype)
    for one, other in zip(alone("gqa", dtype), given, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.ids == other.ids


@pytest.mark.parametrize(
    ("shape", "strategy"),
    [
        ("gqa", offload(tensor=2)),
        ("gqa", offload(tensor=2, source="disk", resident=0.5)),
        ("gqa", offload(tensor=4, source="disk", kv="host")),
        ("gqa", offload(tensor=2, data=2)),
        ("gqa", offload(tensor=2, stages=2)),
        ("six heads", offload(tensor=3, source="disk")),
        ("one KV head", offload(tensor=4)),
        ("llama-3.2", offload(tensor=2, source="disk")),
        ("qwen2", offload(tensor=2, resident="auto")),
    ],
    ids=label,
)
def test_with_shards_each_rank_streams_its_own(
    shape: str, strategy: Strategy, ranks: Callable[[int], Ranks]
) -> None:
    for given in ranks(strategy.world_size).run(answers, SHAPES[shape], strategy):
        for one, other, size in zip(alone(shape), given, BATCH_SIZES, strict=True):
            found = difference(one, other, batch_of(size), TOLERANCE["float32"])
            assert found is None, f"batch of {size}: {found}"


def test_a_tensor_shard_gives_the_bits_it_gives_without_offload(
    ranks: Callable[[int], Ranks],
) -> None:
    kept = Parallel(tensor=TensorParallel(degree=2))
    world = ranks(2)
    for one, other in zip(
        world.run(answers, SHAPES["gqa"], kept),
        world.run(answers, SHAPES["gqa"], offload(tensor=2, source="disk")),
        strict=True,
    ):
        for here, there in zip(one, other, strict=True):
            assert torch.equal(here.logits, there.logits)
            assert here.ids == there.ids


def test_each_rank_streams_only_its_part_once_a_token(
    ranks: Callable[[int], Ranks],
) -> None:
    once = ["layers.0", "layers.1", "layers.2", "output"]
    [(whole, names)] = [
        offloaded.streamed_names(World(), "gqa", offload(source="disk"))
    ]
    assert names == once * 2
    halves = ranks(2).run(offloaded.streamed_names, "gqa", offload(tensor=2))
    assert all(names == once * 2 for _, names in halves)
    # Norms are held twice.
    norms = (2 * SHAPES["gqa"].n_layers + 1) * SHAPES["gqa"].dim * 4
    assert sum(held for held, _ in halves) == whole + norms


@pytest.mark.parametrize("token", [0, 3])
def test_no_rank_outlives_a_killed_one(token: int) -> None:
    world = Ranks(2)
    strategy = offload(tensor=2, source="disk")
    try:
        world.run(
            offloaded.streamed_names, "gqa", strategy
        )  # they start before the 30 s
        for _, pipe in world._workers:
            pipe.send_bytes(pickle.dumps((offloaded.killed, (strategy, 1, token))))
        end = time.monotonic() + 30
        for worker, _ in world._workers:
            worker.join(max(0.0, end - time.monotonic()))
        codes = [worker.exitcode for worker, _ in world._workers]
    finally:
        world.close()
    assert codes == [7, -9], "None: still there after 30 s"


def engine(strategy: Strategy, shape: str = "gqa") -> OffloadEngine:
    return offloaded.build(World(), shape, strategy)


def test_outside_its_turn_a_layer_has_no_weights_to_compute_with() -> None:
    offloads = engine(offload())
    offloads.generate(batch_of(1), Generation(new_tokens=2))
    assert {
        name
        for name, parameter in offloads.model.named_parameters()
        if not parameter.is_meta
    } == {"norm.weight"}
    offloads.close()


def test_weight_bytes_count_what_waits_too() -> None:
    weights = random_weights(SHAPES["qwen2"], torch.float32)
    single = parallelize(SHAPES["qwen2"], SINGLE, World(), torch.float32, weights)
    for strategy in (offload(), offload(resident=1.0)):
        offloads = engine(strategy, "qwen2")
        assert offloads.weight_bytes == single.weight_bytes
        offloads.close()


def test_the_progress_of_loading_ends_at_its_whole() -> None:
    told: list[tuple[int, int]] = []
    parallelize(
        SHAPES["gqa"],
        offload(resident=0.5),
        World(),
        torch.float32,
        random_weights(SHAPES["gqa"], torch.float32),
        progress=lambda done, total: told.append((done, total)),
    ).close()
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_an_engine_says_where_its_weights_wait_and_how_they_are_read() -> None:
    host, disk = engine(offload()), engine(offload(source="disk"))
    assert host.weights_wait == "host memory"
    assert disk.weights_wait.startswith("files, ")
    assert "O_DIRECT" in disk.weights_wait or "page cache dropped" in disk.weights_wait
    host.close()
    disk.close()


@pytest.mark.parametrize("source", ["host", "disk"])
def test_a_trace_shows_each_copy_of_each_token(source: str) -> None:
    offloads = engine(offload(source=source))
    with recording(offloads) as timeline:
        offloads.generate(batch_of(4), Generation(new_tokens=3))
    spans = timeline.spans()
    offloads.close()
    # Three tokens; the first units came before the trace began, those ahead after it ended.
    for layer in range(3):
        copies = [span for span in spans if span.kind == "copy" and span.layer == layer]
        assert len(copies) in (2, 3, 4)
        assert all(span.name == "layer" for span in copies)
    heads = [span for span in spans if (span.kind, span.name) == ("copy", "output")]
    assert len(heads) in (2, 3, 4)


@pytest.mark.parametrize("checked", [False, True])
def test_a_trace_shows_keys_and_values_that_travel(checked: bool) -> None:
    """In a cache that was there before, and in one made under the eyes of the timeline."""
    offloads = engine(offload(kv="host"))
    offloads.generate(batch_of(4), Generation(new_tokens=3))
    if checked:
        offloads.logits(batch_of(4))
    with recording(offloads) as timeline:
        offloads.generate(batch_of(4), Generation(new_tokens=3))
    names = [span.name for span in timeline.spans() if span.layer == 1]
    offloads.close()
    assert names.count("save KV") == 3
    assert names.count("fetch KV") in (2, 3, 4)


def test_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    offloads = engine(offload(source="disk", kv="host"))
    assert not [*tmp_path.rglob("*.weights")], "a killed job would leave files"
    offloads.generate(batch_of(1), Generation(new_tokens=1))
    open_files = len(os.listdir("/proc/self/fd"))
    offloads.close()
    assert len(os.listdir("/proc/self/fd")) < open_files
    assert not [*tmp_path.iterdir()]


def test_an_error_while_loading_gives_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(done: int, _total: int) -> None:
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        parallelize(
            SHAPES["gqa"],
            offload(source="disk"),
            World(),
            torch.float32,
            random_weights(SHAPES["gqa"], torch.float32),
            progress=fail,
        )
    assert not [*tmp_path.iterdir()]


def test_a_failed_read_ends_the_generation_with_the_tensor_s_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offloads = engine(offload(source="disk"))
    ids = offloads.generate(batch_of(4), Generation(new_tokens=3))
    right = os.preadv
    # One read fails: the whole pass does, and the next one starts afresh.
    failures = iter([True])

    def end_of_file(descriptor: int, buffers: list[Any], offset: int) -> int:
        if next(failures, False):
            return 0
        return right(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", end_of_file)
    with pytest.raises(ReadError, match=r"(layers|output|tok_embeddings).*truncated"):
        offloads.generate(batch_of(4), Generation(new_tokens=8))
    again = offloads.generate(batch_of(4), Generation(new_tokens=3))
    assert torch.equal(ids, again)
    offloads.close()


def test_under_a_budget_layers_leave_the_device_where_a_batch_needs_the_room() -> None:
    gc.collect()
    budget = memory.resident_bytes() + 128 * 2**20
    offloads = engine(
        offload(source="disk", resident="auto", memory_budget_bytes=budget)
    )
    assert all(offloads.streamer.plan.is_resident)
    weights = random_weights(SHAPES["gqa"], torch.float32)
    single = parallelize(SHAPES["gqa"], SINGLE, World(), torch.float32, weights)
    long = Batch.of([[1 + row, 2, 3] for row in range(256)], length=180)
    generation = Generation(new_tokens=2)
    with pytest.raises(OffloadError, match="memory_budget_bytes"):
        offloads.generate(long, generation)
    assert torch.equal(
        offloads.generate(batch_of(4), generation),
        single.generate(batch_of(4), generation),
    )
    offloads.close()


@pytest.mark.parametrize("source", ["host", "disk"])
def test_another_plan_gives_the_same_bits(source: str) -> None:
    offloads = engine(offload(source=source, resident=1.0), "nine layers")
    before = offloads.logits(batch_of(4))
    sizes = [unit.num_bytes for unit in offloads.streamer.units]
    for resident in (0.5, 0.3, 0.0, 0.4, 1.0):
        offloads.streamer.use(plan_offload(sizes, resident, None))
        assert torch.equal(before, offloads.logits(batch_of(4)))
    offloads.close()


def test_a_budget_on_a_cpu_wants_the_weights_on_disk() -> None:
    with pytest.raises(OffloadError, match="take source: disk"):
        engine(offload(memory_budget_bytes=2**30))


def test_a_budget_below_the_process_itself_is_refused() -> None:
    with pytest.raises(OffloadError, match="raise memory_budget_bytes by"):
        engine(offload(source="disk", memory_budget_bytes=2**20))


def test_a_pipeline_s_schedule_does_not_go_with_offload() -> None:
    pipeline = PipelineParallel(degree=1, schedule="async", micro_batches=2)
    with pytest.raises(StrategyError, match="does not go together with zero-offload"):
        Parallel(pipeline=pipeline, zero_offload=ZeroOffload())
