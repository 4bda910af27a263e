"""What a case needs of memory: never more than it takes, and close to it."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from kernels.placement import owned_slices, place
from kernels.shapes import KNOWN, ModelShape, kv_bytes_per_token, weight_bytes
from kernels.strategies import (
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
    TensorParallel,
)
from orchestrator.case import Case
from orchestrator.forecast import PROCESS_BYTES, Forecast, forecast, misfit
from orchestrator.grids.strategies import Written, label_of, resolve

GIB = 2**30
A100 = 79 * GIB
TOY = ModelShape(
    dim=64, n_layers=4, n_heads=8, n_kv_heads=4, ffn_dim=128, vocab_size=256
)


def need(strategy: Any, gpus: int, shape: ModelShape = TOY, **values: Any) -> Forecast:
    written: Strategy = TypeAdapter(Written).validate_json(json.dumps(strategy))
    batch = values.get("batch_size", 4)
    spread = resolve(written, gpus, batch)
    case = Case(
        model="m", label=label_of(written), strategy=spread, gpus=gpus, **values
    )
    return forecast(case, shape)


@pytest.mark.parametrize(
    ("model", "strategy", "gpus", "fits"),
    [
        ("llama-2-7b", "model", 1, True),
        ("llama-2-13b", "tensor", 1, True),
        ("llama-2-70b", "model", 1, False),
        ("llama-2-70b", "tensor", 1, False),
        ("llama-2-70b", "model", 2, True),
        ("llama-2-70b", "tensor", 2, True),
        ("llama-2-70b", "tensor", 4, True),
        ("llama-2-70b", "zero-offload", 1, True),
        ("llama-2-70b", {"pipeline": {"in_flight": 16}}, 4, True),
    ],
)
def test_the_reports_table_has_its_gaps_where_it_has_them(
    model: str, strategy: Any, gpus: int, fits: bool
) -> None:
    reason = misfit(need(strategy, gpus, KNOWN[model]), A100, 512 * GIB)
    assert (reason is None) is fits
    if reason is not None:
        assert reason == "needs 129 GiB on each GPU, it has 79 GiB"


def test_weights_and_cache_on_one_gpu_are_the_whole_models() -> None:
    shape = KNOWN["llama-2-7b"]
    (rank,) = need("single", 1, shape, prompt_tokens=64, new_tokens=128).ranks
    assert rank.weight_bytes == weight_bytes(shape, "bfloat16")
    assert rank.cache_bytes == 4 * (64 + 128) * kv_bytes_per_token(shape, "bfloat16")
    assert rank.host_bytes == 0


@pytest.mark.parametrize("strategy", ["model", "pipeline", "tensor"])
@pytest.mark.parametrize("model", ["llama-2-70b", "llama-3.2-1b"])
def test_what_the_ranks_hold_adds_up_to_the_model(strategy: str, model: str) -> None:
    shape = KNOWN[model]
    forecasts = {gpus: need(strategy, gpus, shape) for gpus in (1, 2, 4)}
    whole = weight_bytes(shape, "bfloat16")
    norms = (2 * shape.n_layers + 1) * shape.dim * 2
    head = shape.vocab_size * shape.dim * 2 if shape.tied_embeddings else 0
    for gpus, found in forecasts.items():
        held = sum(rank.weight_bytes for rank in found.ranks)
        again = (gpus - 1) * norms if strategy == "tensor" else (gpus > 1) * head
        assert held == whole + again
        cached = sum(rank.cache_bytes for rank in found.ranks)
        assert cached == sum(rank.cache_bytes for rank in forecasts[1].ranks)


def test_the_forecast_is_made_of_the_slices_that_a_rank_really_loads() -> None:
    spread = Parallel(
        pipeline=PipelineParallel(degree=2), tensor=TensorParallel(degree=2)
    )
    found = need({"tensor": 2, "pipeline": {}}, 4, dtype="float32")
    for rank in found.ranks:
        slices = owned_slices(place(spread, TOY, rank.rank), TOY)
        rows = sum(
            len(part.owned) if part.owned is not None else TOY.dim
            for part in slices.values()
        )
        assert rank.weight_bytes % 4 == 0
        assert rank.weight_bytes >= rows * 4
    assert (
        need("model", 2).ranks[0].weight_bytes != need("model", 2).ranks[1].weight_bytes
    )


def test_more_sequences_in_flight_need_more_cache_but_no_more_room_to_work() -> None:
    few = need({"pipeline": {"micro_batches": 2}}, 2)
    many = need({"pipeline": {"micro_batches": 8, "in_flight": 16}}, 2)
    assert many.ranks[0].cache_bytes == 4 * few.ranks[0].cache_bytes
    assert many.ranks[0].working_bytes == few.ranks[0].working_bytes


def test_a_prefill_cut_by_columns_too_needs_less_room_to_work() -> None:
    whole, rows, columns = (
        need({"pipeline": {"prefill_micro_batches": parts}}, 2).ranks[0].working_bytes
        for parts in (1, 4, 8)
    )
    assert whole > rows > columns


def test_a_split_by_profile_is_forecast_as_the_best_that_it_could_be() -> None:
    shape = KNOWN["llama-3-8b"]
    equal = need({"pipeline": {}}, 4, shape)
    profiled = need({"pipeline": {"balance": "profiled"}}, 4, shape)
    assert profiled.ranks == equal.ranks
    assert profiled.device_bytes < equal.device_bytes


def test_nodes_share_what_the_ranks_need_of_main_memory() -> None:
    found = need("zero-offload", 8, KNOWN["llama-2-70b"])
    assert misfit(found, A100, 100 * GIB) is not None
    assert misfit(found, A100, 100 * GIB, nodes=2) is None


def test_replicas_need_their_memory_again_in_the_host_but_not_on_a_gpu() -> None:
    one, two = need({"tensor": 2}, 2), need({"tensor": 2, "data": 2}, 4)
    assert two.device_bytes == one.device_bytes
    assert two.all_bytes == 2 * one.all_bytes


def test_streamed_weights_wait_in_main_memory_or_on_disk() -> None:
    shape = KNOWN["llama-2-7b"]
    host = need("zero-offload", 1, shape)
    disk = need({"zero-offload": {"source": "disk"}}, 1, shape)
    whole = weight_bytes(shape, "bfloat16")
    assert 0.99 * whole < host.host_bytes - PROCESS_BYTES <= whole
    assert disk.host_bytes == PROCESS_BYTES
    assert host.device_bytes == disk.device_bytes < GIB
    half = need({"zero-offload": {"resident": 0.5}}, 1, shape)
    assert 0.45 * whole < half.device_bytes < 0.6 * whole
    auto = need({"zero-offload": {"resident": "auto"}}, 1, shape)
    assert auto.device_bytes == host.device_bytes


def test_a_cache_on_the_host_leaves_the_gpu() -> None:
    there = need({"zero-offload": {"kv": "host"}}, 1).ranks[0]
    here = need("zero-offload", 1).ranks[0]
    assert there.cache_bytes == 0
    assert there.host_bytes - here.host_bytes == here.cache_bytes


def test_each_gpu_streams_only_its_shard() -> None:
    one, four = (need("zero-offload", gpus, KNOWN["llama-2-70b"]) for gpus in (1, 4))
    assert four.device_bytes < one.device_bytes / 3
    weights = [rank.host_bytes for rank in four.ranks]
    assert sum(weights) == pytest.approx(one.ranks[0].host_bytes, rel=1e-3)


def test_reasons_name_what_is_short_in_numbers_that_differ() -> None:
    found = need("single", 1, KNOWN["llama-2-70b"])
    just_short = found.device_bytes - 2**20
    assert (
        misfit(found, just_short, None)
        == "needs 128.831 GiB on each GPU, it has 128.830 GiB"
    )
    assert misfit(found, found.device_bytes, None) is None
    assert misfit(found, None, None) is None
    assert (
        misfit(found, None, 16 * GIB) == "needs 129 GiB of main memory, there is 16 GiB"
    )
    on_worker = misfit(found, 16 * GIB, 64 * GIB, device="worker")
    assert on_worker == "needs 129 GiB on each worker, it has 16 GiB"
    streamed = need("zero-offload", 1, KNOWN["llama-2-70b"])
    assert (
        misfit(streamed, A100, 64 * GIB)
        == "needs 129 GiB of main memory, there is 64 GiB"
    )


def test_a_budget_below_the_least_that_is_needed_is_a_misfit() -> None:
    tight = {"zero-offload": {"source": "disk", "memory_budget_bytes": "512MiB"}}
    found = need(tight, 1, KNOWN["llama-2-70b"])
    assert misfit(found, A100, None) == (
        "needs 1.9 GiB on each GPU, memory_budget_bytes allows 0.5 GiB"
    )


def test_a_real_engine_holds_what_was_forecast() -> None:
    import torch

    from kernels.parallelize import parallelize
    from kernels.weights import RandomWeights
    from kernels.world import World

    world = World.from_environment(device=torch.device("cpu"))
    single = Parallel(single=Single())
    for shape in (TOY, KNOWN["llama-3.2-1b"]):
        small = ModelShape(
            dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=130,
            tied_embeddings=shape.tied_embeddings,
        )  # fmt: skip
        weights = RandomWeights(small, 0, torch.float32)
        engine = parallelize(small, single, world, torch.float32, weights)
        (rank,) = need("single", 1, small, dtype="float32", new_tokens=64).ranks
        assert rank.weight_bytes == engine.weight_bytes
        assert rank.cache_bytes == engine.new_cache(4, 128).num_bytes
        engine.close()
