"""Negative controls: a model broken on purpose must set off the comparison that parity rests on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from answers import (
    BATCH_SIZES,
    NEW_TOKENS,
    SHAPES,
    TOLERANCE,
    Answer,
    answers,
    batch_of,
    difference,
    random_weights,
)
from oracle import oracle, oracle_ids, oracle_logits
from ranks import Ranks
from torch import Tensor, nn

from kernels.cache import KVCache, Step
from kernels.generate import Batch
from kernels.llama import Attention, FeedForward, Layer
from kernels.llama_engine import LlamaEngine
from kernels.strategies import Parallel, Single, Strategy, TensorParallel
from kernels.world import World

SINGLE = Parallel(single=Single())
TENSOR_2 = Parallel(tensor=TensorParallel(degree=2))
TENSOR_8 = Parallel(tensor=TensorParallel(degree=8))


@cache
def others_answers(name: str) -> list[Answer]:
    model = oracle(random_weights(SHAPES[name], torch.float32))
    return [
        Answer(oracle_ids(model, batch, NEW_TOKENS), oracle_logits(model, batch))
        for batch in map(batch_of, BATCH_SIZES)
    ]


def differences(name: str, given: list[Answer]) -> list[str | None]:
    """What the parity tests' comparison says of each batch."""
    return [
        difference(one, other, batch_of(size), TOLERANCE["float32"])
        for one, other, size in zip(
            others_answers(name), given, BATCH_SIZES, strict=True
        )
    ]


def each(engine: LlamaEngine, kind: type[nn.Module]) -> Iterator[Any]:
    return (module for module in engine.model.modules() if isinstance(module, kind))


# What goes wrong when one writes such a thing.


def nothing(engine: LlamaEngine) -> None:
    """The control of the controls."""


def adjacent_rotary_pairs(engine: LlamaEngine) -> None:
    """Meta's wq and wk, not permuted."""
    for attention in each(engine, Attention):
        for linear in (attention.wq, attention.wk):
            halves = linear.weight.view(
                -1, 2, attention.head_dim // 2, engine.shape.dim
            )
            linear.weight.data = halves.transpose(1, 2).reshape_as(linear.weight)


def keys_permuted_as_queries(engine: LlamaEngine) -> None:
    """wk permuted as if there were as many KV heads as query heads."""
    for attention in each(engine, Attention):
        weight = attention.wk.weight
        pairs = weight.view(attention.n_heads, 2, -1, engine.shape.dim)
        weight.data = pairs.transpose(1, 2).reshape_as(weight)


def swapped_kv_heads(engine: LlamaEngine) -> None:
    for attention in each(engine, Attention):
        for linear in (attention.wk, attention.wv):
            heads = linear.weight.view(-1, attention.head_dim, engine.shape.dim)
            linear.weight.data = heads.flip(0).reshape_as(linear.weight)


def doubled_residual(engine: LlamaEngine) -> None:
    def add(_layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + inputs[0]

    next(each(engine, Layer)).register_forward_hook(add)


def dropped_bias(engine: LlamaEngine) -> None:
    for attention in each(engine, Attention):
        attention.wk.bias.data.zero_()
        attention.wv.bias.data.zero_()


def forgotten_window(engine: LlamaEngine) -> None:
    engine.shape = replace(engine.shape, sliding_window=None)


def forgotten_rope_scaling(engine: LlamaEngine) -> None:
    engine.shape = replace(engine.shape, rope_scaling=None)


def dropped_pad_mask(engine: LlamaEngine) -> None:
    """Padding taken for tokens."""
    generate, logits = engine.generate, engine.logits

    def bare(batch: Batch) -> Batch:
        return Batch(batch.ids_BT, torch.zeros_like(batch.pad_B))

    engine.generate = lambda batch, *more: generate(bare(batch), *more)  # type: ignore[method-assign]
    engine.logits = lambda batch: logits(bare(batch))  # type: ignore[method-assign]


def stale_cache(engine: LlamaEngine) -> None:
    """Keys of the last token only, from then on."""

    class Forgetful(KVCache):
        def step(self, slots_T: Tensor) -> Step:
            return super().step(slots_T.clamp(max=self.slots - NEW_TOKENS))

    engine.cache_type = Forgetful


def padding_of_the_batch_before(engine: LlamaEngine) -> None:
    class Stale(KVCache):
        def begin(self, pad_B: Tensor) -> None:
            pass

    engine.cache_type = Stale


def no_sum_after_attention(engine: LlamaEngine) -> None:
    """A missing all-reduce, in one layer."""
    next(each(engine, Attention)).wo._forward_hooks.clear()


def no_sum_after_feed_forward(engine: LlamaEngine) -> None:
    next(each(engine, FeedForward)).w2._forward_hooks.clear()


def no_sum_of_the_embedding(engine: LlamaEngine) -> None:
    assert engine.model.tok_embeddings is not None
    engine.model.tok_embeddings._shards = replace_by_itself(engine)  # type: ignore[assignment]


def argmax_of_this_shard_only(engine: LlamaEngine) -> None:
    engine.groups = replace(engine.groups, shards=replace_by_itself(engine))


def replace_by_itself(engine: LlamaEngine) -> Any:
    return World().group([0])


def query_heads_with_their_neighbours_kv_head(engine: LlamaEngine) -> None:
    """Replicated KV heads that do not follow their query heads."""
    for attention in each(engine, Attention):
        weights = random_weights(engine.shape, torch.float32)
        head = (engine.placement.kv_heads.start + 1) % engine.shape.n_kv_heads
        rows = range(head * attention.head_dim, (head + 1) * attention.head_dim)
        name = f"layers.{attention.layer}.attention"
        attention.wk.weight.data = weights.read(f"{name}.wk.weight", 0, rows)
        attention.wv.weight.data = weights.read(f"{name}.wv.weight", 0, rows)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("gqa", adjacent_rotary_pairs),
        ("gqa", keys_permuted_as_queries),
        ("gqa", swapped_kv_heads),
        ("gqa", doubled_residual),
        ("gqa", dropped_pad_mask),
        ("gqa", stale_cache),
        ("gqa", padding_of_the_batch_before),
        ("qwen2", dropped_bias),
        ("mistral", forgotten_window),
        ("llama-3.2", forgotten_rope_scaling),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_comparison_sees(name: str, spoil: Callable[[LlamaEngine], None]) -> None:
    shape = SHAPES[name]
    whole = answers(World(), shape, SINGLE, spoil=nothing)
    assert differences(name, whole) == [None, None, None]
    broken = answers(World(), shape, SINGLE, spoil=spoil)
    found = differences(name, broken)
    # A single row has no padding, so only the ragged batches can show what is wrong with it.
    ragged_only = spoil in (dropped_pad_mask, padding_of_the_batch_before)
    assert all(found[1:] if ragged_only else found), found


@pytest.mark.parametrize(
    ("spread", "spoil"),
    [
        (TENSOR_2, no_sum_after_attention),
        (TENSOR_2, no_sum_after_feed_forward),
        (TENSOR_2, no_sum_of_the_embedding),
        (TENSOR_2, argmax_of_this_shard_only),
        (TENSOR_2, swapped_kv_heads),
        (TENSOR_8, query_heads_with_their_neighbours_kv_head),
    ],
    ids=lambda value: value.__name__ if callable(value) else f"tensor {value.shards}",
)
def test_the_comparison_sees_among_ranks(
    spread: Strategy,
    spoil: Callable[[LlamaEngine], None],
    ranks: Callable[[int], Ranks],
) -> None:
    world = ranks(spread.world_size)
    expected = others_answers("gqa")[BATCH_SIZES.index(4)]
    for given in world.run(answers, SHAPES["gqa"], spread, "float32", (4,), 0.0, spoil):
        assert difference(expected, given[0], batch_of(4), TOLERANCE["float32"])


def test_a_difference_in_a_single_id_is_seen() -> None:
    batch, one = batch_of(4), others_answers("gqa")[1]
    other = [list(row) for row in one.ids]
    other[2][5] += 1
    assert "ids differ" in str(difference(one, Answer(other, one.logits), batch, 1e-4))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e3])
def test_a_single_wrong_logit_is_seen_but_not_at_padding(wrong: float) -> None:
    batch, one = batch_of(4), others_answers("gqa")[1]
    row = int(batch.pad_B.argmax())
    at_token, at_padding = one.logits.clone(), one.logits.clone()
    at_token[row, -1, 7] = wrong
    at_padding[row, 0, 7] = wrong
    assert difference(one, Answer(one.ids, at_token), batch, 1e-4)
    assert difference(one, Answer(one.ids, at_padding), batch, 1e-4) is None
