"""Trains a SentencePiece tokenizer with the options of Llama-2's, on text of our own.

The text is the shipped prompts and seeded sentences of made-up words, as many as the vocabulary
needs, so that any size can be had without a corpus. Deterministic.
"""

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from jobs.prompts import prompt_text
from orchestrator.errors import InputError

SAMPLE = Path(__file__).parent / "prompts" / "alpaca-sample.json"
"""The shipped prompts, in Alpaca's schema."""
SMALLEST = 512
"""Fewest pieces: 3 of control, 256 of bytes, the letters, and some words."""

# Of a syllable; most have no coda.
_ONSETS = re.findall(
    r"\w+", "b br c ch d f fl g gr h j k l m n p pl r s sh st t th tr v w y z"
)
_VOWELS = re.findall(r"\w+", "a e i o u ai ea ee ia ou oo")
_CODAS = re.findall(r"\w+", "n r s t l m nd ck st ng rt x") + [""] * 4


def train_tokenizer(file: Path, vocab_size: int) -> None:
    """Writes a `tokenizer.model` of exactly `vocab_size` pieces: unk 0, bos 1, eos 2, no pad.

    Raises:
        InputError: the vocabulary has no room for bytes, letters and words.
    """
    if vocab_size < SMALLEST:
        raise InputError(
            f"a tokenizer needs a vocabulary of at least {SMALLEST}, got {vocab_size}; take a "
            f"larger one or --no-tokenizer"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(vocab_size),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" \u2047 ",
        self_test_sample_size=0,
        num_threads=1,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())


def _sentences(vocab_size: int) -> Iterator[str]:
    for prompt in json.loads(SAMPLE.read_text()):
        # Several times, so that real words become pieces before made-up ones.
        for text in (prompt_text(prompt), prompt["output"]):
            yield from [line for line in text.splitlines() if line] * 4
    rng = random.Random(0)
    words = [_word(rng) for _ in range(2 * vocab_size)]
    for _ in range(vocab_size):
        chosen = [rng.choice(words) for _ in range(12)]
        yield f"{' '.join(chosen).capitalize()}, {rng.randrange(10**4)}."


def _word(rng: random.Random) -> str:
    syllables = range(rng.choice((1, 2, 2, 3)))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in syllables
    )
