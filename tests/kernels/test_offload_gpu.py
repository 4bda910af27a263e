"""Zero-offload on a real GPU: the bits of the model alone, within its memory budget."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from answers import SHAPES, Answer, answers, batch_of

from kernels.generate import Generation
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape, weight_bytes
from kernels.strategies import Parallel, Single, Strategy, ZeroOffload
from kernels.weights import RandomWeights
from kernels.world import World
from kernels.zero_offload import OffloadEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"
    ),
]

SINGLE = Parallel(single=Single())
MIDDLE = ModelShape(
    dim=1024, n_layers=24, n_heads=16, n_kv_heads=8, ffn_dim=2816, vocab_size=8000
)


def offload(**options: Any) -> Strategy:
    return Parallel(zero_offload=ZeroOffload(**options))


def gpu() -> World:
    return World(device=torch.device("cuda", 0))


@cache
def alone(dtype: str) -> list[Answer]:
    return answers(gpu(), SHAPES["gqa"], SINGLE, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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
    ids=lambda each: str(each.options()["zero-offload"]),
)
def test_streamed_weights_give_the_bits_of_the_model_alone(
    strategy: Strategy, dtype: str
) -> None:
    given = answers(gpu(), SHAPES["gqa"], strategy, dtype)
    for one, other in zip(alone(dtype), given, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.ids == other.ids


def generated(strategy: Strategy, check: Callable[[Any], None]) -> list[list[int]]:
    weights = RandomWeights(MIDDLE, 0, torch.bfloat16)
    engine = parallelize(MIDDLE, strategy, gpu(), torch.bfloat16, weights)
    ids: list[list[int]] = []
    for _ in range(3):
        ids = engine.generate(batch_of(4), Generation(new_tokens=16)).tolist()
    check(engine)
    engine.close()
    return ids


@pytest.mark.parametrize("source", ["host", "disk"])
@pytest.mark.parametrize("resident", [0.0, "auto"])
def test_the_gpu_holds_no_more_than_the_budget(source: str, resident: Any) -> None:
    budget = weight_bytes(MIDDLE, "bfloat16") // 2
    strategy = offload(source=source, resident=resident, memory_budget_bytes=budget)

    def within(engine: OffloadEngine) -> None:
        assert 0 < engine.peak_bytes <= budget
        assert any(engine.streamer.plan.is_resident) == (resident == "auto")

    torch.cuda.empty_cache()
    assert generated(strategy, within) == generated(SINGLE, lambda _: None)


def test_the_pinned_memory_is_given_back() -> None:
    # Locking memory that is locked already is an error: a second engine would fail.
    for _ in range(2):
        generated(offload(kv="host"), lambda _: None)
