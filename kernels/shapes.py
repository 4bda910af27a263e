"""What a Llama-family model's tensors are: names, shapes, bytes. Integers only, no torch.

The names are Meta's (`layers.0.attention.wq.weight`), whatever format a checkpoint has.
`kernels.checkpoints.configs` reads a shape from a checkpoint's configuration.
"""

from dataclasses import dataclass
from typing import Any

_PYDANTIC = {"strict": True, "extra": "forbid"}
"""How pydantic, which nothing here imports, validates these classes where files hold them."""

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class ShapeError(ValueError):
    """A model description that contradicts itself or lacks a field; the message names it."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3.1's stretching of the rotary wavelengths (`rope_type: llama3`)."""

    __pydantic_config__ = _PYDANTIC

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        _must_be_positive(self, "factor", "low_freq_factor", "original_max_seq_len")
        if not self.low_freq_factor < self.high_freq_factor < float("inf"):
            raise ShapeError(
                f"high_freq_factor must be more than low_freq_factor, "
                f"got {self.high_freq_factor} and {self.low_freq_factor}"
            )


def _must_be_positive(of: object, *names: str) -> None:
    for name in names:
        value = getattr(of, name)
        if not 0 < value < float("inf"):  # nor NaN
            least = "at least 1" if isinstance(value, int) else "above 0 and finite"
            raise ShapeError(f"{name} must be {least}, got {value}")


_COUNTS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "max_seq_len",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that fix every tensor of a Llama-family model. Global, never per shard."""

    __pydantic_config__ = _PYDANTIC

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0
    """0 stands for dim // n_heads and is replaced by it."""
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_seq_len: int = 4096
    tied_embeddings: bool = False
    """The output head is the embedding matrix (no tensor of its own in the checkpoint)."""
    qkv_bias: bool = False
    """Bias on wq, wk, wv (Qwen2), never on wo."""
    sliding_window: int | None = None
    """A query sees itself and this many - 1 positions before it (Mistral v0.1)."""

    def __post_init__(self) -> None:
        _must_be_positive(self, *_COUNTS, "norm_eps", "rope_theta")
        if self.sliding_window is not None:
            _must_be_positive(self, "sliding_window")
        if self.n_heads % self.n_kv_heads:
            raise ShapeError(
                f"n_heads must be a multiple of n_kv_heads, "
                f"got {self.n_heads} and {self.n_kv_heads}"
            )
        if not self.head_dim:
            if self.dim % self.n_heads:
                raise ShapeError(
                    f"dim must be a multiple of n_heads unless head_dim is given, "
                    f"got {self.dim} and {self.n_heads}"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim % 2 or self.head_dim < 0:
            raise ShapeError(
                f"head_dim must be even for rotary positions, got {self.head_dim}"
            )


def layer_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Map names within a transformer layer to shapes. Linear weights are [out, in]."""
    q = shape.n_heads * shape.head_dim
    kv = shape.n_kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (shape.dim,),
        "attention.wq.weight": (q, shape.dim),
        "attention.wk.weight": (kv, shape.dim),
        "attention.wv.weight": (kv, shape.dim),
        "attention.wo.weight": (shape.dim, q),
        "ffn_norm.weight": (shape.dim,),
        "feed_forward.w1.weight": (shape.ffn_dim, shape.dim),
        "feed_forward.w2.weight": (shape.dim, shape.ffn_dim),
        "feed_forward.w3.weight": (shape.ffn_dim, shape.dim),
    }
    if shape.qkv_bias:
        tensors |= {
            "attention.wq.bias": (q,),
            "attention.wk.bias": (kv,),
            "attention.wv.bias": (kv,),
        }
    return tensors


def tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Full name → shape of every tensor a checkpoint holds, in the order the model uses them."""
    named: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (shape.vocab_size, shape.dim)
    }
    for layer in range(shape.n_layers):
        named |= {
            f"layers.{layer}.{name}": dims
            for name, dims in layer_tensors(shape).items()
        }
    named["norm.weight"] = (shape.dim,)
    if not shape.tied_embeddings:
        named["output.weight"] = (shape.vocab_size, shape.dim)
    return named


def num_elements(dims: tuple[int, ...]) -> int:
    """Return how many numbers a tensor of these dimensions holds."""
    total = 1
    for size in dims:
        total *= size
    return total


def num_parameters(shape: ModelShape) -> int:
    """Count all weights; a tied embedding counts once."""
    return sum(num_elements(dims) for dims in tensors(shape).values())


def weight_bytes(shape: ModelShape, dtype: str) -> int:
    """Return the bytes of all weights in `dtype` (a key of `DTYPE_BYTES`)."""
    return num_parameters(shape) * DTYPE_BYTES[dtype]


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Return the bytes of keys and values that one token of one sequence leaves in the cache."""
    return 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * DTYPE_BYTES[dtype]


def _known(sizes: tuple[int, int, int, int, int, int], **more: Any) -> ModelShape:
    dim, n_layers, n_heads, n_kv_heads, ffn_dim, vocab_size = sizes
    return ModelShape(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        **more,
    )


_LLAMA_3: dict[str, Any] = {"rope_theta": 5e5, "max_seq_len": 8192}
_LLAMA_3_1 = _LLAMA_3 | {
    "rope_scaling": RopeScaling(factor=8.0),
    "max_seq_len": 131072,
}
_LLAMA_3_2 = _LLAMA_3_1 | {
    "rope_scaling": RopeScaling(factor=32.0),
    "tied_embeddings": True,
}
_MISTRAL: dict[str, Any] = {"max_seq_len": 32768}
_QWEN: dict[str, Any] = {"norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True}
_QWEN_SMALL = _QWEN | {"tied_embeddings": True, "max_seq_len": 32768}

# fmt: off
KNOWN: dict[str, ModelShape] = {
    "llama-2-7b": _known((4096, 32, 32, 32, 11008, 32000)),
    "llama-2-13b": _known((5120, 40, 40, 40, 13824, 32000)),
    "llama-2-70b": _known((8192, 80, 64, 8, 28672, 32000)),
    "llama-3-8b": _known((4096, 32, 32, 8, 14336, 128256), **_LLAMA_3),
    "llama-3-70b": _known((8192, 80, 64, 8, 28672, 128256), **_LLAMA_3),
    "llama-3.1-8b": _known((4096, 32, 32, 8, 14336, 128256), **_LLAMA_3_1),
    "llama-3.1-70b": _known((8192, 80, 64, 8, 28672, 128256), **_LLAMA_3_1),
    "llama-3.1-405b": _known((16384, 126, 128, 8, 53248, 128256), **_LLAMA_3_1),
    "llama-3.2-1b": _known((2048, 16, 32, 8, 8192, 128256), **_LLAMA_3_2),
    "llama-3.2-3b": _known((3072, 28, 24, 8, 8192, 128256), **_LLAMA_3_2),
    "mistral-7b-v0.1": _known((4096, 32, 32, 8, 14336, 32000), sliding_window=4096, **_MISTRAL),
    "mistral-7b-v0.3": _known((4096, 32, 32, 8, 14336, 32768), rope_theta=1e6, **_MISTRAL),
    "qwen2.5-0.5b": _known((896, 24, 14, 2, 4864, 151936), **_QWEN_SMALL),
    "qwen2.5-1.5b": _known((1536, 28, 12, 2, 8960, 151936), **_QWEN_SMALL),
    "qwen2.5-7b": _known((3584, 28, 28, 4, 18944, 152064), max_seq_len=131072, **_QWEN),
}
# fmt: on
"""Shapes by name, for planning without a checkpoint at hand."""
