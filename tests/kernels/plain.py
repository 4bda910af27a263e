"""A Llama in its plainest form, in fp64: one row at a time, no cache, no padding, no sharing.

Written from the papers' formulas and apart from `kernels.llama`, so that both can be compared.
Rotary pairs are complex numbers, as Meta's code has them; the mask comes from two loops.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from kernels.shapes import ModelShape


class Source(Protocol):
    """Weights by Meta's names."""

    @property
    def shape(self) -> ModelShape:
        """The model's."""

    def read(self, source: str) -> Tensor:
        """A whole tensor."""


def plain_logits(
    weights: Source, ids: list[int], *, adjacent_pairs: bool = False
) -> Tensor:
    """Logits [T, V] of one prompt.

    Args:
        weights: the model.
        ids: the prompt.
        adjacent_pairs: wq and wk are as in Meta's files, whose rotary pairs stand side by side.
    """
    shape = weights.shape
    x_TD = _read(weights, "tok_embeddings.weight")[ids]
    for layer in range(shape.n_layers):
        name = f"layers.{layer}"
        h_TD = _norm(x_TD, _read(weights, f"{name}.attention_norm.weight"), shape)
        x_TD = x_TD + _attention(weights, f"{name}.attention", h_TD, adjacent_pairs)
        h_TD = _norm(x_TD, _read(weights, f"{name}.ffn_norm.weight"), shape)
        x_TD = x_TD + _feed_forward(weights, f"{name}.feed_forward", h_TD)
    x_TD = _norm(x_TD, _read(weights, "norm.weight"), shape)
    head = "tok_embeddings" if shape.tied_embeddings else "output"
    return x_TD @ _read(weights, f"{head}.weight").T


def _read(weights: Source, name: str) -> Tensor:
    return weights.read(name).double()


def _norm(x_TD: Tensor, weight: Tensor, shape: ModelShape) -> Tensor:
    size = (x_TD**2).mean(1, keepdim=True) + shape.norm_eps
    return x_TD / size.sqrt() * weight


def _feed_forward(weights: Source, name: str, x_TD: Tensor) -> Tensor:
    gate = x_TD @ _read(weights, f"{name}.w1.weight").T
    up = x_TD @ _read(weights, f"{name}.w3.weight").T
    return (gate * torch.sigmoid(gate) * up) @ _read(weights, f"{name}.w2.weight").T


def _attention(weights: Source, name: str, x_TD: Tensor, adjacent: bool) -> Tensor:
    shape = weights.shape
    q, k, v = (_project(weights, f"{name}.{part}", x_TD) for part in ("wq", "wk", "wv"))
    width, share = shape.head_dim, shape.n_heads // shape.n_kv_heads
    heads = []
    for head in range(shape.n_heads):
        mine = slice(head * width, (head + 1) * width)
        kv = slice(head // share * width, (head // share + 1) * width)
        q_TH, k_TH = (_turn(x, shape, adjacent) for x in (q[:, mine], k[:, kv]))
        scores = q_TH @ k_TH.T / math.sqrt(width)
        heads.append(torch.softmax(scores + _mask(len(x_TD), shape), 1) @ v[:, kv])
    return torch.cat(heads, 1) @ _read(weights, f"{name}.wo.weight").T


def _project(weights: Source, name: str, x_TD: Tensor) -> Tensor:
    out = x_TD @ _read(weights, f"{name}.weight").T
    return out + _read(weights, f"{name}.bias") if weights.shape.qkv_bias else out


def _mask(tokens: int, shape: ModelShape) -> Tensor:
    window = shape.sliding_window or tokens
    mask = torch.full((tokens, tokens), -math.inf, dtype=torch.float64)
    for query in range(tokens):
        for key in range(max(0, query - window + 1), query + 1):
            mask[query, key] = 0
    return mask


def _turn(x_TH: Tensor, shape: ModelShape, adjacent: bool) -> Tensor:
    half = shape.head_dim // 2
    frequencies = torch.tensor(
        [_frequency(pair, shape) for pair in range(half)], dtype=torch.float64
    )
    angles = torch.outer(torch.arange(len(x_TH), dtype=torch.float64), frequencies)
    parts = (x_TH[:, ::2], x_TH[:, 1::2]) if adjacent else x_TH.chunk(2, dim=1)
    turned = torch.complex(*(part.contiguous() for part in parts)) * torch.polar(
        torch.ones_like(angles), angles
    )
    # Queries and keys are only multiplied with each other: the order of the pairs is free.
    return torch.cat([turned.real, turned.imag], 1)


def _frequency(pair: int, shape: ModelShape) -> float:
    frequency = shape.rope_theta ** (-2 * pair / shape.head_dim)
    scaling = shape.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    if wavelength < scaling.original_max_seq_len / scaling.high_freq_factor:
        return frequency
    if wavelength > scaling.original_max_seq_len / scaling.low_freq_factor:
        return frequency / scaling.factor
    smooth = (scaling.original_max_seq_len / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency
