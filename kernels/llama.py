"""Single-device Llama in plain torch; strategies parallelize it from outside.

Strategies cut it from outside: layers live in a dict keyed by their index, the embedding, the
final norm and the output head may be None, and each attention knows its own head counts.
Parameter names are those of `kernels.shapes.tensors`; wq and wk rotate halves (Hugging Face).

Shapes, in names: B rows, T tokens of this step, S slots of the cache, D model width, N heads,
H head width, F feed-forward width, V vocabulary. A suffix is the logical dimension: N may be
a shard's heads.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.cache import Step
from kernels.shapes import ModelShape, RopeScaling


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least fp32 and cast back before the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return each token's numbers, scaled to a mean square of one and then by the weight."""
        # The weight is applied after casting back, as Meta's and Hugging Face's code do it.
        x: Tensor = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x.to(x_BTD.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention over the cache."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = shape.n_heads
        """Query heads held here; fewer than the model's once the layer is sharded."""
        self.n_kv_heads = shape.n_kv_heads
        self.head_dim = shape.head_dim
        q, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.wq = nn.Linear(shape.dim, q, bias=shape.qkv_bias)
        self.wk = nn.Linear(shape.dim, kv, bias=shape.qkv_bias)
        self.wv = nn.Linear(shape.dim, kv, bias=shape.qkv_bias)
        self.wo = nn.Linear(q, shape.dim, bias=False)

    def forward(self, x_BTD: Tensor, step: Step) -> Tensor:
        """Attend to the tokens in the cache and to those of this step."""
        q_BNTH = rotate(self._heads(self.wq(x_BTD), self.n_heads), step)
        k_BNTH = rotate(self._heads(self.wk(x_BTD), self.n_kv_heads), step)
        v_BNTH = self._heads(self.wv(x_BTD), self.n_kv_heads)
        k_BNSH, v_BNSH = step.write(self.layer, k_BNTH, v_BNTH)
        # The query heads of one KV head become further rows of it: nothing is expanded.
        rows, tokens = x_BTD.shape[:2]
        q = q_BNTH.reshape(rows, self.n_kv_heads, -1, self.head_dim)
        out = F.scaled_dot_product_attention(q, k_BNSH, v_BNSH, attn_mask=step.mask)
        out_BNTH = out.reshape(rows, self.n_heads, tokens, self.head_dim)
        projected: Tensor = self.wo(out_BNTH.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x_BTD: Tensor, heads: int) -> Tensor:
        rows, tokens = x_BTD.shape[:2]
        return x_BTD.view(rows, tokens, heads, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.dim, shape.ffn_dim, bias=False)
        self.w2 = nn.Linear(shape.ffn_dim, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.ffn_dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """w2(silu(w1 x) * w3 x), token by token."""
        out: Tensor = self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))
        return out


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.attention = Attention(shape, layer)
        self.feed_forward = FeedForward(shape)
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.ffn_norm = RMSNorm(shape.dim, shape.norm_eps)

    def forward(self, x_BTD: Tensor, step: Step) -> Tensor:
        """Attention, then feed-forward, each normed before and added to what came in."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), step)
        out: Tensor = x_BTD + self.feed_forward(self.ffn_norm(x_BTD))
        return out


class Llama(nn.Module):
    """The whole model, or what a strategy left of it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        # A given weight: initialising one on the meta device loads 800 modules, sympy among them.
        matrix_VD = torch.empty(shape.vocab_size, shape.dim)
        self.tok_embeddings: nn.Module | None = nn.Embedding.from_pretrained(matrix_VD)
        self.layers = nn.ModuleDict(
            {str(layer): Layer(shape, layer) for layer in range(shape.n_layers)}
        )
        self.norm: nn.Module | None = RMSNorm(shape.dim, shape.norm_eps)
        self.output: nn.Linear | None = nn.Linear(
            shape.dim, shape.vocab_size, bias=False
        )

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] of token ids."""
        assert self.tok_embeddings is not None
        x_BTD: Tensor = self.tok_embeddings(ids_BT)
        return x_BTD

    def transform(
        self, x_BTD: Tensor, step: Step, layers: Iterable[nn.Module] | None = None
    ) -> Tensor:
        """Return the hidden states after the layers, by default the model's own."""
        for layer in self.layers.values() if layers is None else layers:
            x_BTD = layer(x_BTD, step)
        return x_BTD

    def head(self, x_BTD: Tensor) -> Tensor:
        """Return the logits [B, T, V] of hidden states, in at least fp32."""
        assert self.norm is not None
        assert self.output is not None
        logits_BTV: Tensor = self.output(self.norm(x_BTD))
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map ids [B, T], or hidden states if another stage embeds, to logits or hidden states."""
        x_BTD = x if self.tok_embeddings is None else self.embed(x)
        x_BTD = self.transform(x_BTD, step)
        return x_BTD if self.output is None else self.head(x_BTD)


def rotate(x_BNTH: Tensor, step: Step) -> Tensor:
    """Turn each pair (i, i + H/2) of every head by its position's angle."""
    # In the tables' type, at least fp32: bf16 would blur the angles.
    first, second = x_BNTH.to(step.cos.dtype).chunk(2, dim=-1)
    turned = (
        first * step.cos - second * step.sin,
        second * step.cos + first * step.sin,
    )
    return torch.cat(turned, dim=-1).to(x_BNTH.dtype)


def rotary_tables(
    shape: ModelShape, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, H/2] of the angles of positions 0 … length - 1.

    In fp32, in fp64 for a model in fp64: bf16 cannot tell neighbouring positions apart.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(0, shape.head_dim, 2, dtype=dtype, device=device)
    frequencies = 1.0 / shape.rope_theta ** (pairs / shape.head_dim)
    if shape.rope_scaling is not None:
        frequencies = _stretch(frequencies, shape.rope_scaling)
    positions = torch.arange(length, dtype=dtype, device=device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    # Llama 3.1: long wavelengths are divided by the factor, short ones kept, between them blended.
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)
