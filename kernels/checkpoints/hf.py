"""Hugging Face's checkpoints: `config.json` with safetensors, whole or sharded, or older `.bin`.

Files are opened when a tensor in them is first asked for. Other keys (`inv_freq`) are ignored,
but not a bias, which would be left out of the computation in silence.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.checkpoints.configs import from_hf
from kernels.checkpoints.files import TensorFile, WeightsError, open_tensor_file
from kernels.shapes import ModelShape, tensors

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
"""Meta's module name within a layer → Hugging Face's."""
_OUTER_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
}
_FILES = ("model.safetensors", "pytorch_model.bin")


def hf_name(name: str) -> str:
    """Return what Hugging Face calls the tensor that Meta calls `name`.

    >>> hf_name("layers.3.feed_forward.w1.weight")
    'model.layers.3.mlp.gate_proj.weight'
    """
    module, _, kind = name.rpartition(".")
    if module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.{kind}"
    _, layer, within = module.split(".", 2)
    return f"model.layers.{layer}.{LAYER_NAMES[within]}.{kind}"


class HfCheckpoint:
    """The weights in a folder of Hugging Face's layout.

    Raises:
        WeightsError: a file or tensor is missing, or config.json describes no Llama we compute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape = _read_shape(folder / "config.json")
        self._dims = tensors(self.shape)
        self._open: dict[str, TensorFile] = {}
        self._file_of = self._weight_map()
        self._check_names()
        first = hf_name("norm.weight")
        self.dtype: torch.dtype = self._file(first).dtype(first)

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        if source not in self._dims:
            raise WeightsError(f"{source} is no tensor of the model in {self.folder}")
        name, full = hf_name(source), self._dims[source]
        file = self._file(name)
        if name not in file.names():
            raise WeightsError(f"{name} is missing in {file.path}")
        if file.dims(name) != full:
            raise WeightsError(
                f"{name} in {file.path} is {list(file.dims(name))}, but config.json asks for "
                f"{list(full)}; is one of them of another model?"
            )
        file.dtype(name)
        return file.read(name, dim, range(full[dim]) if owned is None else owned)

    def _weight_map(self) -> dict[str, str]:
        """Tensor name → file name, from the index, or from the one file there is."""
        for single in _FILES:
            index = self.folder / f"{single}.index.json"
            if index.is_file():
                return _read_index(index)
            if (self.folder / single).is_file():
                self._open[single] = open_tensor_file(self.folder / single)
                return dict.fromkeys(self._open[single].names(), single)
        raise WeightsError(
            f"{self.folder} has config.json, but none of {', '.join(_FILES)}, nor an index of them"
        )

    def _check_names(self) -> None:
        names = [hf_name(name) for name in self._dims]
        missing = [name for name in names if name not in self._file_of]
        if missing:
            raise WeightsError(
                f"{missing[0]} is missing in {self.folder} ({len(missing)} of {len(names)} tensors "
                f"are), but config.json asks for it"
            )
        biases = {name for name in self._file_of if name.endswith(".bias")}
        foreign = sorted(biases - set(names))
        if foreign:
            raise WeightsError(
                f"{foreign[0]} in {self.folder} is a bias that this Llama does not compute (only "
                f"those of q_proj, k_proj and v_proj); such a model is not supported"
            )
        for file in sorted(set(self._file_of.values())):
            if not (self.folder / file).is_file():
                raise WeightsError(
                    f"{self.folder / file} is missing, which the index names; fetch it again"
                )

    def _file(self, name: str) -> TensorFile:
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_tensor_file(self.folder / file)
        return self._open[file]


def _read_shape(file: Path) -> ModelShape:
    config = _read_json(file)
    if config.get("quantization_config"):
        raise WeightsError(f"{file}: quantised checkpoints are not supported")
    try:
        return from_hf(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} describes no Llama we compute: {error}") from error


def _read_index(file: Path) -> dict[str, str]:
    named = _read_json(file).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise WeightsError(f"{file} has no weight_map from tensors to files")
    for tensor, name in named.items():
        # A folder in the name would read files outside the checkpoint.
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(
                f"{file}: {tensor} must name a file beside it, got {name!r}"
            )
    return named


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} must hold a JSON object")
    return content
