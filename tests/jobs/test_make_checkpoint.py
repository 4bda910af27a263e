"""Checkpoints written in both formats: read back by us, by transformers and by torch."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open

from jobs.make_checkpoint import TOY, main, make_checkpoint, shape_from
from jobs.tokenizer import load_tokenizer
from jobs.toy_tokenizer import train_tokenizer
from kernels.checkpoints.configs import from_hf, from_meta
from kernels.checkpoints.hf import hf_name
from kernels.checkpoints.hf_writer import hf_config
from kernels.checkpoints.meta_writer import meta_params
from kernels.shapes import KNOWN, ModelShape, RopeScaling, ShapeError, tensors
from kernels.weights import RandomWeights, open_weights
from orchestrator.errors import InputError

SMALL = ModelShape(
    dim=64, n_layers=2, n_heads=8, n_kv_heads=4, ffn_dim=96, vocab_size=128
)
SMALLER = ["--n-layers", "2", "--dim", "64", "--n-heads", "4", "--n-kv-heads", "2"]
SMALLER += ["--ffn-dim", "96", "--vocab-size", "2048"]
QWEN = ["--like", "qwen2.5-0.5b", "--no-tokenizer"]


def run(*words: str) -> Any:
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "hf"],
        ["--format", "hf", "--max-shard-size", "1MB", "--dtype", "float32"],
        ["--format", "hf", "--like", "qwen2.5-0.5b", *SMALLER, "--dtype", "float16"],
        ["--format", "meta"],
        ["--format", "meta", "--shards", "2", "--dtype", "float32"],
        ["--format", "meta", "--shards", "8"],
    ],
    ids=" ".join,
)
def test_both_formats_give_back_the_seeds_weights_bit_by_bit(
    tmp_path: Path, words: list[str]
) -> None:
    folder = tmp_path / "models" / "toy"
    result = run(str(folder), "--seed", "3", *words)
    assert result.exit_code == 0, result.output
    weights = open_weights(folder)
    expected = RandomWeights(weights.shape, 3, weights.dtype)
    for name in tensors(weights.shape):
        assert torch.equal(weights.read(name), expected.read(name)), name
    assert load_tokenizer(folder).vocab_size == weights.shape.vocab_size == 2048
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize(
    "shape",
    [
        SMALL,
        replace(SMALL, tied_embeddings=True),
        replace(SMALL, qkv_bias=True, norm_eps=1e-6),
        replace(SMALL, sliding_window=16),
        replace(SMALL, head_dim=16),
        replace(SMALL, rope_theta=5e5, rope_scaling=RopeScaling(factor=32.0)),
    ],
    ids=["llama-2", "tied", "qwen", "mistral", "head_dim", "llama-3.2"],
)
@pytest.mark.parametrize("limit", [60_000, 5 * 10**9], ids=["sharded", "one file"])
def test_transformers_loads_the_folder_unchanged(
    tmp_path: Path, shape: ModelShape, limit: int
) -> None:
    folder = tmp_path / "toy"
    weights = RandomWeights(shape, 0, torch.float32)
    make_checkpoint(folder, "hf", weights, max_shard_bytes=limit, tokenizer=False)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    assert model.dtype == torch.float32
    named = model.state_dict()
    for name in tensors(shape):
        assert torch.equal(named[hf_name(name)], weights.read(name)), name
    assert from_hf(model.config.to_dict()) == shape


def test_no_safetensors_file_exceeds_its_limit_and_each_says_pytorch(
    tmp_path: Path,
) -> None:
    weights = RandomWeights(SMALL, 0, torch.float32)
    make_checkpoint(
        tmp_path / "m", "hf", weights, max_shard_bytes=40_000, tokenizer=False
    )
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert sum(sizes) <= 40_000
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        weights.read(name).nbytes for name in tensors(SMALL)
    )


def test_meta_files_split_as_fairscales_layers_do(tmp_path: Path) -> None:
    weights = RandomWeights(SMALL, 0, torch.bfloat16)
    make_checkpoint(tmp_path / "m", "meta", weights, shards=2, tokenizer=False)
    shard = torch.load(tmp_path / "m" / "consolidated.01.pth", weights_only=True)
    dims = {name: tuple(value.shape) for name, value in shard.items()}
    assert dims["tok_embeddings.weight"] == (128, 32)
    assert dims["output.weight"] == (64, 64)
    assert dims["norm.weight"] == (64,)
    assert dims["layers.1.attention.wq.weight"] == (32, 64)
    assert dims["layers.1.attention.wk.weight"] == (16, 64)
    assert dims["layers.1.attention.wo.weight"] == (64, 32)
    assert dims["layers.1.feed_forward.w1.weight"] == (48, 64)
    assert dims["layers.1.feed_forward.w2.weight"] == (64, 48)
    assert all(
        value.untyped_storage().nbytes() == value.nbytes for value in shard.values()
    )


def test_meta_queries_are_stored_interleaved(tmp_path: Path) -> None:
    weights = RandomWeights(SMALL, 0, torch.float32)
    make_checkpoint(tmp_path / "m", "meta", weights, tokenizer=False)
    named = torch.load(tmp_path / "m" / "consolidated.00.pth", weights_only=True)
    ours = weights.read("layers.0.attention.wk.weight")
    stored = named["layers.0.attention.wk.weight"]
    # Pair i of a head: rows i and i + 4 of its 8 here, rows 2 i and 2 i + 1 there.
    assert torch.equal(stored[8 + 2 * 3], ours[8 + 3])
    assert torch.equal(stored[8 + 2 * 3 + 1], ours[8 + 3 + 4])


META_SHAPES = {
    name: shape
    for name, shape in KNOWN.items()
    if name.startswith("llama-") and not shape.tied_embeddings
}


@pytest.mark.parametrize("name", META_SHAPES)
def test_params_of_known_models_round_trip(name: str) -> None:
    shape = META_SHAPES[name]
    understood = from_meta(meta_params(shape, None))
    assert replace(understood, max_seq_len=shape.max_seq_len) == shape


def test_params_of_the_releases_are_found_again() -> None:
    params = meta_params(KNOWN["llama-2-70b"], tokenizer_size=32000)
    assert (params["multiple_of"], params["ffn_dim_multiplier"]) == (4096, 1.3)
    assert (params["n_kv_heads"], params["vocab_size"]) == (8, -1)
    assert "ffn_dim_multiplier" not in meta_params(KNOWN["llama-2-13b"], None)
    assert meta_params(KNOWN["llama-3-8b"], None)["multiple_of"] == 1024
    assert meta_params(KNOWN["llama-3.1-405b"], None)["ffn_dim_multiplier"] == 1.2


def test_any_feed_forward_width_round_trips_through_params() -> None:
    for dim in (16, 48, 1000, 8192):
        for ffn_dim in (1, 7, dim - 1, dim, 2 * dim + 3, 9 * dim, 10**6 + 3):
            shape = ModelShape(
                dim=dim, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=ffn_dim, vocab_size=8
            )  # fmt: skip
            assert from_meta(meta_params(shape, None)).ffn_dim == ffn_dim


@pytest.mark.parametrize(
    "change",
    [
        {"tied_embeddings": True},
        {"qkv_bias": True},
        {"sliding_window": 8},
        {"head_dim": 32},
        {"rope_scaling": RopeScaling(factor=32.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_params_cannot_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=rf"{next(iter(change))}.*Hugging Face's"):
        meta_params(replace(SMALL, **change), None)


def test_what_no_family_computes_is_refused() -> None:
    with pytest.raises(ShapeError, match="not both"):
        hf_config(replace(SMALL, qkv_bias=True, sliding_window=8), torch.float32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "meta", "--shards", "3"], "3 does not divide 8"),
        (["--format", "hf", "--like", "lama-2-7b"], "did you mean 'llama-2-7b'"),
        (["--format", "hf", "--n-heads", "7"], "dim must be a multiple of n_heads"),
        (["--format", "hf", "--vocab-size", "100"], "or --no-tokenizer"),
        (["--format", "hf", "--max-shard-size", "big"], "as in 5GB, got 'big'"),
        (["--format", "hf", "--max-shard-size", "1,5 GB"], "got '1,5 GB'"),
        (["--format", "meta", *QWEN], "Meta's params.json cannot"),
        (["--format", "safetensors"], "not one of 'meta', 'hf'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, words: list[str], said: str
) -> None:
    result = run(str(tmp_path / "m"), *words)
    assert result.exit_code == 2
    assert re.search(re.escape(said), result.output)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = run(str(tmp_path), "--format", "hf")
    assert result.exit_code == 2
    assert "not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shards", "2"], "--max-shard-size"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--n-layers", "0"], "n_layers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: list[str], said: str
) -> None:
    result = run(str(tmp_path / "new"), "--format", "hf", *options)
    assert result.exit_code == 2
    assert said in result.output
    assert not any(tmp_path.iterdir())


def test_options_go_over_the_named_shape() -> None:
    assert shape_from("llama-2-7b", {"n_layers": 2, "dim": None}).n_layers == 2
    shape = shape_from("llama-2-7b", {"dim": 512, "n_heads": 8})
    assert (shape.head_dim, shape.n_kv_heads) == (64, 8)
    assert shape_from(None, {}) == TOY


def test_the_tokenizer_has_llamas_options(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    train_tokenizer(file, 600)
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert model.vocab_size() == 600
    ids = (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id())
    assert ids == (0, 1, 2, -1)
    assert [model.id_to_piece(i) for i in (3, 258)] == ["<0x00>", "<0xFF>"]
    assert model.encode("2048", out_type=str) == ["▁", "2", "0", "4", "8"]
    assert (
        model.decode(model.encode("  two  spaces\tand ☃\n")) == "  two  spaces\tand ☃\n"
    )


def test_the_tokenizer_of_a_size_is_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(tmp_path / name, 1024)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shape_errors_name_the_field() -> None:
    with pytest.raises((InputError, ShapeError), match="n_kv_heads"):
        shape_from(None, {"n_kv_heads": 3})
