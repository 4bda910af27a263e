"""One rank's program: what it prints, what it refuses, and which results it calls invalid."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import gates
from jobs.bench import LoadingLine, compose, read_case
from jobs.measure import Report, Work, measure, prepare
from jobs.progress import ProgressBoard
from kernels.generate import NOTHING, Batch, last_tokens, not_finite
from kernels.shapes import ModelShape
from kernels.strategies import Parallel, PipelineParallel, Single
from kernels.world import World
from orchestrator.case import Case
from orchestrator.errors import InputError
from orchestrator.record import Record, read_record

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CHECKOUT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=64
)
CASE = Case(
    model="toy", random=SHAPE, label="single", strategy=Parallel(single=Single()),
    gpus=1, dtype="float32", batch_size=2, prompt_tokens=5, new_tokens=4, repeats=2,
)  # fmt: skip


def bench(
    *arguments: str, folder: Path = CHECKOUT, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "jobs.bench", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip


def case_file(folder: Path, case: Case) -> str:
    (folder / "case.json").write_text(case.model_dump_json())
    return str(folder / "case.json")


def prepared(case: Case) -> Work:
    reporter = ProgressBoard.open(None, 1).reporter(0)
    return prepare(case, World(), reporter, LoadingLine(reporter, speaks=False))


def record_of(
    work: Work, spoil: Callable[[Report], None] = lambda report: None
) -> Record:
    report = measure(work, ProgressBoard.open(None, 1).reporter(0))
    spoil(report)
    return compose(work, [report], 1, NOW)


# ---- as a program


def test_by_hand_it_prints_the_record(tmp_path: Path) -> None:
    done = bench(case_file(tmp_path, CASE))
    assert done.returncode == 0, done.stderr
    record = read_record(done.stdout, "stdout")
    assert (record.status, record.case, record.attempt) == ("ok", CASE, 1)
    assert [len(sample.token_s) for sample in record.samples] == [4, 4]
    assert (record.output_tokens, record.prompt_lengths) == (8, [5, 5])
    assert len(record.ranks) == 1
    assert record.ranks[0].weight_bytes > 0
    assert record.environment.software.threads == 1


def test_with_an_attempt_it_files_the_record_there(tmp_path: Path) -> None:
    attempt = tmp_path / CASE.case_id / "attempt-3"
    attempt.mkdir(parents=True)
    done = bench(case_file(tmp_path, CASE), f"--attempt-dir={attempt}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    record = read_record((attempt / "record.json").read_text(), "record")
    assert (record.status, record.attempt) == ("ok", 3)
    assert record.trace is None
    assert [file.name for file in attempt.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"random": None, "path": "no/such/folder"}, "no/such/folder is no folder"),
        ({"random": None}, "neither a path nor a random shape"),
        ({"prompts": "no-such.json"}, "no tokenizer for the prompts of no-such.json"),
        ({"prompt_tokens": None}, "set prompt_tokens"),
        ({"stop_at_eos": True}, "stop_at_eos needs eos_ids"),
    ],
)
def test_what_a_person_must_fix_is_a_config_error(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        prepared(CASE.model_copy(update=change))


def test_what_a_person_must_fix_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    case = CASE.model_copy(update={"random": None, "path": "no/such/folder"})
    done = bench(case_file(tmp_path, case))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"orch: config: {CHECKOUT}/no/such/folder is no folder; give the folder of a "
        "checkpoint\n"
    )


def test_another_kernels_package_is_named_in_one_line(tmp_path: Path) -> None:
    theirs = tmp_path / "site" / "kernels"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path / "site"), str(CHECKOUT)])
    done = bench("case.json", folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("orch: launch: the package 'kernels' must be the checkout's")
    assert str(theirs / "__init__.py") in line


def test_a_file_that_is_no_case_is_named(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text('{"model": "toy"}')
    with pytest.raises(InputError, match=r"case\.json cannot be read as a case"):
        read_case(tmp_path / "case.json")


def test_loading_is_told_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    board = ProgressBoard.open(None, 1)
    line = LoadingLine(board.reporter(0), speaks=True, every_s=0)
    line(500_000_000, 2_000_000_000)
    assert capsys.readouterr().err == "loading  25 % (0.50 of 2.00 GB)\n"
    assert board.rank_progress()[0].loaded_percent == 25
    LoadingLine(board.reporter(0), speaks=False, every_s=0)(1, 2)
    assert capsys.readouterr().err == ""


# ---- results that do not count


@pytest.fixture(scope="module")
def work() -> Work:
    """A tiny model, ready."""
    return prepared(CASE)


def test_a_sound_result_is_ok(work: Work) -> None:
    record = record_of(work)
    assert (record.status, record.cause, record.evidence) == ("ok", None, [])


def test_the_same_case_gives_the_same_ids(work: Work) -> None:
    assert record_of(work).ids_digest == record_of(prepared(CASE)).ids_digest


def test_another_seed_gives_other_ids(work: Work) -> None:
    other = prepared(CASE.model_copy(update={"model_seed": 1}))
    assert record_of(work).ids_digest != record_of(other).ids_digest


def test_weights_that_are_no_numbers_make_the_result_invalid() -> None:
    spoilt = prepared(CASE)
    next(spoilt.engine.model.parameters()).fill_(float("nan"))
    record = record_of(spoilt)
    assert (record.status, record.cause) == ("invalid", "invalid_result")
    assert "the logits of 10 prompt tokens are not finite" in record.evidence[0]
    assert record.remedy


def test_repeats_that_differ_make_the_result_invalid(work: Work) -> None:
    def spoil(report: Report) -> None:
        report.digests[1] = "another"
        report.problems += gates.check_repeats(report.digests)

    record = record_of(work, spoil)
    assert record.status == "invalid"
    assert "2 repeats of the same work gave 2 different texts" in record.evidence[0]


def test_ranks_that_disagree_make_the_result_invalid(work: Work) -> None:
    first, second = (
        measure(work, ProgressBoard.open(None, 1).reporter(0)) for _ in range(2)
    )
    second.digests = ["other", "other"]
    record = compose(work, [first, second], 1, NOW)
    assert record.status == "invalid"
    assert record.evidence == ["ranks disagree on the ids: [1] differ from rank 0"]


IDS = torch.arange(8).reshape(2, 4)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (IDS, None),
        (torch.empty(2, 0, dtype=torch.int64), "no token was generated"),
        (torch.full((2, 4), NOTHING), "no token was generated"),
        (torch.arange(10).reshape(2, 5), "2 rows of 4 tokens were asked for, 2×5 came"),
        (torch.arange(4).reshape(1, 4), "1×4 came"),
        (IDS + 57, "1 ids are outside the vocabulary of 64, such as 64"),
        (IDS - 3, "outside the vocabulary"),
        (IDS.masked_fill(IDS == 7, NOTHING), "only 7 came"),
    ],
)
def test_ids_must_be_what_was_asked_for(ids: torch.Tensor, said: str | None) -> None:
    problems = gates.check_ids(ids, CASE, SHAPE.vocab_size)
    assert problems == [] if said is None else said in "; ".join(problems)


def test_rows_may_end_early_where_they_may_stop() -> None:
    case = CASE.model_copy(update={"stop_at_eos": True})
    ids = IDS.masked_fill(IDS == 7, NOTHING)
    assert gates.check_ids(ids, case, SHAPE.vocab_size) == []
    assert gates.output_tokens(ids) == 7


def test_more_sequences_in_flight_give_more_rows() -> None:
    spread = Parallel(pipeline=PipelineParallel(schedule="async", in_flight=4))
    case = CASE.model_copy(update={"strategy": spread})
    assert gates.check_ids(torch.zeros(4, 4).long(), case, 64) == []
    assert gates.check_ids(IDS, case, 64)


@pytest.mark.parametrize(
    ("times", "stops", "had_rows", "fits"),
    [
        ([0.1, 0.2, 0.3, 0.4], False, True, True),
        ([0.1, 0.2], False, True, False),
        ([0.1, 0.2], True, True, True),
        ([], True, True, False),
        ([], False, False, True),
        ([0.1] * 5, True, True, False),
        ([0.0, 0.1, 0.2, 0.3], False, True, False),
    ],
)
def test_every_token_must_have_a_time(
    times: list[float], stops: bool, had_rows: bool, fits: bool
) -> None:
    case = CASE.model_copy(update={"stop_at_eos": stops})
    assert (gates.check_times(times, case, had_rows) == []) == fits


def test_padding_may_be_anything() -> None:
    batch = Batch.of([[1], [1, 2, 3]])
    logits = torch.zeros(2, 3, 8)
    logits[0, :2] = float("nan")
    assert not_finite(logits, batch) == []
    logits[1, 0, 5] = float("inf")
    assert not_finite(logits, batch)


def test_long_prompts_are_checked_in_part() -> None:
    batch = Batch.of([list(range(1, 101)), [1, 2]])
    part = last_tokens(batch, vocab_size=50, elements=1000)
    assert part.ids_BT.tolist() == batch.ids_BT[:, -10:].tolist()
    assert part.pad_B.tolist() == [0, 8]
    whole = last_tokens(batch, vocab_size=50)
    assert whole.ids_BT.shape == batch.ids_BT.shape


def test_a_digest_tells_rows_apart() -> None:
    ids = [[1, 23], [4, 5]]
    others = [[[1, 2], [34, 5]], [[1, 23, 4, 5]], [[12, 3], [4, 5]]]
    digests = {gates.digest(torch.tensor(each)) for each in (ids, *others)}
    assert len(digests) == 4
