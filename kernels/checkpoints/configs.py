"""What a checkpoint's small files tell without torch: the model's shape, and which tokenizer.

Meta: `params.json` (meta-llama/llama). Hugging Face: `config.json` of the Llama, Mistral and
Qwen2 families.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernels.shapes import KNOWN, ModelShape, RopeScaling, ShapeError

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")
"""A token in base64 and its rank: Llama-3's `tokenizer.model` has nothing but such lines."""


def ffn_dim_of(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's feed-forward width (`FeedForward.__init__` of meta-llama/llama `model.py`)."""
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def from_meta(params: Mapping[str, Any], vocab_size: int | None = None) -> ModelShape:
    """Return the shape that a Meta `params.json` describes.

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
    shape = ModelShape(
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
    return _as_released(shape, params.get("max_seq_len"))


def _as_released(shape: ModelShape, max_seq_len: int | None) -> ModelShape:
    """Fill in what `params.json` leaves to Meta's code: the context, and the factor of the rope.

    Llama-3.2's file says `use_scaled_rope` as Llama-3.1's does, and means another factor.
    """
    released = next((each for each in KNOWN.values() if _alike(each, shape)), shape)
    return replace(
        shape,
        rope_scaling=released.rope_scaling,
        max_seq_len=int(max_seq_len or released.max_seq_len),
    )


def _alike(released: ModelShape, shape: ModelShape) -> bool:
    sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size")
    names = (*sizes, "rope_theta", "qkv_bias", "sliding_window")
    return all(
        getattr(released, name) == getattr(shape, name) for name in names
    ) and bool(released.rope_scaling) == bool(shape.rope_scaling)


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
    # As transformers 5 reads it: an outer rope_theta may be an old default left in the file.
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
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


def tokenizer_file(folder: Path) -> Path | None:
    """Return the checkpoint's tokenizer: in its folder or, for Meta's files, also one level up."""
    places = [folder, folder.parent] if (folder / "params.json").exists() else [folder]
    names = ("tokenizer.model", "tokenizer.json")
    files = (place / name for place in places for name in names)
    return next((file for file in files if file.is_file()), None)


def is_tiktoken(file: Path) -> bool:
    """Return whether a `tokenizer.model` is Llama-3's list of tokens, not a SentencePiece model."""
    with file.open("rb") as lines:
        return TIKTOKEN_LINE.fullmatch(lines.readline(4096)) is not None
