"""From a model's name to its shape, on the login node and without torch."""

import json
import os
from functools import cache
from pathlib import Path

from kernels.checkpoints.configs import read_shape
from kernels.shapes import KNOWN, ModelShape, ShapeError
from orchestrator.case import Case
from orchestrator.checkout import ROOT
from orchestrator.errors import InputError, nearest

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_WEIGHTS = ("*.safetensors", "consolidated.*.pth")
_SENTENCEPIECE = b"\n"
"""How a SentencePiece model starts; Llama-3's file of the same name is text."""


def local_path(text: str) -> Path:
    """The path that a grid means: $VARIABLES and ~ expanded, relative to the checkout.

    Raises:
        InputError: it names a variable that is not set here.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise InputError(
            f"{text!r} names a variable that is not set here; set it, or write the path out"
        )
    return ROOT / expanded


def shape_of(case: Case) -> ModelShape:
    """The shape of the case's model.

    A checkpoint that is not on this machine has the shape that its name is known for.

    Raises:
        InputError: there is no such folder and no such name, or the folder is no checkpoint.
    """
    if case.random is not None:
        return case.random
    if case.path is None:
        return _known(case.model)
    if case.model in KNOWN and not is_here(case.path):
        return KNOWN[case.model]
    return checkpoint_shape(local_path(case.path))


def is_here(path: str) -> bool:
    """Whether the checkpoint's folder is on this machine."""
    try:
        return local_path(path).is_dir()
    except InputError:
        return False


def _known(name: str) -> ModelShape:
    if name not in KNOWN:
        raise InputError(f"no model {name!r} is known; {nearest(name, KNOWN)}")
    return KNOWN[name]


def checkpoint_shape(folder: Path) -> ModelShape:
    """The shape that the checkpoint's own files give.

    Raises:
        InputError: no folder, no weights in it, or a configuration that describes no Llama.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; mend the model's path")
    config = _config_file(folder)
    return _shape(folder, config.stat().st_mtime_ns if config else 0)


@cache
def _shape(folder: Path, _changed_ns: int) -> ModelShape:
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
            f"{folder} holds no weights ({' or '.join(_WEIGHTS)}); mend the model's path"
        )
    return shape


def _config_file(folder: Path) -> Path | None:
    files = (folder / "config.json", folder / "params.json")
    return next((file for file in files if file.is_file()), None)


def tokenizer_file(folder: Path) -> Path | None:
    """The checkpoint's tokenizer; Meta keeps it one level up."""
    places = (folder / name for name in _TOKENIZERS)
    beside = (*places, folder.parent / _TOKENIZERS[0])
    return next((file for file in beside if file.is_file()), None)


def _vocab_size(folder: Path) -> int | None:
    # Llama-2's params.json says -1: ask the tokenizer.
    config = _config_file(folder)
    if config is None or config.name != "params.json" or _says_vocab(config):
        return None
    file = tokenizer_file(folder)
    if file is None:
        raise InputError(
            f"{config} leaves vocab_size to the tokenizer, and there is no tokenizer.model in "
            f"{folder} or above it; copy it there"
        )
    return _pieces(file)


def _says_vocab(config: Path) -> bool:
    try:
        said = json.loads(config.read_text(encoding="utf-8")).get("vocab_size", -1)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        return True  # read_shape says what is wrong with the file
    return isinstance(said, int) and said > 0


def _pieces(file: Path) -> int:
    with file.open("rb") as stream:
        if stream.read(1) != _SENTENCEPIECE:
            raise InputError(
                f"{file} is no SentencePiece model, and params.json leaves vocab_size to it; "
                f"write vocab_size into params.json"
            )
    from sentencepiece import SentencePieceProcessor

    try:
        return int(SentencePieceProcessor(model_file=str(file)).vocab_size())
    except (RuntimeError, OSError) as error:
        raise InputError(f"{file} cannot be read as a tokenizer: {error}") from error
