"""The batch of prompts that a case is measured on: Alpaca's schema, or seeded random ids."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.tokenizer import Tokenizer
from kernels.generate import Batch
from kernels.shapes import ModelShape
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.errors import InputError

RANDOM = "random"
"""What a case says instead of a file."""
_LOW_IDS = 3
"""unk, bos and eos in a SentencePiece vocabulary: never drawn."""

# Word for word the PROMPT_DICT of tatsu-lab/stanford_alpaca train.py: no newline at the end.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

log = logging.getLogger(__name__)


def batch_of(
    case: Case, tokenizer: Tokenizer | None, shape: ModelShape
) -> tuple[Batch, list[int]]:
    """All sequences of one generation of the case, and how many tokens of each are no padding.

    From a file the first prompts are taken, from the start again where they do not suffice. What
    is longer than `prompt_tokens` keeps its begin token and its end, where the question stands.

    Raises:
        InputError: no tokenizer for prompts of a file, a file that is not Alpaca's schema, ids
            that the model does not have, or more tokens than it has positions.
    """
    count = case.strategy.sequences(case.batch_size)
    if case.prompts == RANDOM:
        prompts = _random_prompts(case, tokenizer, shape, count)
    else:
        prompts = _file_prompts(case, tokenizer, count)
    highest = max(map(max, prompts))
    if highest >= shape.vocab_size:
        raise InputError(
            f"the tokenizer gives ids up to {highest}, but {case.model} knows only "
            f"{shape.vocab_size}; put the tokenizer of this model beside it"
        )
    batch = Batch.of(prompts, case.prompt_tokens)
    if batch.length + case.new_tokens > shape.max_seq_len:
        raise InputError(
            f"prompt and new tokens must fit the {shape.max_seq_len} positions of {case.model}, "
            f"got {batch.length} + {case.new_tokens}; set prompt_tokens to what longer prompts "
            f"are cut to, or take fewer new_tokens"
        )
    return batch, [len(ids) for ids in prompts]


def read_prompts(file: Path, count: int) -> list[str]:
    """The first `count` texts of a file in Alpaca's schema, from the start again if it has fewer.

    Raises:
        InputError: it cannot be read or an entry is not `instruction`, `input`, `output`.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} cannot be read as prompts: {error}; it must be one JSON list, which "
            f"`jq -s .` makes of JSON Lines"
        ) from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply to be prompts") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as prompts: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{file} must hold a list of prompts in Alpaca's schema, as alpaca_data.json does"
        )
    texts = [
        prompt_text(entry, f"{file}, entry {index}")
        for index, entry in enumerate(entries[:count])
    ]
    if len(texts) < count:
        log.warning(
            "%s has %d prompts, %d are needed: they repeat", file, len(texts), count
        )
    return [texts[index % len(texts)] for index in range(count)]


def prompt_text(entry: Any, where: str = "the prompt") -> str:
    """Alpaca's text of one entry, up to and with `### Response:`; its output is not looked at.

    Raises:
        InputError: it is not the schema; begins with `where`.
    """
    fields = entry if isinstance(entry, dict) else {}
    instruction, context = fields.get("instruction"), fields.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(context, str):
        raise InputError(
            f"{where}: a prompt needs a text 'instruction' and may have a text 'input', got "
            f"{str(entry)[:80]!r}"
        )
    template = _WITH_INPUT if context else _WITHOUT_INPUT
    return template.format(instruction=instruction, input=context)


def cut(ids: Sequence[int], length: int | None, bos_id: int | None) -> list[int]:
    """At most `length` ids: the begin token, if it is one, and the last of the others."""
    if length is None or len(ids) <= length:
        return list(ids)
    if ids[0] != bos_id:
        return list(ids[-length:])
    return [ids[0], *ids[len(ids) - (length - 1) :]]


def _file_prompts(
    case: Case, tokenizer: Tokenizer | None, count: int
) -> list[list[int]]:
    if tokenizer is None:
        raise InputError(
            f"{case.model} has no tokenizer for the prompts of {case.prompts}; take "
            f"'prompts: {RANDOM}', which needs none"
        )
    texts = read_prompts(local_path(case.prompts), count)
    return [
        cut(tokenizer.encode(text), case.prompt_tokens, tokenizer.bos_id)
        for text in texts
    ]


def _random_prompts(
    case: Case, tokenizer: Tokenizer | None, shape: ModelShape, count: int
) -> list[list[int]]:
    if case.prompt_tokens is None:
        raise InputError(
            "random prompts have no length of their own; set prompt_tokens"
        )
    special = set(range(_LOW_IDS))
    if tokenizer is not None:
        special |= {*tokenizer.eos_ids, tokenizer.bos_id or 0}
    ids = [i for i in range(shape.vocab_size) if i not in special] or [0]
    rng = random.Random(case.seed)
    return [rng.choices(ids, k=case.prompt_tokens) for _ in range(count)]
