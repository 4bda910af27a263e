"""Reading Hugging Face's layout: transformers writes, we read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from kernels.checkpoints.hf import hf_name
from kernels.shapes import tensors
from kernels.weights import WeightsError, open_weights

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 56,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "llama with its own head width": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, head_dim=10)
    ),
    "tied llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, sliding_window=16)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "tied qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)
    ),
}


@pytest.fixture
def llama() -> Any:
    """A small transformers model."""
    return FAMILIES["llama"]()


def state(model: Any) -> dict[str, Tensor]:
    named: dict[str, Tensor] = model.state_dict()
    return named


@pytest.mark.parametrize("shard_size", ["20KB", "1GB"], ids=["sharded", "one file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_read_bit_by_bit(
    tmp_path: Path, family: str, shard_size: str
) -> None:
    model = FAMILIES[family]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # new ones are zero
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (
        shard_size == "20KB"
    )
    weights = open_weights(tmp_path)
    expected = state(model)
    if weights.shape.tied_embeddings:
        del expected["lm_head.weight"]
    assert {hf_name(name) for name in tensors(weights.shape)} == expected.keys()
    for name in tensors(weights.shape):
        assert torch.equal(weights.read(name), expected[hf_name(name)]), name


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_any_slice_of_any_dtype_is_that_of_the_whole(
    tmp_path: Path, llama: Any, dtype: torch.dtype
) -> None:
    llama.to(dtype).save_pretrained(tmp_path)
    weights = open_weights(tmp_path)
    assert weights.dtype == dtype
    for name, dims in tensors(weights.shape).items():
        whole = state(llama)[hf_name(name)]
        for dim, size in enumerate(dims):
            part = weights.read(name, dim, range(size // 3, size - 1))
            assert torch.equal(part, whole.narrow(dim, size // 3, size - 1 - size // 3))


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_older_bin_files_are_read(tmp_path: Path, llama: Any, sharded: bool) -> None:
    llama.config.save_pretrained(tmp_path)
    named = state(llama) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)
    }
    if sharded:
        names = sorted(named)
        groups = {"pytorch_model-00001-of-00002.bin": names[:9]}
        groups["pytorch_model-00002-of-00002.bin"] = names[9:]
        weight_map = {name: file for file, group in groups.items() for name in group}
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for file, group in groups.items():
            torch.save({name: named[name] for name in group}, tmp_path / file)
    else:
        torch.save(named, tmp_path / "pytorch_model.bin")
    weights = open_weights(tmp_path)
    for name in tensors(weights.shape):
        assert torch.equal(weights.read(name), named[hf_name(name)]), name


def test_a_rank_opens_only_the_files_it_reads_from(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path, max_shard_size="20KB")
    weights = open_weights(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    needed = {
        index["weight_map"][name]
        for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight")
    }
    for file in set(index["weight_map"].values()) - needed:
        (tmp_path / file).write_bytes(b"no tensors")
    weights.read("layers.1.feed_forward.w3.weight")


def test_an_unknown_tensor_is_ignored(tmp_path: Path, llama: Any) -> None:
    llama.config.save_pretrained(tmp_path)
    save_file(
        state(llama) | {"model.extra": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    assert open_weights(tmp_path).read("norm.weight").shape == (32,)


def test_a_bias_that_we_do_not_compute_is_refused(tmp_path: Path) -> None:
    """Left out in silence, it would give wrong answers."""
    config = transformers.LlamaConfig(**SIZES, attention_bias=True)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"o_proj\.bias.*not supported"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "model_type must be llama"),
        ({"hidden_size": None}, "describes no Llama"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_key_value_heads": 3}, "multiple of n_kv_heads"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "yarn"),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    tmp_path: Path, llama: Any, change: dict[str, Any], said: str
) -> None:
    llama.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=said):
        open_weights(tmp_path)
