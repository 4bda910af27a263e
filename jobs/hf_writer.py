"""Writes any weights as a checkpoint of Hugging Face's layout: `config.json` and safetensors."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kernels.checkpoints.configs import from_hf
from kernels.checkpoints.hf import hf_name
from kernels.shapes import ModelShape, num_elements, tensors
from kernels.weights import Weights
from orchestrator.errors import InputError

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
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
"""How transformers is to read the `tokenizer.model` beside it."""
_CHUNK_ELEMENTS = 1 << 26


def hf_config(shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    """What `config.json` says of the shape, as transformers reads it.

    Raises:
        InputError: no family there computes this shape.
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
        raise InputError(
            "Hugging Face's families have q/k/v biases (qwen2) or a sliding window (mistral), not "
            "both; leave one out"
        )
    return config


def write_hf(
    folder: Path, weights: Weights, *, max_file_bytes: int, has_tokenizer: bool
) -> None:
    """Writes `config.json` and safetensors files of at most `max_file_bytes`, or one tensor each.

    Never more than a part of one tensor is in memory.

    Raises:
        InputError: no family there computes this shape.
    """
    config = hf_config(weights.shape, weights.dtype)
    _write_json(folder / "config.json", config)
    if has_tokenizer:
        _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    groups = _groups(weights, max_file_bytes)
    if len(groups) == 1:
        _write_safetensors(folder / "model.safetensors", weights, groups[0])
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(groups, start=1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        _write_safetensors(folder / file, weights, names)
        weight_map |= {hf_name(name): file for name in names}
    total = sum(_bytes(weights, name) for name in tensors(weights.shape))
    index_of = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index_of)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(weights: Weights, name: str) -> int:
    return num_elements(tensors(weights.shape)[name]) * weights.dtype.itemsize


def _groups(weights: Weights, max_file_bytes: int) -> list[list[str]]:
    """The names of each file, in the model's order, each file filled before the next begins."""
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


def _write_safetensors(file: Path, weights: Weights, names: list[str]) -> None:
    # The library's own writer wants all tensors at once. The format: the header's length in 8
    # bytes, a JSON header padded to 8 with spaces, then the tensors' bytes end to end.
    dims = tensors(weights.shape)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _bytes(weights, name)
        header[hf_name(name)] = {
            "dtype": _DTYPES[weights.dtype],
            "shape": list(dims[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for rows in _chunks(dims[name]):
                part = weights.read(name, 0, rows).contiguous()
                out.write(part.view(-1).view(torch.uint8).numpy().data)


def _chunks(dims: tuple[int, ...]) -> list[range]:
    """Consecutive rows of a tensor, few enough to hold in memory."""
    rows = max(1, _CHUNK_ELEMENTS // num_elements(dims[1:]))
    return [
        range(start, min(start + rows, dims[0])) for start in range(0, dims[0], rows)
    ]
