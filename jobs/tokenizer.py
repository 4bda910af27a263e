"""Text to token ids and back, by whatever tokenizer lies beside a checkpoint.

SentencePiece (`tokenizer.model` of Llama-2, Mistral), tiktoken text (the file of the same name of
Llama-3) and Hugging Face's `tokenizer.json` (Qwen and others). Text is only ever text: `<s>` in a
prompt is three characters, so that the begin token stands exactly once, where `encode` puts it.
"""

import base64
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from kernels.checkpoints.configs import TIKTOKEN_LINE, is_tiktoken, tokenizer_file

_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama-3 cuts text into words (`llama3/tokenizer.py` of meta-llama/llama-models)."""
_LLAMA_3_SPECIAL = 256
_LLAMA_3_BEGIN = 0
_LLAMA_3_ENDS = (1, 8, 9)
"""<|end_of_text|>, <|eom_id|>, <|eot_id|>, counted from the first special id."""
_UNKNOWN = "\ufffd"


class TokenizerError(ValueError):
    """No tokenizer where one is needed, or a file that is none; the message names it."""


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id. A model may have more rows (padding), but not fewer."""

    @property
    def bos_id(self) -> int | None:
        """Begin token; None if the model knows none (Qwen)."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Any of these ends a sequence."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the ids of the text, after one begin token if `bos` and the model has one."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a whole sequence, without control tokens.

        Negative ids (nothing) and special ones are left out; ids that only the model's padded
        rows have show as U+FFFD.
        """


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer in `folder`, or one level up, where Meta puts it.

    Raises:
        TokenizerError: there is none, it cannot be read, or an optional package is missing.
    """
    folder = Path(folder)
    file = tokenizer_file(folder)
    if file is None:
        raise TokenizerError(
            f"{folder} has no tokenizer.model and no tokenizer.json; put the model's there, or "
            f"take random prompts, which need none"
        )
    if file.suffix == ".json":
        return HfTokenizer(file, _configured_ends(folder))
    if is_tiktoken(file):
        return TiktokenTokenizer(file)
    return SentencePieceTokenizer(file, _configured_ends(folder))


class SentencePieceTokenizer:
    """A `tokenizer.model` of SentencePiece (Llama-1 and 2, Mistral)."""

    def __init__(self, file: Path, eos_ids: tuple[int, ...] = ()) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(
                f"{file} is no SentencePiece model: {error}; fetch it again"
            ) from error
        self.vocab_size: int = self._model.vocab_size()
        begin: int = self._model.bos_id()
        self.bos_id = begin if begin >= 0 else None
        end: int = self._model.eos_id()
        self.eos_ids = eos_ids or ((end,) if end >= 0 else ())

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids: list[int] = self._model.encode(_valid(text))
        return _begun(self.bos_id, bos, ids)

    def decode(self, ids: Sequence[int]) -> str:
        # By piece: an unknown piece stands for itself, while an unknown id is an error.
        pieces = [
            self._model.id_to_piece(i) if i < self.vocab_size else _UNKNOWN
            for i in ids
            if i >= 0
        ]
        text: str = self._model.decode(pieces)
        return text


class TiktokenTokenizer:
    """A `tokenizer.model` of Llama-3: a base64 token and its rank a line; 256 special ids."""

    def __init__(self, file: Path) -> None:
        tiktoken = _optional("tiktoken", file)
        ranks = _read_ranks(file)
        self._first_special = len(ranks)
        special = {f"<|special_{i}|>": len(ranks) + i for i in range(_LLAMA_3_SPECIAL)}
        self._model = tiktoken.Encoding(
            name=file.name,
            pat_str=_LLAMA_3_WORDS,
            mergeable_ranks=ranks,
            special_tokens=special,
        )
        self.vocab_size = len(ranks) + _LLAMA_3_SPECIAL
        self.bos_id: int | None = len(ranks) + _LLAMA_3_BEGIN
        self.eos_ids = tuple(len(ranks) + end for end in _LLAMA_3_ENDS)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids: list[int] = self._model.encode_ordinary(_valid(text))
        return _begun(self.bos_id, bos, ids)

    def decode(self, ids: Sequence[int]) -> str:
        pieces = [
            self._model.decode_single_token_bytes(i)
            if i < self._first_special
            else _UNKNOWN.encode()
            for i in ids
            if 0 <= i < self._first_special or i >= self.vocab_size
        ]
        return b"".join(pieces).decode(errors="replace")


class HfTokenizer:
    """Hugging Face's `tokenizer.json` (Qwen, Llama-3 and most others)."""

    def __init__(self, file: Path, eos_ids: tuple[int, ...] = ()) -> None:
        tokenizers = _optional("tokenizers", file)
        try:
            self._model = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{file} is no tokenizer: {error}; fetch it again"
            ) from error
        self._model.encode_special_tokens = True  # `<s>` in a prompt is text
        self._model.no_padding()
        self._model.no_truncation()
        vocab: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.eos_ids = eos_ids or _named_end(file.parent, vocab)
        # What the file itself puts around a text: the begin token, or nothing (Qwen).
        around: list[int] = self._model.encode("", add_special_tokens=True).ids
        first = around[0] if around else None
        self.bos_id = None if first in self.eos_ids else first

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = self._model.encode(_valid(text), add_special_tokens=False).ids
        return _begun(self.bos_id, bos, ids)

    def decode(self, ids: Sequence[int]) -> str:
        runs: list[list[int]] = [[]]
        for i in ids:
            if i >= self.vocab_size:
                runs.append([])
            elif i >= 0:
                runs[-1].append(i)
        return _UNKNOWN.join(
            self._model.decode(run, skip_special_tokens=True) for run in runs
        )


def _begun(bos_id: int | None, bos: bool, ids: list[int]) -> list[int]:
    return [bos_id, *ids] if bos and bos_id is not None else ids


def _valid(text: str) -> str:
    # Half a surrogate pair, which JSON can spell, has no bytes.
    return text.encode(errors="replace").decode()


def _optional(package: str, file: Path) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TokenizerError(
            f"{file} needs the package {package}; install it: pip install {package}"
        ) from error


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not TIKTOKEN_LINE.fullmatch(line):
            raise TokenizerError(
                f"{file}:{number} is no base64 token with its rank; fetch it again"
            )
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"{file}: the ranks must be 0 to {len(ranks) - 1}, each once; fetch it again"
        )
    return ranks


def _configured_ends(folder: Path) -> tuple[int, ...]:
    """Return the end tokens that the checkpoint's configuration names: one, several or none."""
    for name in ("generation_config.json", "config.json"):
        ends = _read_json(folder / name).get("eos_token_id")
        if isinstance(ends, int):
            return (ends,)
        if isinstance(ends, list) and ends:
            return tuple(int(end) for end in ends)
    return ()


def _named_end(folder: Path, vocab: dict[str, int]) -> tuple[int, ...]:
    named = _read_json(folder / "tokenizer_config.json").get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    return (vocab[text],) if text in vocab else ()


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
