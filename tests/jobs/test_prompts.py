"""Alpaca's prompts and the batches made of them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.prompts import batch_of, cut, prompt_text, read_prompts
from jobs.tokenizer import Tokenizer, load_tokenizer
from jobs.toy_tokenizer import SAMPLE, train_tokenizer
from kernels.shapes import ModelShape
from kernels.strategies import DataParallel, Parallel, Single
from orchestrator.case import Case
from orchestrator.errors import InputError

SHAPE = ModelShape(
    dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8, vocab_size=1200
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of fewer pieces than the model has rows."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder / "tokenizer.model", 1024)
    return load_tokenizer(folder)


def case(**changes: Any) -> Case:
    values: dict[str, Any] = {
        "model": "toy",
        "label": "single",
        "strategy": Parallel(single=Single()),
        "gpus": 1,
        "prompts": "jobs/prompts/alpaca-sample.json",
        "prompt_tokens": None,
    }
    return Case(**values | changes)


def test_the_templates_are_alpacas_letter_by_letter() -> None:
    assert prompt_text({"instruction": "Sum {x}.", "input": "1\n2", "output": "3"}) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nSum {x}.\n"
        "\n### Input:\n1\n2\n"
        "\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n"
        "\n### Instruction:\nRhyme.\n"
        "\n### Response:"
    )
    assert prompt_text({"instruction": "Rhyme.", "input": "", "output": "x"}) == without
    assert prompt_text({"instruction": "Rhyme."}) == without


def test_the_shipped_prompts_are_many_varied_and_of_the_schema() -> None:
    entries = json.loads(SAMPLE.read_text())
    assert len(entries) >= 52
    assert all(entry.keys() == {"instruction", "input", "output"} for entry in entries)
    assert all(entry["instruction"] and entry["output"] for entry in entries)
    assert len({entry["instruction"] for entry in entries}) == len(entries)
    with_input = sum(bool(entry["input"]) for entry in entries)
    assert 0.4 < with_input / len(entries) < 0.6
    words = [len(prompt_text(entry).split()) for entry in entries]
    assert max(words) > 4 * min(words)


def test_a_batch_holds_the_first_prompts_padded_on_the_left(
    tokenizer: Tokenizer,
) -> None:
    batch, lengths = batch_of(case(batch_size=7), tokenizer, SHAPE)
    entries = json.loads(SAMPLE.read_text())[:7]
    assert batch.length == max(lengths)
    assert len(set(lengths)) > 3
    for row, pad, length, entry in zip(
        batch.ids_BT.tolist(), batch.pad_B.tolist(), lengths, entries, strict=True
    ):
        assert pad == batch.length - length
        assert row[:pad] == [0] * pad
        assert row[pad] == tokenizer.bos_id
        assert tokenizer.decode(row[pad:]) == prompt_text(entry)


def test_long_prompts_keep_their_begin_token_and_their_end(
    tokenizer: Tokenizer,
) -> None:
    whole, whole_lengths = batch_of(case(), tokenizer, SHAPE)
    batch, lengths = batch_of(case(prompt_tokens=40), tokenizer, SHAPE)
    assert batch.length == 40
    assert lengths == [min(length, 40) for length in whole_lengths]
    assert batch.ids_BT[:, 1:].tolist() == whole.ids_BT[:, -39:].tolist()
    assert batch.ids_BT[:, 0].tolist() == [tokenizer.bos_id] * 4


def test_cutting_keeps_the_length_whatever_it_is() -> None:
    ids = [1, 5, 6, 7]
    assert cut(ids, 3, bos_id=1) == [1, 6, 7]
    assert cut(ids, 1, bos_id=1) == [1]
    assert cut(ids, 1, bos_id=None) == [7]
    assert cut(ids, 3, bos_id=9) == [5, 6, 7]
    assert cut(ids, 4, bos_id=1) == cut(ids, None, bos_id=1) == ids


def test_replicas_and_batches_in_flight_have_prompts_of_their_own(
    tokenizer: Tokenizer,
) -> None:
    spread = Parallel(data=DataParallel(degree=2))
    batch, lengths = batch_of(
        case(strategy=spread, gpus=2, batch_size=3), tokenizer, SHAPE
    )
    assert batch.size == len(lengths) == 6
    assert len({tuple(row) for row in batch.ids_BT.tolist()}) == 6


def test_too_few_prompts_repeat_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "two.json"
    file.write_text(json.dumps([{"instruction": "a"}, {"instruction": "b"}]))
    texts = read_prompts(file, 5)
    assert texts == [texts[0], texts[1]] * 2 + [texts[0]]
    assert "has 2 prompts, 5 are needed" in caplog.text
    caplog.clear()
    read_prompts(file, 2)
    assert not caplog.text


def test_of_a_large_file_only_the_first_entries_are_looked_at(tmp_path: Path) -> None:
    entries: list[Any] = [{"instruction": "a", "input": "", "output": ""}] * 3
    (tmp_path / "large.json").write_text(json.dumps(entries + [None] * 52_000))
    assert len(read_prompts(tmp_path / "large.json", 3)) == 3


def test_paths_are_expanded(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").write_text('[{"instruction": "one"}]')
    monkeypatch.setenv("MY_PROMPTS", str(tmp_path))
    mine = case(prompts="$MY_PROMPTS/mine.json", batch_size=1)
    batch, _ = batch_of(mine, tokenizer, SHAPE)
    assert "\none\n" in tokenizer.decode(batch.ids_BT[0].tolist())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[{", "cannot be read as prompts"),
        (b"{}\n{}\n", "it must be one JSON list, which `jq -s .` makes of JSON Lines"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "cannot be read as prompts"),
        (b"{}", "must hold a list"),
        (b"[]", "must hold a list"),
        (b'[{"instruction": "a"}, {"input": "b"}]', "entry 1: a prompt needs"),
        (b'[{"instruction": "a", "input": 3}]', "entry 0: a prompt needs"),
        (b'["a"]', "entry 0: a prompt needs"),
    ],
)
def test_a_file_that_is_not_the_schema_is_named_with_its_entry(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))}.*{said}"):
        read_prompts(file, 4)


def test_a_byte_order_mark_is_no_part_of_the_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    entry = {"instruction": "Name three fruits.", "input": "", "output": ""}
    file.write_text(json.dumps([entry]), encoding="utf-8-sig")
    assert len(read_prompts(file, 1)) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        read_prompts(tmp_path / "none.json", 1)


def test_prompts_of_a_file_need_a_tokenizer() -> None:
    with pytest.raises(InputError, match=r"toy has no tokenizer.*prompts: random"):
        batch_of(case(), None, SHAPE)


def test_the_tokenizer_of_a_larger_model_is_refused(tokenizer: Tokenizer) -> None:
    small = ModelShape(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8, vocab_size=300
    )
    with pytest.raises(InputError, match="toy knows only 300"):
        batch_of(case(), tokenizer, small)


def test_prompts_longer_than_the_model_s_context_are_refused(
    tokenizer: Tokenizer,
) -> None:
    longest = batch_of(case(), tokenizer, SHAPE)[0].length
    fits = replace(SHAPE, max_seq_len=longest + 128)
    assert batch_of(case(), tokenizer, fits)[0].length == longest
    with pytest.raises(InputError, match=rf"got {longest} \+ 129; set prompt_tokens"):
        batch_of(case(new_tokens=129), tokenizer, fits)


def test_random_prompts_are_a_function_of_the_seed() -> None:
    wanted = case(prompts="random", prompt_tokens=33, batch_size=3)
    batch, lengths = batch_of(wanted, None, SHAPE)
    again, _ = batch_of(wanted, None, SHAPE)
    other, _ = batch_of(wanted.model_copy(update={"seed": 1}), None, SHAPE)
    assert lengths == [33, 33, 33]
    assert batch.pad_B.tolist() == [0, 0, 0]
    assert batch.ids_BT.tolist() == again.ids_BT.tolist() != other.ids_BT.tolist()
    assert len({tuple(row) for row in batch.ids_BT.tolist()}) == 3


def test_random_prompts_avoid_special_ids(tokenizer: Tokenizer) -> None:
    wanted = case(prompts="random", prompt_tokens=3500, batch_size=3)
    drawn = set(batch_of(wanted, tokenizer, SHAPE)[0].ids_BT.flatten().tolist())
    assert not drawn & {0, 1, 2}
    assert max(drawn) < SHAPE.vocab_size
    assert len(drawn) > 0.95 * SHAPE.vocab_size


def test_a_larger_batch_of_random_prompts_begins_with_the_smaller() -> None:
    few, _ = batch_of(case(prompts="random", prompt_tokens=9), None, SHAPE)
    many = case(prompts="random", prompt_tokens=9, batch_size=7)
    assert batch_of(many, None, SHAPE)[0].ids_BT[:4].tolist() == few.ids_BT.tolist()


def test_random_prompts_need_a_length() -> None:
    with pytest.raises(InputError, match="set prompt_tokens"):
        batch_of(case(prompts="random"), None, SHAPE)
