"""What a Llama-family model's tensors are: names, shapes, bytes. Integers only, no torch.

The names are Meta's (`layers.0.attention.wq.weight`), whatever format a checkpoint has.
Dimensions: `params.json` and `config.json` of the releases, as listed per model in `KNOWN`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class ShapeError(ValueError):
    """A model description that contradicts itself or lacks a field; the message names it."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3.1's stretching of the rotary wavelengths (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that fix every tensor of a Llama-family model. Global, never per shard."""

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
        for name in (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "ffn_dim",
            "vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ShapeError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
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
        if self.head_dim % 2:
            raise ShapeError(
                f"head_dim must be even for rotary positions, got {self.head_dim}"
            )


def layer_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name within the layer → shape, of one transformer layer. Linear weights are [out, in]."""
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
    """How many numbers a tensor of these dimensions holds."""
    total = 1
    for size in dims:
        total *= size
    return total


def num_parameters(shape: ModelShape) -> int:
    """All weights; a tied embedding counts once."""
    return sum(num_elements(dims) for dims in tensors(shape).values())


def weight_bytes(shape: ModelShape, dtype: str) -> int:
    """Bytes of all weights in `dtype` (a key of `DTYPE_BYTES`)."""
    return num_parameters(shape) * DTYPE_BYTES[dtype]


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Bytes of keys and values that one token of one sequence leaves in the cache."""
    return 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * DTYPE_BYTES[dtype]


def ffn_dim_of(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's feed-forward width (`FeedForward.__init__` of meta-llama/llama `model.py`)."""
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def from_meta(params: Mapping[str, Any], vocab_size: int | None = None) -> ModelShape:
    """The shape that a Meta `params.json` describes.

    Args:
        params: the parsed file.
        vocab_size: used where the file says -1 (Llama-2: "ask the tokenizer").

    Raises:
        ShapeError: a field is missing or the numbers contradict each other.
    """
    vocab = params.get("vocab_size", -1)
    if vocab < 1:
        if vocab_size is None:
            raise ShapeError(
                "params.json leaves vocab_size to the tokenizer, and none was given"
            )
        vocab = vocab_size
    dim = _field(params, "dim", "params.json")
    heads = _field(params, "n_heads", "params.json")
    scaling = RopeScaling(factor=8.0) if params.get("use_scaled_rope") else None
    return ModelShape(
        dim=dim,
        n_layers=_field(params, "n_layers", "params.json"),
        n_heads=heads,
        n_kv_heads=params.get("n_kv_heads") or heads,
        ffn_dim=ffn_dim_of(
            dim, params.get("multiple_of", 256), params.get("ffn_dim_multiplier")
        ),
        vocab_size=vocab,
        norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 10000.0),
        rope_scaling=scaling,
        max_seq_len=131072 if scaling else 4096,
    )


def from_hf(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face `config.json` of the Llama, Mistral or Qwen2 family describes.

    Raises:
        ShapeError: a field is missing, or the model uses something this Llama does not compute.
    """
    kind = config.get("model_type", "llama")
    if kind not in ("llama", "mistral", "qwen2"):
        raise ShapeError(
            f"config.json: model_type must be llama, mistral or qwen2, got {kind!r}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ShapeError(
            f"config.json: hidden_act must be silu, got {config['hidden_act']!r}"
        )
    heads = _field(config, "num_attention_heads", "config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta", rope.get("rope_theta", 10000.0))
    return ModelShape(
        dim=_field(config, "hidden_size", "config.json"),
        n_layers=_field(config, "num_hidden_layers", "config.json"),
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or 0,
        ffn_dim=_field(config, "intermediate_size", "config.json"),
        vocab_size=_field(config, "vocab_size", "config.json"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(theta),
        rope_scaling=_hf_rope_scaling(rope),
        max_seq_len=config.get("max_position_embeddings", 2048),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bool(config.get("attention_bias", kind == "qwen2")),
        sliding_window=_hf_window(config, kind),
    )


def _hf_rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ShapeError(
            f"config.json: rope type must be default or llama3, got {kind!r}"
        )
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_seq_len=int(rope["original_max_position_embeddings"]),
    )


def _hf_window(config: Mapping[str, Any], kind: str) -> int | None:
    # Qwen2 configurations carry a sliding_window that use_sliding_window switches off.
    if kind == "llama" or (
        kind == "qwen2" and not config.get("use_sliding_window", False)
    ):
        return None
    window = config.get("sliding_window")
    return None if window is None else int(window)


def _field(config: Mapping[str, Any], name: str, file: str) -> int:
    if name not in config:
        raise ShapeError(f"{file} has no {name!r}")
    return int(config[name])


def read_shape(folder: Path, vocab_size: int | None = None) -> ModelShape:
    """The shape of the checkpoint in `folder`, Meta or Hugging Face, told apart by its files.

    Raises:
        ShapeError: neither file is there, it is not JSON, or it describes no Llama we know.
    """
    for name in ("config.json", "params.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            described = json.loads(file.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ShapeError(f"{file} is not JSON: {error}") from error
        return (
            from_hf(described)
            if name == "config.json"
            else from_meta(described, vocab_size)
        )
    raise ShapeError(
        f"{folder} holds neither config.json (Hugging Face) nor params.json (Meta)"
    )


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
