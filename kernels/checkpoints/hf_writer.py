"""Write any weights as a Hugging Face checkpoint: `config.json` and safetensors files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kernels.checkpoints.configs import from_hf
from kernels.checkpoints.hf import hf_name
from kernels.shapes import ModelShape, ShapeError, num_elements, tensors
from kernels.weights import Weights

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "clean_up_tokenization_spaces": False,
}
"""`tokenizer_config.json`: how transformers reads the `tokenizer.model` beside it."""


def hf_config(shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of `config.json` that transformers reads as this shape.

    Raises:
        ShapeError: none of the Llama, Mistral and Qwen2 families computes this shape.
    """
    kind = "llama"
    if shape.qkv_bias:
        kind = "qwen2"
    elif shape.sliding_window is not None:
        kind = "mistral"
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_seq_len,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if kind == "llama":
        config |= {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    if kind == "mistral":
        config["sliding_window"] = shape.sliding_window
    if shape.rope_scaling is not None:
        scaling = asdict(shape.rope_scaling)
        scaling["original_max_position_embeddings"] = scaling.pop(
            "original_max_seq_len"
        )
        config["rope_scaling"] = {"rope_type": "llama3"} | scaling
    if from_hf(config) != shape:
        raise ShapeError(
            "a Hugging Face model has q/k/v biases (qwen2) or a sliding window (mistral), "
            "not both; leave one out"
        )
    return config


def write_hf(
    folder: Path, weights: Weights, max_file_bytes: int, *, has_tokenizer: bool
) -> None:
    """Write `config.json` and safetensors files of at most `max_file_bytes` of tensors each.

    A tensor that is larger gets a file of its own. One file at a time is in memory.

    Raises:
        ShapeError: none of the Llama, Mistral and Qwen2 families computes this shape.
    """
    _write_json(folder / "config.json", hf_config(weights.shape, weights.dtype))
    if has_tokenizer:
        _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    groups = _groups(weights, max_file_bytes)
    if len(groups) == 1:
        _write_file(folder / "model.safetensors", weights, groups[0])
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(groups, start=1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        _write_file(folder / file, weights, names)
        weight_map |= {hf_name(name): file for name in names}
    total = sum(_bytes(weights, name) for name in tensors(weights.shape))
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index_json)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(weights: Weights, name: str) -> int:
    return num_elements(tensors(weights.shape)[name]) * weights.dtype.itemsize


def _groups(weights: Weights, max_file_bytes: int) -> list[list[str]]:
    """Return the tensor names of each file, in the model's order, filling file after file."""
    groups: list[list[str]] = [[]]
    used = 0
    for name in tensors(weights.shape):
        size = _bytes(weights, name)
        if groups[-1] and used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _write_file(file: Path, weights: Weights, names: list[str]) -> None:
    parts = {hf_name(name): weights.read(name).contiguous() for name in names}
    save_file(parts, file, metadata={"format": "pt"})
