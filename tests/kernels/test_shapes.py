"""The tensors of a model: names, shapes, counts. No torch."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig

from kernels.checkpoints.configs import from_hf, from_meta
from kernels.checkpoints.meta_writer import meta_params
from kernels.shapes import (
    DTYPE_BYTES,
    KNOWN,
    ModelShape,
    RopeScaling,
    ShapeError,
    kv_bytes_per_token,
    layer_tensors,
    num_elements,
    num_parameters,
    tensors,
    weight_bytes,
)

# Counts: the releases' own, as listed by their cards and confirmed from the tensor shapes.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_known_models_have_their_published_number_of_parameters(
    name: str, count: int
) -> None:
    assert num_parameters(KNOWN[name]) == count


@pytest.mark.parametrize(
    ("name", "size"),
    [("llama-2-7b", 524_288), ("llama-2-13b", 819_200), ("llama-2-70b", 327_680)],
)
def test_a_token_leaves_keys_and_values_of_the_known_size(name: str, size: int) -> None:
    assert kv_bytes_per_token(KNOWN[name], "float16") == size


@pytest.mark.parametrize("name", [each for each in KNOWN if each.startswith("llama")])
def test_meta_s_files_of_a_release_mean_what_hugging_face_s_say(name: str) -> None:
    """params.json names neither the context nor the factor of the rope."""
    shape = replace(KNOWN[name], tied_embeddings=False)
    params = meta_params(shape, None)
    assert from_meta(params) == shape
    assert from_meta(params | {"max_seq_len": 1024}).max_seq_len == 1024


def test_of_two_rope_thetas_the_inner_one_counts_as_in_transformers() -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 9,
        "num_attention_heads": 4, "intermediate_size": 96, "rope_theta": 10000.0,
    }  # fmt: skip
    inner = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    theirs = LlamaConfig(**(config | inner)).rope_parameters
    assert from_hf(config | inner).rope_theta == theirs["rope_theta"] == 500000.0
    assert from_hf(config).rope_theta == 10000.0


@pytest.mark.parametrize(("dtype", "width"), DTYPE_BYTES.items())
def test_weight_bytes_are_parameters_times_width(dtype: str, width: int) -> None:
    shape = KNOWN["llama-2-7b"]
    assert weight_bytes(shape, dtype) == num_parameters(shape) * width


def test_tensors_stand_in_the_order_of_use() -> None:
    names = list(tensors(KNOWN["llama-2-7b"]))
    assert names[0] == "tok_embeddings.weight"
    assert names[1] == "layers.0.attention_norm.weight"
    assert names[-2:] == ["norm.weight", "output.weight"]
    assert len(names) == 3 + 32 * 9


def test_a_tied_model_has_no_tensor_for_its_head() -> None:
    assert "output.weight" not in tensors(KNOWN["llama-3.2-1b"])


def test_only_queries_keys_and_values_have_a_bias() -> None:
    named = layer_tensors(KNOWN["qwen2.5-7b"])
    assert {name: dims for name, dims in named.items() if name.endswith("bias")} == {
        "attention.wq.bias": (3584,),
        "attention.wk.bias": (512,),
        "attention.wv.bias": (512,),
    }


def test_linear_weights_are_out_by_in() -> None:
    named = layer_tensors(KNOWN["llama-2-70b"])
    assert named["attention.wk.weight"] == (1024, 8192)
    assert named["feed_forward.w2.weight"] == (8192, 28672)
    assert num_elements(named["feed_forward.w2.weight"]) == 8192 * 28672


def test_head_dim_follows_from_dim_unless_given() -> None:
    sizes = {"n_layers": 1, "n_kv_heads": 2, "ffn_dim": 8, "vocab_size": 9}
    assert ModelShape(dim=32, n_heads=4, **sizes).head_dim == 8
    assert ModelShape(dim=30, n_heads=4, head_dim=16, **sizes).head_dim == 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"n_kv_heads": 3}, "n_heads must be a multiple of n_kv_heads, got 4 and 3"),
        ({"dim": 30}, "dim must be a multiple of n_heads unless head_dim is given"),
        ({"head_dim": 7}, "head_dim must be even for rotary positions, got 7"),
        ({"head_dim": -2}, "head_dim must be even"),
        ({"dim": -4}, "dim must be at least 1, got -4"),
        ({"max_seq_len": 0}, "max_seq_len must be at least 1, got 0"),
        ({"sliding_window": 0}, "sliding_window must be at least 1, got 0"),
        ({"norm_eps": float("nan")}, "norm_eps must be above 0 and finite, got nan"),
        ({"norm_eps": -1e-5}, "norm_eps must be above 0"),
        (
            {"rope_theta": float("inf")},
            "rope_theta must be above 0 and finite, got inf",
        ),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(
    change: dict[str, Any], says: str
) -> None:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 8}
    with pytest.raises(ShapeError, match=says):
        ModelShape(**({"vocab_size": 9} | sizes | change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"factor": -1.0}, "factor must be above 0 and finite, got -1.0"),
        ({"original_max_seq_len": 0}, "original_max_seq_len must be at least 1"),
        (
            {"high_freq_factor": 1.0},
            "high_freq_factor must be more than low_freq_factor",
        ),
    ],
)
def test_a_stretching_that_cannot_be_is_refused(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ShapeError, match=says):
        RopeScaling(**({"factor": 8.0} | change))


def test_shapes_and_placements_need_no_torch() -> None:
    code = "import sys, kernels.placement, kernels.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
