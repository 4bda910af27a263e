"""Sources of a model's weights, and loading a rank's part of them into its module.

In memory, weights carry Meta's names (`kernels.shapes.tensors`) and Hugging Face's half-split
rotary layout, whatever the checkpoint has.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from kernels.checkpoints.files import WeightsError
from kernels.checkpoints.hf import HfCheckpoint
from kernels.checkpoints.meta import MetaCheckpoint
from kernels.placement import Slice
from kernels.random_weights import RandomWeights
from kernels.shapes import ModelShape

__all__ = ["RandomWeights", "Weights", "WeightsError", "load_into", "open_weights"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, after each tensor."""


class Weights(Protocol):
    """All weights of one model, of which any slice can be read alone."""

    @property
    def shape(self) -> ModelShape:
        """The whole model's shape."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `read` gives: as stored."""

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        """The indices `owned` along `dim` of the tensor `source`, on the CPU; None: all of it.

        The result may be a view of a mapped file: copy it before writing to it.

        Raises:
            WeightsError: the tensor is missing or has another shape; names tensor and file.
        """


def open_weights(folder: Path | str) -> Weights:
    """Return the checkpoint in `folder`, Meta's or Hugging Face's layout, told apart by its files.

    Raises:
        WeightsError: it is neither, or not complete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; give the folder of a checkpoint")
    if (folder / "config.json").is_file():
        return HfCheckpoint(folder)
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        return MetaCheckpoint(folder)
    raise WeightsError(
        f"{folder} holds neither config.json (Hugging Face) nor params.json (Meta)"
    )


def load_into(
    model: nn.Module,
    slices: Mapping[str, Slice],
    weights: Weights,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> None:
    """Replace the model's parameters, on the meta device so far, by their slices of `weights`.

    One tensor at a time, so the host holds little more than the model. Parameters of one and the
    same slice (a tied head) share memory. Buffers are left alone.

    Args:
        slices: parameter name → its part of the checkpoint; every parameter of the model.

    Raises:
        WeightsError: a slice has another shape than its parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if parameters.keys() != slices.keys():
        odd = sorted(parameters.keys() ^ slices.keys())
        raise WeightsError(f"model and placement disagree about {', '.join(odd[:5])}")
    total = sum(parameter.nbytes for parameter in parameters.values())
    loaded: dict[Slice, Tensor] = {}
    done = 0
    for name, part in slices.items():
        if part not in loaded:
            dims = parameters[name].shape
            loaded[part] = _read_checked(weights, name, part, dims, device, dtype)
        _replace(model, name, loaded[part])
        done += parameters[name].nbytes
        if progress is not None:
            progress(done, total)


def _read_checked(
    weights: Weights,
    name: str,
    part: Slice,
    dims: torch.Size,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    stored = weights.read(part.source, part.dim, part.owned)
    if stored.shape != dims:
        raise WeightsError(
            f"{name} must be {list(dims)}, but {part.source} gives {list(stored.shape)}"
        )
    # Copied even where nothing changes: a parameter must not stay a window of a mapped file.
    return torch.empty(dims, device=device, dtype=dtype).copy_(stored)


def _replace(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
