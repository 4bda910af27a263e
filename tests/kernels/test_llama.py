"""The single-device model: its parts against their formulas, its cache against no cache."""

import ast
import math
from pathlib import Path

import pytest
import torch
from answers import SHAPES, batch_of, prompts, random_weights, toy
from plain import plain_logits
from torch import Tensor

import kernels.llama
from kernels.cache import KVCache
from kernels.generate import Batch
from kernels.llama import Llama, RMSNorm, rotary_tables, rotate
from kernels.llama_engine import LlamaEngine
from kernels.parallelize import parallelize
from kernels.placement import owned_slices, place
from kernels.shapes import (
    KNOWN,
    ModelShape,
    RopeScaling,
    kv_bytes_per_token,
    layer_tensors,
    tensors,
)
from kernels.strategies import Parallel, Single
from kernels.world import World

SINGLE = Parallel(single=Single())
CPU = torch.device("cpu")


def alone(shape: ModelShape, dtype: torch.dtype = torch.float64) -> LlamaEngine:
    return parallelize(
        shape, SINGLE, World(), dtype, random_weights(shape, torch.float32)
    )


def meta(shape: ModelShape) -> Llama:
    with torch.device("meta"):
        return Llama(shape)


@torch.inference_mode()
def through(
    engine: LlamaEngine, cache: KVCache, ids_BT: Tensor, first_slot: int
) -> Tensor:
    """Logits of ids that stand in these and the following slots."""
    slots_T = torch.arange(first_slot, first_slot + ids_BT.shape[1])
    x_BTD = engine.pass_through(ids_BT, cache.step(slots_T))
    return engine.model.head(x_BTD)


def test_the_model_knows_nothing_of_parallelism() -> None:
    tree = ast.parse(Path(kernels.llama.__file__).read_text())
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert {name for name in imported if name and name.startswith("kernels")} == {
        "kernels.cache",
        "kernels.shapes",
    }
    assert "distributed" not in Path(kernels.llama.__file__).read_text()


@pytest.mark.parametrize("name", ["llama-2-70b", "llama-3.2-1b", "qwen2.5-7b"])
def test_parameters_are_the_tensors_of_the_shape(name: str) -> None:
    shape = KNOWN[name]
    parameters = {key: tuple(p.shape) for key, p in meta(shape).named_parameters()}
    head = {"output.weight": (shape.vocab_size, shape.dim)}
    assert parameters == tensors(shape) | head
    placed = place(SINGLE, shape, 0)
    assert parameters.keys() == owned_slices(placed, shape).keys()


def test_a_layer_has_the_tensors_of_a_layer() -> None:
    shape = SHAPES["qwen2"]
    layer = meta(shape).layers["1"]
    assert {key: tuple(p.shape) for key, p in layer.named_parameters()} == (
        layer_tensors(shape)
    )


def test_the_norm_computes_in_fp32_and_casts_before_the_weight() -> None:
    x = torch.linspace(-3, 5, 64).bfloat16()
    norm = RMSNorm(64, 1e-5).bfloat16()
    norm.weight.data = torch.linspace(0.5, 2, 64).bfloat16()
    wide = x.float() / (x.float() ** 2).mean().add(1e-5).sqrt()
    assert torch.equal(norm(x), wide.bfloat16() * norm.weight)


def test_rotation_keeps_lengths_and_sees_only_distances() -> None:
    shape = toy(head_dim=16)
    cache = alone(shape).new_cache(1, 32)
    step = cache.step(torch.arange(32))
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    turned_q = rotate(q.expand(1, 1, 32, 16), step)[0, 0]
    turned_k = rotate(k.expand(1, 1, 32, 16), step)[0, 0]
    assert torch.allclose(turned_q.norm(dim=1), q.norm().expand(32))
    scores = turned_q @ turned_k.T
    for distance in range(10):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-12)


def test_rotary_tables_stay_in_fp32_for_narrow_models() -> None:
    cos, _ = rotary_tables(KNOWN["llama-2-7b"], 4096, CPU, torch.bfloat16)
    assert cos.dtype == torch.float32
    assert cos.shape == (4096, 64)
    assert not torch.equal(cos[4094], cos[4095])


def test_llama_3_scaling_stretches_long_waves_only() -> None:
    scaling = RopeScaling(factor=8.0)
    shape = KNOWN["llama-3.1-8b"]
    plain = ModelShape(**(vars(shape) | {"rope_scaling": None}))
    # At position 1 the angle is the frequency.
    scaled, unscaled = (
        torch.asin(rotary_tables(one, 2, CPU, torch.float64)[1][1])[1:]
        for one in (shape, plain)
    )
    waves = 2 * math.pi / unscaled
    context = scaling.original_max_seq_len
    short = waves < context / scaling.high_freq_factor
    long = waves > context / scaling.low_freq_factor
    assert torch.allclose(scaled[short], unscaled[short])
    assert torch.allclose(scaled[long], unscaled[long] / 8)
    between = (scaled / unscaled)[~short & ~long]
    assert len(between) > 3
    assert bool(((between > 1 / 8) & (between < 1)).all())


@pytest.mark.parametrize("name", ["gqa", "mistral", "llama-3.2"])
def test_prefill_and_decode_give_the_logits_of_the_whole_text_at_each_position(
    name: str,
) -> None:
    engine = alone(SHAPES[name])
    ids = prompts(3)[2]
    expected = plain_logits(random_weights(SHAPES[name], torch.float32), ids)
    for prompt in (1, 5, len(ids) - 1):
        cache = engine.new_cache(1, len(ids))
        parts = [through(engine, cache, torch.tensor([ids[:prompt]]), 0)]
        for slot in range(prompt, len(ids)):
            parts.append(through(engine, cache, torch.tensor([[ids[slot]]]), slot))
        assert (torch.cat(parts, 1)[0] - expected).abs().max() < 1e-10


def test_a_prompt_may_come_in_stretches() -> None:
    engine = alone(SHAPES["gqa"])
    batch = batch_of(4)
    cache = engine.new_cache(4, batch.length)
    cache.begin(batch.pad_B)
    parts = [
        through(
            engine, cache, batch.ids_BT[:, columns.start : columns.stop], columns.start
        )
        for columns in (range(6), range(6, 7), range(7, batch.length))
    ]
    whole = engine.logits(batch)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12


def test_padding_changes_nothing_in_any_row() -> None:
    engine = alone(SHAPES["gqa"])
    rows = prompts(7)
    padded = engine.logits(Batch.of(rows, length=24))
    for row, ids in enumerate(rows):
        by_itself = engine.logits(Batch.of([ids]))[0]
        assert (padded[row, -len(ids) :] - by_itself).abs().max() < 1e-12


def test_even_padding_has_finite_logits() -> None:
    assert bool(torch.isfinite(alone(SHAPES["mistral"]).logits(batch_of(7))).all())


def test_the_mask_shows_a_token_its_row_so_far_and_a_padding_token_itself() -> None:
    """Were a padding token to see nothing, some attention kernels would give NaN."""
    cache = alone(SHAPES["gqa"]).new_cache(2, 5)
    cache.begin(torch.tensor([2, 0]))
    step = cache.step(torch.arange(4))
    assert step.mask.shape == (2, 1, 2 * 4, 8)
    seen = step.mask[:, 0].isfinite()
    assert torch.equal(seen[:, :4], seen[:, 4:]), "once per query head of a KV head"
    slots = [[row.nonzero().flatten().tolist() for row in rows[:4]] for rows in seen]
    assert slots[0] == [[0], [1], [2], [2, 3]]
    assert slots[1] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_a_cache_takes_the_memory_of_its_keys_and_values() -> None:
    shape = SHAPES["gqa"]
    cache = alone(shape, torch.float32).new_cache(3, 16)
    assert cache.num_bytes == 3 * 16 * kv_bytes_per_token(shape, "float32")


def test_a_window_hides_what_lies_before_it() -> None:
    shape = toy(sliding_window=4, n_layers=1)
    engine = alone(shape)
    ids = prompts(1)[0]
    changed = [ids[0] % 130 + 1, *ids[1:]]
    one, other = (engine.logits(Batch.of([row]))[0] for row in (ids, changed))
    seen = (one - other).abs().amax(1) > 0
    assert seen.tolist() == [True] * 4 + [False] * (len(ids) - 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_are_at_least_fp32(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert alone(SHAPES["gqa"], dtype).logits(batch_of(1)).dtype == wide


def test_parts_that_a_stage_lacks_are_simply_absent() -> None:
    model = meta(SHAPES["gqa"])
    whole = {name for name, _ in model.named_parameters()}
    del model.layers["0"]
    model.tok_embeddings = None
    left = {name for name, _ in model.named_parameters()}
    gone = {name for name in whole if name.startswith(("layers.0.", "tok_"))}
    assert left == whole - gone
