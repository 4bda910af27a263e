"""Reading Meta's layout. The files are made here as fairscale's layers would save them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kernels.checkpoints.meta import half_split, interleaved
from kernels.placement import Slice
from kernels.shapes import ModelShape, tensors
from kernels.weights import WeightsError, load_into, open_weights

SHAPE = ModelShape(
    dim=32, n_layers=2, n_heads=8, n_kv_heads=4, ffn_dim=96, vocab_size=64
)
PARAMS = {
    "dim": 32, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "multiple_of": 32,
    "norm_eps": 1e-5, "vocab_size": -1,
}  # fmt: skip


def stored_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The whole tensors as Meta stores them, rotary pairs interleaved."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(dims, generator=generator).to(dtype)
        for name, dims in tensors(SHAPE).items()
    }


def split_dim(name: str, embedding_dim: int) -> int | None:
    kind = name.split(".")[-2]
    if kind == "tok_embeddings":
        return embedding_dim
    if kind.endswith("norm"):
        return None
    return 1 if kind in ("wo", "w2") else 0


def write(
    folder: Path, stored: dict[str, Tensor], files: int, embedding_dim: int = 1
) -> Path:
    """A checkpoint of so many files, split evenly, in `folder`."""
    (folder / "params.json").write_text(json.dumps(PARAMS))
    for index in range(files):
        shard = {"rope.freqs": torch.ones(2)}
        for name, whole in stored.items():
            dim = split_dim(name, embedding_dim)
            piece = whole if dim is None else whole.chunk(files, dim)[index]
            shard[name] = piece.clone()
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    return folder


def in_memory(name: str, stored: Tensor) -> Tensor:
    """What `read` must give: rows (head, pair, half) of wq and wk sorted as (head, half, pair)."""
    if not name.endswith((".wq.weight", ".wk.weight")):
        return stored
    width = SHAPE.head_dim
    order = [
        head * width + 2 * pair + half
        for head in range(stored.shape[0] // width)
        for half in (0, 1)
        for pair in range(width // 2)
    ]
    return stored[order]


@pytest.mark.parametrize("embedding_dim", [0, 1], ids=["llama-3", "llama-2"])
@pytest.mark.parametrize("files", [1, 2, 4])
def test_any_slice_of_any_number_of_files_is_that_of_the_whole_tensor(
    tmp_path: Path, files: int, embedding_dim: int
) -> None:
    stored = stored_weights()
    weights = open_weights(write(tmp_path, stored, files, embedding_dim))
    assert weights.shape == SHAPE
    for name, whole in stored.items():
        whole = in_memory(name, whole)
        assert torch.equal(weights.read(name), whole), name
        for dim, size in enumerate(whole.shape):
            for owned in (
                range(size // 3),
                range(size // 3, size - 1),
                range(size - 1, size),
            ):
                part = weights.read(name, dim, owned)
                assert torch.equal(part, whole.narrow(dim, owned.start, len(owned)))


def test_rotating_halves_of_the_permuted_rows_is_rotating_metas_pairs() -> None:
    """Fails when the permutation is wrong, which would yield fluent garbage, not an error."""
    heads, width = 3, 8
    generator = torch.Generator().manual_seed(0)
    wq = torch.randn(heads * width, 32, generator=generator, dtype=torch.float64)
    wk = torch.randn(heads * width, 32, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    angles = torch.outer(torch.arange(5.0), 10000 ** (-torch.arange(0, 8, 2) / 8))
    angles = angles.double()[:, None]

    def by_pairs(w: Tensor) -> Tensor:  # as llama/model.py does it, on complex numbers
        pairs = torch.view_as_complex((x @ w.T).reshape(5, heads, width // 2, 2))
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).reshape(5, heads, width)

    def by_halves(w: Tensor) -> Tensor:  # as transformers does it
        y = (x @ half_split(w, width).T).reshape(5, heads, width)
        swapped = torch.cat([-y[..., width // 2 :], y[..., : width // 2]], -1)
        cos, sin = (
            torch.cat([part, part], -1) for part in (angles.cos(), angles.sin())
        )
        return y * cos + swapped * sin

    def scores(rotated: tuple[Tensor, Tensor]) -> Tensor:
        return torch.einsum("qhd,khd->hqk", *rotated)

    expected = scores((by_pairs(wq), by_pairs(wk)))
    assert torch.allclose(scores((by_halves(wq), by_halves(wk))), expected)
    assert torch.equal(interleaved(half_split(wq, width), width), wq)


def test_neighbouring_files_may_hold_the_same_kv_head(tmp_path: Path) -> None:
    """Llama-3.1-405B comes in 16 files for 8 KV heads."""
    stored = stored_weights()
    write(tmp_path, stored, 8)
    for index in range(8):
        file = tmp_path / f"consolidated.{index:02d}.pth"
        shard = torch.load(file, weights_only=True)
        for name, whole in stored.items():
            if name.endswith((".wk.weight", ".wv.weight")):
                shard[name] = whole.chunk(4, 0)[index // 2].clone()
        torch.save(shard, file)
    weights = open_weights(tmp_path)
    for name, whole in stored.items():
        assert torch.equal(weights.read(name), in_memory(name, whole)), name


def test_a_slice_touches_only_its_pages_of_the_files(tmp_path: Path) -> None:
    """Eight ranks that each read a whole 70B file would need eight times its memory."""
    params = PARAMS | {"dim": 1024, "multiple_of": 4096, "n_layers": 1}
    shape = ModelShape(
        dim=1024, n_layers=1, n_heads=8, n_kv_heads=4, ffn_dim=4096, vocab_size=64
    )
    (tmp_path / "params.json").write_text(json.dumps(params))
    whole = {name: torch.zeros(dims) for name, dims in tensors(shape).items()}
    torch.save(whole, tmp_path / "consolidated.00.pth")
    weights = open_weights(tmp_path)
    assert resident_bytes(tmp_path) < 2**20
    for name in ("feed_forward.w1", "attention.wq", "attention.wk"):
        source = f"layers.0.{name}.weight"
        size = tensors(shape)[source][0]
        weights.read(source, 0, range(size // 2, size // 2 + size // 8)).sum()
    owned = (4096 + 1024 + 512) // 8 * 1024 * 4
    folios = (
        3 * 2 * 2**21
    )  # the kernel may map up to 2 MiB more at both ends of a slice
    assert owned <= resident_bytes(tmp_path) < owned + folios
    assert owned + folios < (4096 + 1024 + 512) * 1024 * 4


def test_loaded_parameters_are_no_windows_of_the_file(tmp_path: Path) -> None:
    """The kernel may drop a window's pages: a measured step would then read the disk."""
    weights = open_weights(write(tmp_path, stored_weights(), 1))
    source = "layers.0.feed_forward.w1.weight"
    window = weights.read(source)
    assert window.data_ptr() == weights.read(source).data_ptr()
    linear = nn.Linear(32, 96, bias=False, device="meta")
    slices = {"weight": Slice(source=source)}
    load_into(linear, slices, weights, "cpu", torch.float32)
    assert torch.equal(linear.weight, window)
    assert linear.weight.data_ptr() != window.data_ptr()


def resident_bytes(folder: Path) -> int:
    """Memory that the mapped files of the folder take in this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_stored_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = open_weights(write(tmp_path, stored_weights(dtype), 2))
    assert weights.dtype == dtype
    assert weights.read("layers.0.attention.wk.weight").dtype == dtype


def test_files_from_before_torch_could_map_them_are_read(tmp_path: Path) -> None:
    stored = stored_weights()
    write(tmp_path, stored, 1)
    torch.save(
        stored,
        tmp_path / "consolidated.00.pth",
        _use_new_zipfile_serialization=False,
    )
    weights = open_weights(tmp_path)
    assert torch.equal(weights.read("norm.weight"), stored["norm.weight"])


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_missing_file_is_named_or_missed(tmp_path: Path, missing: int) -> None:
    write(tmp_path, stored_weights(), 4)
    (tmp_path / f"consolidated.{missing:02d}.pth").unlink()
    # Of the last one nothing but the sizes can tell.
    named = (
        f"lacks consolidated.{missing:02d}.pth" if missing < 3 else "is a file missing"
    )
    with pytest.raises(WeightsError, match=named):
        open_weights(tmp_path)


def test_a_missing_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    stored = stored_weights()
    write(tmp_path, stored, 2)
    file = tmp_path / "consolidated.01.pth"
    shard = torch.load(file, weights_only=True)
    del shard["layers.1.attention.wo.weight"]
    torch.save(shard, file)
    with pytest.raises(
        WeightsError, match=r"layers\.1\.attention\.wo\.weight.*consolidated\.01\.pth"
    ):
        open_weights(tmp_path)


def test_a_tensor_of_another_shape_is_named_with_its_file(tmp_path: Path) -> None:
    stored = stored_weights()
    write(tmp_path, stored, 2)
    file = tmp_path / "consolidated.01.pth"
    shard = torch.load(file, weights_only=True)
    shard["layers.1.feed_forward.w2.weight"] = torch.zeros(32, 47)
    torch.save(shard, file)
    with pytest.raises(
        WeightsError,
        match=r"layers\.1\.feed_forward\.w2\.weight.*\[32, 96\].*01\.pth has \[32, 47\]",
    ):
        open_weights(tmp_path)


def test_params_of_another_model_are_told_from_the_files(tmp_path: Path) -> None:
    write(tmp_path, stored_weights(), 1)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"multiple_of": 128}))
    with pytest.raises(
        WeightsError, match=r"feed_forward\.w1.*\[128, 32\].*\[96, 32\]"
    ):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ('{"dim": 32', "cannot be read"),
        ("[1]", "describes no Llama"),
        ('{"dim": 32}', "n_heads"),
        ('{"dim": "wide", "n_heads": 8, "n_layers": 2}', "describes no Llama"),
    ],
)
def test_params_that_describe_nothing_are_refused(
    tmp_path: Path, params: str, said: str
) -> None:
    write(tmp_path, stored_weights(), 1)
    (tmp_path / "params.json").write_text(params)
    with pytest.raises(WeightsError, match=said):
        open_weights(tmp_path)


def test_an_unknown_tensor_is_ignored_but_cannot_be_read(tmp_path: Path) -> None:
    weights = open_weights(write(tmp_path, stored_weights(), 1))
    with pytest.raises(WeightsError, match=r"rope\.freqs is no tensor of the model"):
        weights.read("rope.freqs")
