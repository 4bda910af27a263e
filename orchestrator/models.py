"""From a model's name to its shape, on the login node and without torch."""

import json
from functools import cache
from pathlib import Path

from kernels.checkpoints.configs import is_tiktoken, read_shape, tokenizer_file
from kernels.shapes import KNOWN, ModelShape, ShapeError
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.errors import InputError, nearest

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated.*.pth")


def shape_of(case: Case) -> ModelShape:
    """Return the shape of the case's model.

    A checkpoint that is not on this machine has the shape that its name is known for.

    Raises:
        InputError: there is no such folder and no such name, or the folder is no checkpoint.
    """
    if case.random is not None:
        return case.random
    if case.model in KNOWN and (case.path is None or not is_here(case.path)):
        return KNOWN[case.model]
    if case.path is None:
        raise InputError(
            f"no model {case.model!r} is known; {nearest(case.model, KNOWN)}"
        )
    return checkpoint_shape(local_path(case.path))


def is_here(path: str) -> bool:
    """Return whether the checkpoint's folder is on this machine."""
    try:
        return local_path(path).is_dir()
    except InputError:
        return False


def checkpoint_shape(folder: Path) -> ModelShape:
    """Read the shape from the checkpoint's own files, once while they do not change.

    Raises:
        InputError: no folder, no weights in it, or a configuration that describes no Llama.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; correct the model's path")
    config = _config_file(folder)
    return _read_once(folder, config.stat().st_mtime_ns if config else 0)


@cache
def _read_once(folder: Path, _changed_ns: int) -> ModelShape:
    try:
        shape = read_shape(folder, _vocab_size(folder))
    except ShapeError as error:
        raise InputError(f"{folder}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{_config_file(folder)} describes no model: {error}"
        ) from error
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(
            f"{folder} holds no weights ({' or '.join(_WEIGHTS)}); correct the model's path"
        )
    return shape


def _config_file(folder: Path) -> Path | None:
    files = (folder / "config.json", folder / "params.json")
    return next((file for file in files if file.is_file()), None)


def _vocab_size(folder: Path) -> int | None:
    # Llama-2's params.json has -1: the tokenizer knows.
    config = _config_file(folder)
    if config is None or config.name != "params.json" or _has_vocab_size(config):
        return None
    file = tokenizer_file(folder)
    if file is None:
        raise InputError(
            f"{config} leaves vocab_size to the tokenizer, and there is no tokenizer.model in "
            f"{folder} or above it; copy it there"
        )
    return _pieces(file)


def _has_vocab_size(config: Path) -> bool:
    try:
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size", -1)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        return True  # read_shape tells what is wrong with the file
    return isinstance(size, int) and size > 0


def _pieces(file: Path) -> int:
    if file.name != "tokenizer.model" or is_tiktoken(file):
        raise InputError(
            f"{file} is no SentencePiece model, and params.json leaves vocab_size to it; "
            f"write vocab_size into params.json"
        )
    from sentencepiece import SentencePieceProcessor

    try:
        return int(SentencePieceProcessor(model_file=str(file)).vocab_size())
    except (RuntimeError, OSError) as error:
        raise InputError(f"{file} cannot be read as a tokenizer: {error}") from error
