"""One file of named tensors, safetensors or torch pickle, of which any slice can be read alone.

Files are mapped, not read: a slice costs its own bytes. Knows nothing of models or layouts.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


class WeightsError(ValueError):
    """A checkpoint that is not what it claims to be; the message names the tensor and the file."""


class TensorFile(Protocol):
    """One checkpoint file."""

    path: Path

    def names(self) -> Sequence[str]:
        """Return the tensors in the file."""

    def dims(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor; nothing of it is read."""

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of one tensor, of `DTYPES`; nothing of it is read.

        Raises:
            WeightsError: the tensor holds something else, as in a quantised checkpoint.
        """

    def read(self, name: str, dim: int, owned: range) -> Tensor:
        """Return the indices `owned` along `dim`; may be a view of the mapped file."""


def open_tensor_file(path: Path) -> TensorFile:
    """Return the file behind `path`, safetensors by its suffix, else what torch.save wrote.

    Raises:
        WeightsError: it is missing, truncated or corrupt, or wants to execute code.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing; a checkpoint needs all of its files, fetch it again"
        )
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


class SafetensorsFile:
    """A `.safetensors` file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (
            Exception
        ) as error:  # its own errors, OSError, and a panic of its header parser
            raise _unreadable(path, error) from error
        self._names = tuple(self._file.keys())

    def names(self) -> Sequence[str]:
        return self._names

    def dims(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        stored = self._file.get_slice(name).get_dtype()
        if stored not in _SAFETENSORS_DTYPES:
            raise _wrong_dtype(name, self.path, stored)
        return _SAFETENSORS_DTYPES[stored]

    def read(self, name: str, dim: int, owned: range) -> Tensor:
        index = (slice(None),) * dim + (slice(owned.start, owned.stop),)
        try:
            part: Tensor = self._file.get_slice(name)[index]
        except Exception as error:
            raise WeightsError(f"{name} in {self.path}: {error}") from error
        return part


class TorchFile:
    """What `torch.save` wrote from a flat dict of tensors (`.pth`, `.bin`), mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = _torch_load(path)
        if not isinstance(loaded, dict):
            raise WeightsError(
                f"{path} must hold a dict of tensors, got {type(loaded).__name__}"
            )
        self._tensors = {
            name: value.detach()  # older files hold parameters
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def dims(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        stored = self._tensors[name].dtype
        if stored not in DTYPES:
            raise _wrong_dtype(name, self.path, str(stored))
        return stored

    def read(self, name: str, dim: int, owned: range) -> Tensor:
        return self._tensors[name].narrow(dim, owned.start, len(owned))


def _torch_load(path: Path) -> Any:
    # A damaged pickle can raise anything at all. weights_only refuses code.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(
                    path, map_location="cpu", weights_only=True, mmap=True
                )
            except RuntimeError as error:
                # Files from before torch 1.6 are no zip archives and cannot be mapped.
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            return WeightsError(
                f"{path} is a pointer that Git LFS left in place of the file; run 'git lfs pull'"
            )
    first_line = str(error).strip().split("\n", 1)[0][:300]
    return WeightsError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as tensors, it is truncated, "
        f"corrupt or holds more than tensors: {type(error).__name__}: {first_line}; "
        f"fetch it again"
    )


def _wrong_dtype(name: str, path: Path, stored: str) -> WeightsError:
    return WeightsError(
        f"{name} in {path} is stored as {stored}; only float64, float32, bfloat16 and float16 "
        f"are read, take a checkpoint that is not quantised"
    )
