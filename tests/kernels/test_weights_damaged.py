"""Damaged and hostile checkpoints: the error names the tensor or the file, and nothing runs."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.checkpoints.hf import hf_name
from kernels.shapes import ModelShape, tensors
from kernels.weights import RandomWeights, WeightsError, open_weights

SHAPE = ModelShape(
    dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=32, vocab_size=24
)
CONFIG = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 24,
}  # fmt: skip
W2 = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """`model.safetensors` of a small checkpoint."""
    weights = RandomWeights(SHAPE, 0, torch.float32)
    named = {hf_name(name): weights.read(name) for name in tensors(SHAPE)}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(named, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def sharded(one_file: Path) -> Path:
    """The folder of the same in two files with an index."""
    named = load_file(one_file)
    one_file.unlink()
    first = {name: value for name, value in named.items() if "mlp" in name}
    second = {name: value for name, value in named.items() if "mlp" not in name}
    weight_map = dict.fromkeys(first, "a.safetensors")
    weight_map |= dict.fromkeys(second, "b.safetensors")
    save_file(first, one_file.parent / "a.safetensors")
    save_file(second, one_file.parent / "b.safetensors")
    index = one_file.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return one_file.parent


def read_all(folder: Path) -> None:
    weights = open_weights(folder)
    for name in tensors(weights.shape):
        weights.read(name)


def refused(folder: Path, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        read_all(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_named(one_file: Path, kept: float) -> None:
    size = one_file.stat().st_size
    os.truncate(one_file, int(kept if kept >= 1 or not kept else kept * size))
    refused(
        one_file.parent, r"model\.safetensors \(\d+ bytes\).*truncated.*fetch it again"
    )


@pytest.mark.parametrize(
    "start",
    [
        b"\xff" * 8,
        (2**40).to_bytes(8, "little"),
        (16).to_bytes(8, "little") + b'{"a": [[[[[[[[[[',
        (2).to_bytes(8, "little") + b"\xff\xfe",
    ],
    ids=["huge", "past the end", "no JSON", "no text"],
)
def test_a_safetensors_file_with_a_corrupt_header_is_named(
    one_file: Path, start: bytes
) -> None:
    content = one_file.read_bytes()
    one_file.write_bytes(start + content[len(start) :])
    refused(one_file.parent, r"model\.safetensors.*corrupt")


def test_safetensors_offsets_outside_the_file_are_refused(one_file: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}}
    text = json.dumps(header).encode()
    one_file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    refused(one_file.parent, r"model\.safetensors")


def test_a_pointer_left_by_git_lfs_is_called_that(one_file: Path) -> None:
    one_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(one_file.parent, "Git LFS")


def test_a_missing_tensor_is_named(one_file: Path) -> None:
    named = load_file(one_file)
    del named[W2]
    save_file(named, one_file)
    refused(one_file.parent, r"down_proj\.weight is missing.*1 of 12")


def test_a_missing_head_is_not_taken_for_a_tied_one(one_file: Path) -> None:
    named = load_file(one_file)
    del named["lm_head.weight"]
    save_file(named, one_file)
    refused(one_file.parent, r"lm_head\.weight is missing")


def test_a_tensor_of_another_shape_is_named_with_its_file(one_file: Path) -> None:
    named = load_file(one_file)
    save_file(named | {W2: torch.zeros(32, 16)}, one_file)
    refused(one_file.parent, r"down_proj.*model\.safetensors is \[32, 16\].*\[16, 32\]")


def test_a_quantised_tensor_is_named_with_its_file(one_file: Path) -> None:
    named = load_file(one_file)
    save_file(named | {W2: torch.zeros(16, 32, dtype=torch.int8)}, one_file)
    refused(one_file.parent, r"down_proj.*stored as I8")


def test_a_missing_file_of_the_index_is_named(sharded: Path) -> None:
    (sharded / "b.safetensors").unlink()
    refused(sharded, r"b\.safetensors is missing")


def test_a_tensor_that_the_index_places_wrongly_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    named["weight_map"][W2] = "b.safetensors"
    index.write_text(json.dumps(named))
    refused(sharded, r"down_proj\.weight is missing in .*b\.safetensors")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_cannot_point_outside_the_folder(sharded: Path, name: Any) -> None:
    index = sharded / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    named["weight_map"][W2] = name
    index.write_text(json.dumps(named))
    refused(sharded, "must name a file beside it|is missing, which the index names")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', "\udcff"])
def test_an_index_that_is_none_is_named(sharded: Path, content: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_bytes(content.encode(errors="surrogateescape"))
    refused(sharded, r"model\.safetensors\.index\.json")


class Hostile:
    """Executes a command when unpickled by a trusting reader."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def meta_file(tmp_path: Path) -> Path:
    """`consolidated.00.pth` of a small checkpoint."""
    weights = RandomWeights(SHAPE, 0, torch.float32)
    params = {"dim": 16, "n_layers": 1, "n_heads": 2, "multiple_of": 4}
    params |= {"ffn_dim_multiplier": 0.75}
    file = tmp_path / "consolidated.00.pth"
    torch.save({name: weights.read(name) for name in tensors(SHAPE)}, file)
    (tmp_path / "params.json").write_text(json.dumps(params))
    read_all(tmp_path)
    return file


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_wants_to_execute_code_is_refused(
    meta_file: Path, tmp_path: Path, how: str
) -> None:
    trace = tmp_path / "executed"
    content = {"norm.weight": Hostile(trace)}
    if how == "torch.save":
        torch.save(content, meta_file)
    else:
        meta_file.write_bytes(pickle.dumps(content))
    refused(tmp_path, r"consolidated\.00\.pth.*more than tensors")
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_pth_file_is_named(meta_file: Path, kept: float) -> None:
    size = meta_file.stat().st_size
    os.truncate(meta_file, int(kept if kept >= 1 or not kept else kept * size))
    refused(meta_file.parent, r"consolidated\.00\.pth \(\d+ bytes\).*truncated")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), "text"])
def test_a_pth_file_of_something_else_is_named(meta_file: Path, content: Any) -> None:
    torch.save(content, meta_file)
    refused(meta_file.parent, r"consolidated\.00\.pth must hold a dict of tensors")


def test_a_pth_file_of_quantised_tensors_is_named(meta_file: Path) -> None:
    named = torch.load(meta_file, weights_only=True)
    named["layers.0.attention.wv.weight"] = torch.zeros(16, 16, dtype=torch.int8)
    torch.save(named, meta_file)
    refused(meta_file.parent, r"layers\.0\.attention\.wv\.weight.*int8.*quantised")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    refused(tmp_path, "neither config.json .* nor params.json")
    refused(tmp_path / "nowhere", "nowhere is no folder")
    (tmp_path / "params.json").write_text("{}")
    refused(tmp_path, r"has no consolidated\.00\.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path, r"none of model\.safetensors")
