"""A Llama in its plainest form, in fp64: one row at a time, no cache, no padding, no sharing.

Written from the papers' formulas and apart from `kernels.llama`, so that both can be compared.
Rotary pairs are complex numbers, as Meta's code has them; the mask comes from two loops.
"""

import math

import torch
from torch import Tensor

from kernels.shapes import ModelShape
from kernels.weights import Weights


def plain_logits(weights: Weights, ids: list[int]) -> Tensor:
    """Logits [T, V] of one prompt."""
    shape = weights.shape
    x_TD = _read(weights, "tok_embeddings.weight")[ids]
    for layer in range(shape.n_layers):
        name = f"layers.{layer}"
        h_TD = _norm(x_TD, _read(weights, f"{name}.attention_norm.weight"), shape)
        x_TD = x_TD + _attention(weights, f"{name}.attention", h_TD)
        h_TD = _norm(x_TD, _read(weights, f"{name}.ffn_norm.weight"), shape)
        x_TD = x_TD + _feed_forward(weights, f"{name}.feed_forward", h_TD)
    x_TD = _norm(x_TD, _read(weights, "norm.weight"), shape)
    head = "tok_embeddings" if shape.tied_embeddings else "output"
    return x_TD @ _read(weights, f"{head}.weight").T


def plain_ids(weights: Weights, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy continuation of one prompt, the whole text computed anew for each token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(plain_logits(weights, ids)[-1].argmax()))
    return ids[len(prompt) :]


def _read(weights: Weights, name: str) -> Tensor:
    return weights.read(name).double()


def _norm(x_TD: Tensor, weight: Tensor, shape: ModelShape) -> Tensor:
    size = (x_TD**2).mean(1, keepdim=True) + shape.norm_eps
    return x_TD / size.sqrt() * weight


def _feed_forward(weights: Weights, name: str, x_TD: Tensor) -> Tensor:
    gate = x_TD @ _read(weights, f"{name}.w1.weight").T
    up = x_TD @ _read(weights, f"{name}.w3.weight").T
    return (gate * torch.sigmoid(gate) * up) @ _read(weights, f"{name}.w2.weight").T


def _attention(weights: Weights, name: str, x_TD: Tensor) -> Tensor:
    shape = weights.shape
    q, k, v = (_project(weights, f"{name}.{part}", x_TD) for part in ("wq", "wk", "wv"))
    width, share = shape.head_dim, shape.n_heads // shape.n_kv_heads
    heads = []
    for head in range(shape.n_heads):
        mine = slice(head * width, (head + 1) * width)
        kv = slice(head // share * width, (head // share + 1) * width)
        q_TH, k_TH = _turn(q[:, mine], shape), _turn(k[:, kv], shape)
        scores = q_TH @ k_TH.T / math.sqrt(width)
        heads.append(torch.softmax(scores + _mask(len(x_TD), shape), 1) @ v[:, kv])
    return torch.cat(heads, 1) @ _read(weights, f"{name}.wo.weight").T


def _project(weights: Weights, name: str, x_TD: Tensor) -> Tensor:
    out = x_TD @ _read(weights, f"{name}.weight").T
    return out + _read(weights, f"{name}.bias") if weights.shape.qkv_bias else out


def _mask(tokens: int, shape: ModelShape) -> Tensor:
    window = shape.sliding_window or tokens
    mask = torch.full((tokens, tokens), -math.inf, dtype=torch.float64)
    for query in range(tokens):
        for key in range(max(0, query - window + 1), query + 1):
            mask[query, key] = 0
    return mask


def _turn(x_TH: Tensor, shape: ModelShape) -> Tensor:
    half = shape.head_dim // 2
    frequencies = torch.tensor(
        [_frequency(pair, shape) for pair in range(half)], dtype=torch.float64
    )
    angles = torch.outer(torch.arange(len(x_TH), dtype=torch.float64), frequencies)
    turned = torch.complex(x_TH[:, :half], x_TH[:, half:]) * torch.polar(
        torch.ones_like(angles), angles
    )
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
