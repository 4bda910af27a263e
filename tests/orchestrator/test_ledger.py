"""The ledger: whatever a crash leaves of it can be read, and says nothing that was not so."""

import json
import os
from pathlib import Path

import pytest

from orchestrator.errors import OrchError
from orchestrator.study.ledger import Entry, Ledger, LedgerWriter, read_ledger

JOBS = [[Entry("a", 1), Entry("b", 1)], [Entry("c", 2, 1)]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_what_was_written_is_read(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "slurm", "sol", JOBS)
    writer.accept("k1", ["7_0", "7_1"])
    (submission,) = read_ledger(file).submissions.values()
    assert submission.jobs == tuple(map(tuple, JOBS))
    assert submission.job_ids == ("7_0", "7_1")
    assert (submission.runner, submission.cluster) == ("slurm", "sol")
    assert not submission.is_open


def test_a_case_s_job_is_that_of_its_last_submission(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    writer.accept("k1", ["1", "2"])
    writer.intend("k2", "local", "local", [[Entry("c", 3, 2)]])
    writer.accept("k2", ["9"])
    asked = read_ledger(file).asked()
    assert (asked["a"].job_id, asked["b"].job_id, asked["c"].job_id) == ("1", "1", "9")
    assert asked["c"].entry == Entry("c", 3, 2)


def test_an_announced_submission_is_open_until_it_is_answered(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    assert read_ledger(file).open_keys() == ["k1"]
    assert read_ledger(file).asked()["a"].job_id is None
    writer.refuse("k1", "no such partition")
    ledger = read_ledger(file)
    assert ledger.open_keys() == []
    assert ledger.asked() == {}
    assert ledger.refusals() == dict.fromkeys("abc", "no such partition")


def test_a_later_acceptance_ends_a_refusal(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    writer.refuse("k1", "queue is full")
    writer.intend("k2", "local", "local", [[Entry("a", 1)]])
    writer.accept("k2", ["1"])
    assert set(read_ledger(file).refusals()) == {"b", "c"}


def test_an_event_is_on_the_disk_before_the_writer_returns(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut after sbatch would leave a job that no ledger knows."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((name, os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", watched)
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    writer.accept("k1", ["1", "2"])
    first, second = file.read_bytes().splitlines(keepends=True)
    name = str(file.resolve())
    assert synced == [(name, len(first)), (name, len(first) + len(second))]


def test_cancelled_jobs_are_remembered(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    writer.accept("k1", ["1", "2"])
    writer.cancel("k1", ["2"])
    assert read_ledger(file).submissions["k1"].cancelled == {"2"}


def test_no_file_is_an_empty_ledger(file: Path) -> None:
    assert read_ledger(file) == Ledger()


def test_a_file_that_cannot_be_read_is_an_error(file: Path) -> None:
    file.mkdir()
    with pytest.raises(OrchError, match="cannot be read"):
        read_ledger(file)


def test_torn_at_every_byte_it_says_a_beginning_of_what_was_so(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    writer.accept("k1", ["1", "2"])
    writer.intend("k2", "local", "local", [[Entry("d", 1)]])
    whole = file.read_bytes()
    ends = [0] + [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        ledger = read_ledger(file)
        # A line without its newline may already say all it has to say, but never half of it.
        complete = max(index for index, end in enumerate(ends) if end <= length + 1)
        assert len(ledger.submissions) == (0, 1, 1, 2)[complete]
        assert ledger.open_keys() == ([], ["k1"], [], ["k2"])[complete]
        assert ledger.damaged_lines == (length not in ends and length + 1 not in ends)


def test_after_a_torn_line_the_next_event_stands_on_its_own(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k1", "local", "local", JOBS)
    with file.open("ab") as stream:
        stream.write(b'{"event": "accepted", "key": "k1", "job_')
    writer.accept("k1", ["1", "2"])
    ledger = read_ledger(file)
    assert ledger.submissions["k1"].job_ids == ("1", "2")
    assert ledger.damaged_lines == 1


@pytest.mark.parametrize(
    "line",
    [
        "null", "[]", '{"event": "accepted", "key": "nobody", "job_ids": []}', "\x00\x00",
        '{"event": "accepted", "key": "k1", "job_ids": ["one too few"]}',
        '{"event": "sung", "key": "k1"}', "\udcff",
    ],
)  # fmt: skip
def test_a_line_that_is_no_event_is_passed_over_and_counted(
    file: Path, line: str
) -> None:
    LedgerWriter(file).intend("k1", "local", "local", JOBS)
    with file.open("ab") as stream:
        stream.write(line.encode("utf-8", "surrogateescape") + b"\n")
    ledger = read_ledger(file)
    assert ledger.open_keys() == ["k1"]
    assert ledger.damaged_lines == 1


def test_each_event_is_one_line_with_its_time(file: Path) -> None:
    writer = LedgerWriter(file)
    writer.intend("k\n1", "local", "a\nb", JOBS)
    writer.refuse("k\n1", "two\nlines")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["event"] for event in events] == ["intent", "refused"]
    assert all(event["at"].startswith("20") for event in events)
