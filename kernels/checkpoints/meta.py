"""Meta's checkpoints: `params.json` and `consolidated.NN.pth`, split over any number of files.

Which dimension a tensor is split along follows from the shapes of its pieces, tensor by tensor:
Llama-2 splits the embedding by columns, Llama-3 by rows. Reads any slice of the whole tensors,
touching only the pieces it overlaps. Other keys (`rope.freqs`) are ignored.
"""

import json
import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from kernels.checkpoints.configs import from_meta
from kernels.checkpoints.files import TorchFile, WeightsError
from kernels.shapes import ModelShape, tensors

_ROTARY = re.compile(r"layers\.\d+\.attention\.w[qk]\.weight")


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Meta's rows of wq or wk (rotary pairs interleaved) in Hugging Face's order (by halves).

    Args:
        weight: [heads · head_dim, in], whole heads.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Undo `half_split`."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


@dataclass(frozen=True)
class _Pieces:
    """How the files hold one tensor: piece i covers starts[i] to starts[i + 1] along dim."""

    files: tuple[TorchFile, ...]
    dim: int
    starts: tuple[int, ...]


class MetaCheckpoint:
    """The weights in a folder of Meta's layout.

    Raises:
        WeightsError: a file is missing or unreadable, or its tensors do not add up to the shape
            that `params.json` describes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = [TorchFile(path) for path in _consolidated(folder)]
        self.shape = self._read_shape()
        self._dims = tensors(self.shape)
        self._pieces = {name: self._find_pieces(name) for name in self._dims}
        self.dtype: torch.dtype = self._files[0].dtype("norm.weight")

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        if source not in self._dims:
            raise WeightsError(f"{source} is no tensor of the model in {self.folder}")
        wanted = range(self._dims[source][dim]) if owned is None else owned
        if not _ROTARY.fullmatch(source):
            return _assemble(source, self._pieces[source], dim, wanted)
        return self._read_rotary(source, dim, wanted)

    def _read_rotary(self, source: str, dim: int, wanted: range) -> Tensor:
        width = self.shape.head_dim
        if dim == 1:
            stored = _assemble(source, self._pieces[source], 1, wanted)
            return half_split(stored, width)
        # A row of the new order comes from anywhere in its head: read whole heads.
        first = wanted.start // width * width
        heads = range(first, -(-wanted.stop // width) * width)
        rows = half_split(_assemble(source, self._pieces[source], 0, heads), width)
        return rows[wanted.start - first : wanted.stop - first]

    def _read_shape(self) -> ModelShape:
        file = self.folder / "params.json"
        try:
            params = json.loads(file.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise WeightsError(f"{file} cannot be read: {error}") from error
        try:
            return from_meta(params, vocab_size=self._vocab_rows())
        except (
            ValueError,
            AttributeError,
            TypeError,
        ) as error:  # ShapeError among them
            raise WeightsError(f"{file} describes no Llama: {error}") from error

    def _vocab_rows(self) -> int:
        # Llama-2's params.json leaves the vocabulary open; the head is always split by rows.
        return sum(self._dims_in(file, "output.weight")[0] for file in self._files)

    def _dims_in(self, file: TorchFile, name: str) -> tuple[int, ...]:
        if name not in file.names():
            raise WeightsError(
                f"{name} is missing in {file.path}; is it a file of another model?"
            )
        return file.dims(name)

    def _find_pieces(self, name: str) -> _Pieces:
        full = self._dims[name]
        dims = [self._dims_in(file, name) for file in self._files]
        dtypes = {file.dtype(name) for file in self._files}
        if len(dtypes) > 1:
            raise WeightsError(f"{name} has several dtypes in {self.folder}")
        if all(piece == full for piece in dims):
            return _Pieces((self._files[0],), 0, (0, full[0]))
        for dim in range(len(full)):
            step = _copies(full, dims, dim, self._may_repeat(name))
            if step:
                sizes = [piece[dim] for piece in dims[::step]]
                starts = tuple(accumulate(sizes, initial=0))
                return _Pieces(tuple(self._files[::step]), dim, starts)
        raise WeightsError(self._misfit(name, full, dims))

    def _may_repeat(self, name: str) -> bool:
        # Where there are more files than KV heads, neighbouring files hold the same head.
        return name.endswith((".wk.weight", ".wv.weight")) and (
            len(self._files) > self.shape.n_kv_heads
        )

    def _misfit(
        self, name: str, full: tuple[int, ...], dims: list[tuple[int, ...]]
    ) -> str:
        odd = next((i for i, piece in enumerate(dims) if piece != dims[0]), 0)
        return (
            f"{name}: {len(self._files)} file(s) in {self.folder} do not add up to {list(full)}, "
            f"which params.json asks for: {self._files[odd].path.name} has {list(dims[odd])}"
            f"{f', {self._files[0].path.name} {list(dims[0])}' if odd else ''}; "
            f"is a file missing, or params.json of another model?"
        )


def _consolidated(folder: Path) -> list[Path]:
    found = sorted(folder.glob("consolidated.*.pth"))
    if not found:
        raise WeightsError(f"{folder} has no consolidated.00.pth")
    wanted = [folder / f"consolidated.{i:02d}.pth" for i in range(len(found))]
    missing = [path.name for path in wanted if path not in found]
    if missing:
        raise WeightsError(
            f"{folder} lacks {missing[0]}, though it has {found[-1].name}; fetch it again"
        )
    return found


def _copies(
    full: tuple[int, ...], dims: list[tuple[int, ...]], dim: int, may_repeat: bool
) -> int:
    """How many neighbouring files hold the same piece, if the pieces join along `dim`; else 0."""
    if any(
        len(piece) != len(full)
        or piece[:dim] + piece[dim + 1 :] != full[:dim] + full[dim + 1 :]
        for piece in dims
    ):
        return 0
    total = sum(piece[dim] for piece in dims)
    if total == full[dim]:
        return 1
    copies, rest = divmod(total, full[dim])
    same = all(piece == dims[0] for piece in dims)
    return copies if may_repeat and same and rest == 0 else 0


def _assemble(name: str, pieces: _Pieces, dim: int, wanted: range) -> Tensor:
    if dim != pieces.dim:
        parts = [file.read(name, dim, wanted) for file in pieces.files]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=pieces.dim)
    parts = []
    for file, start, stop in zip(
        pieces.files, pieces.starts, pieces.starts[1:], strict=False
    ):
        overlap = range(max(start, wanted.start), min(stop, wanted.stop))
        if overlap:
            local = range(overlap.start - start, overlap.stop - start)
            parts.append(file.read(name, dim, local))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
