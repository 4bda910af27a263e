"""Write any weights as a Meta checkpoint: `params.json` and `consolidated.NN.pth` files."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.checkpoints.configs import ffn_dim_of, from_meta
from kernels.checkpoints.meta import interleaved
from kernels.placement import kv_heads_of, split_evenly
from kernels.shapes import ModelShape, ShapeError, tensors
from kernels.weights import Weights

EmbeddingSplit = Literal["columns", "rows"]
"""How the files share the embedding: Llama-1 and 2 by columns, Llama-3 by rows."""
_RELEASED = ((256, None), (4096, 1.3), (1024, 1.3), (4096, 1.2))
"""multiple_of and ffn_dim_multiplier of Llama-2 7B and 13B, of the 70B, of Llama-3 8B, of 405B."""


def meta_params(shape: ModelShape, tokenizer_size: int | None) -> dict[str, Any]:
    """Return the content of `params.json`, as Meta's code reads it.

    Args:
        shape: of the model.
        tokenizer_size: vocabulary of the tokenizer beside it; where it is the model's, the file
            leaves vocab_size to the tokenizer (-1), as Llama-2's does.

    Raises:
        ShapeError: `params.json` has no field for something in the shape.
    """
    multiple_of, multiplier = _ffn_rule(shape)
    params: dict[str, Any] = {
        "dim": shape.dim,
        "multiple_of": multiple_of,
        "n_heads": shape.n_heads,
        "n_layers": shape.n_layers,
        "norm_eps": shape.norm_eps,
        "vocab_size": -1 if tokenizer_size == shape.vocab_size else shape.vocab_size,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if shape.n_kv_heads != shape.n_heads:
        params["n_kv_heads"] = shape.n_kv_heads
    if shape.rope_theta != 10000.0:
        params["rope_theta"] = shape.rope_theta
    if shape.rope_scaling is not None:
        params["use_scaled_rope"] = True
    _check_complete(shape, params)
    return params


def _check_complete(shape: ModelShape, params: dict[str, Any]) -> None:
    try:
        read_back = from_meta(params, vocab_size=shape.vocab_size)
    except ShapeError as error:
        raise _inexpressible("an explicit head_dim") from error
    if read_back.rope_scaling != shape.rope_scaling:
        raise _inexpressible("a rope_scaling other than its release's")
    # The longest context is no part of params.json; nothing computed depends on it.
    for name in set(vars(shape)) - {"max_seq_len"}:
        if getattr(read_back, name) != getattr(shape, name):
            raise _inexpressible(f"{name} {getattr(shape, name)}")


def _inexpressible(what: str) -> ShapeError:
    return ShapeError(
        f"Meta's params.json cannot express {what}; take Hugging Face's format"
    )


def _ffn_rule(shape: ModelShape) -> tuple[int, float | None]:
    """Return multiple_of and ffn_dim_multiplier that give ffn_dim, a release's own if possible."""
    plain = tuple((2**power, None) for power in range(12, -1, -1))
    for multiple_of, multiplier in _RELEASED + plain:
        if ffn_dim_of(shape.dim, multiple_of, multiplier) == shape.ffn_dim:
            return multiple_of, multiplier
    # Half a column more, so that rounding down cannot take one away.
    return 1, (shape.ffn_dim + 0.5) / ffn_dim_of(shape.dim, 1, None)


def write_meta(
    folder: Path,
    weights: Weights,
    *,
    num_files: int,
    tokenizer_size: int | None,
    embedding_split: EmbeddingSplit = "columns",
) -> None:
    """Write `params.json` and `num_files` weight files. One file at a time is in memory.

    Raises:
        ShapeError: `params.json` cannot express the shape, or it does not divide by num_files.
    """
    params = meta_params(weights.shape, tokenizer_size)
    _check_divides(weights.shape, num_files)
    splits = {
        name: _split_dim(name, embedding_split) for name in tensors(weights.shape)
    }
    (folder / "params.json").write_text(json.dumps(params) + "\n")
    for index in range(num_files):
        _write_file(folder, weights, splits, num_files, index)


def _check_divides(shape: ModelShape, num_files: int) -> None:
    for name in ("n_heads", "ffn_dim", "vocab_size", "dim"):
        if getattr(shape, name) % num_files:
            raise ShapeError(
                f"the number of files must divide {name}: {num_files} does not divide "
                f"{getattr(shape, name)}; take another number of files"
            )
    fewer, more = sorted((shape.n_kv_heads, num_files))
    if more % fewer:
        raise ShapeError(
            f"the number of files must divide the KV heads or be a multiple of them: {num_files} "
            f"and {shape.n_kv_heads} are neither; take another number of files"
        )


def _split_dim(name: str, embedding_split: EmbeddingSplit) -> int | None:
    # As fairscale's layers: ColumnParallelLinear splits outputs, RowParallelLinear inputs.
    if "norm" in name:
        return None
    if name == "tok_embeddings.weight":
        return 1 if embedding_split == "columns" else 0
    return 1 if name.endswith((".wo.weight", ".w2.weight")) else 0


def _write_file(
    folder: Path,
    weights: Weights,
    splits: dict[str, int | None],
    num_files: int,
    index: int,
) -> None:
    # Cloned: torch.save writes all of the storage that a view shares with others.
    parts = {
        name: _part(weights, name, dim, num_files, index).clone(
            memory_format=torch.contiguous_format
        )
        for name, dim in splits.items()
    }
    torch.save(parts, folder / f"consolidated.{index:02d}.pth")


def _part(
    weights: Weights, name: str, dim: int | None, num_files: int, index: int
) -> Tensor:
    if dim is None:
        return weights.read(name)
    shape = weights.shape
    if name.endswith((".wk.weight", ".wv.weight")):
        # With more files than KV heads neighbouring files hold the same head, as in Llama-3.
        heads = kv_heads_of(shape, num_files, index)
        owned = range(heads.start * shape.head_dim, heads.stop * shape.head_dim)
    else:
        owned = split_evenly(tensors(shape)[name][dim], num_files)[index]
    part = weights.read(name, dim, owned)
    rotary = name.endswith((".wq.weight", ".wk.weight"))
    return interleaved(part, shape.head_dim) if rotary else part
