"""The three kinds of tokenizer, each on a small genuine file made here."""

import base64
import json
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers.processors import TemplateProcessing

from jobs.tokenizer import (
    HfTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
)

TEXTS = [
    "Below is an instruction.\n\n### Response:",
    "two  spaces,\ttabs\n",
    "naïve ☃ 日本 🙂",
    "1234567",
    " leading",
    "",
]
CORPUS = ["below is an instruction that describes a task"] * 3 + [
    "the quick brown fox jumps over the lazy dog 0123456789"
]


def sentencepiece_folder(folder: Path) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


def tiktoken_folder(folder: Path) -> Path:
    words = [
        b"in",
        b"st",
        b"inst",
        b"ion",
        b"12",
        b"123",
        b" is",
        b"\n\n",
        b"ti",
        b"tion",
    ]
    tokens = [bytes([byte]) for byte in range(256)] + words
    lines = [
        base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)
    ]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def hf_folder(folder: Path, *, begins: bool) -> Path:
    """Byte-level BPE; with a begin token as Llama-3 has it, without one as Qwen."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|begin|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    if begins:
        model.post_processor = TemplateProcessing(
            single="<|begin|> $A",
            pair="<|begin|> $A $B",
            special_tokens=[("<|begin|>", model.token_to_id("<|begin|>"))],
        )
    model.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=["sentencepiece", "tiktoken", "hf", "hf without begin token"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """One of each kind."""
    if request.param == "sentencepiece":
        return load_tokenizer(sentencepiece_folder(tmp_path))
    if request.param == "tiktoken":
        return load_tokenizer(tiktoken_folder(tmp_path))
    return load_tokenizer(hf_folder(tmp_path, begins=request.param == "hf"))


def test_the_kind_is_told_apart_by_the_files_content(tmp_path: Path) -> None:
    kinds = []
    for make in (sentencepiece_folder, tiktoken_folder):
        folder = tmp_path / make.__name__
        folder.mkdir()
        kinds.append(type(load_tokenizer(make(folder))))
    hf = hf_folder(tmp_path, begins=True)
    kinds.append(type(load_tokenizer(hf)))
    assert kinds == [SentencePieceTokenizer, TiktokenTokenizer, HfTokenizer]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_what_was_encoded_gives_the_text(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def test_the_begin_token_stands_exactly_once(tokenizer: Tokenizer) -> None:
    """Also where the text spells it, or any other control token."""
    for text in ("a b", "<s>a b</s>", "<|begin|>a", "<|special_0|>", "<|endoftext|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.eos_ids)
        if tokenizer.bos_id is None:
            assert ids == tokenizer.encode(text, bos=False)
        else:
            assert ids == [tokenizer.bos_id, *tokenizer.encode(text, bos=False)]
            assert ids.count(tokenizer.bos_id) == 1


def test_control_tokens_and_nothing_are_left_out_of_the_text(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode("is an instruction")
    ids = [*ids, tokenizer.eos_ids[0], -1, -1]
    assert tokenizer.decode(ids) == "is an instruction"
    assert tokenizer.decode([]) == ""


def test_ids_of_padded_embedding_rows_show_as_unknown(tokenizer: Tokenizer) -> None:
    """A model with random weights, or an odd one, may well choose them."""
    ids = tokenizer.encode("task")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 7]) == (
        "task\ufffd\ufffd"
    )


def test_half_a_surrogate_pair_is_no_crash(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83d")) == "a?"


def test_sentencepiece_ids_are_the_librarys(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path)
    library = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a task") == [1, *library.encode("a task")]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.vocab_size == 330


def test_llama_3_has_its_special_ids_after_the_ranks(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiktoken_folder(tmp_path))
    assert tokenizer.vocab_size == 266 + 256
    assert tokenizer.bos_id == 266
    assert tokenizer.eos_ids == (267, 274, 275)
    # Digits are cut into threes before merging, and letters into words.
    ids = tokenizer.encode("123412 is", bos=False)
    assert ids == [261, ord("4"), 260, 262]


def test_end_tokens_are_those_the_model_names(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, begins=True)
    assert load_tokenizer(folder).eos_ids == (0,)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    assert load_tokenizer(folder).eos_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert load_tokenizer(folder).eos_ids == (2, 0)


def test_an_end_token_that_the_file_puts_after_a_text_is_no_begin_token(
    tmp_path: Path,
) -> None:
    folder = hf_folder(tmp_path, begins=False)
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    model.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id is None
    assert 0 not in tokenizer.encode("a task")


def test_metas_tokenizer_is_found_one_level_up(tmp_path: Path) -> None:
    sentencepiece_folder(tmp_path)
    folder = tmp_path / "7B"
    folder.mkdir()
    with pytest.raises(TokenizerError, match="take random prompts"):
        load_tokenizer(folder)
    (folder / "params.json").write_text("{}")
    assert load_tokenizer(folder).vocab_size == 330


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.model", b"", r"no SentencePiece model"),
        ("tokenizer.model", b"\x0a\xff\xff\xff", r"no SentencePiece model"),
        ("tokenizer.model", b"IQ== 0\nIg== x\n", r"tokenizer\.model:2 is no base64"),
        ("tokenizer.model", b"IQ== 0\nIg== 7\n", r"ranks must be 0 to 1"),
        ("tokenizer.json", b"{", r"tokenizer\.json is no tokenizer"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("package", ["tiktoken", "tokenizers"])
def test_a_missing_optional_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package == "tiktoken":
        tiktoken_folder(tmp_path)
    else:
        hf_folder(tmp_path, begins=True)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TokenizerError, match=rf"pip install {package}"):
        load_tokenizer(tmp_path)
