"""Cases, records and whole studies for tests, made without running anything."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kernels.shapes import ModelShape
from kernels.strategies import PARTS, Parallel
from orchestrator.case import Case
from orchestrator.environment import Code, Environment, Host, Software
from orchestrator.grids.strategies import resolve
from orchestrator.record import RankFacts, Record, Sample
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter
from orchestrator.tables.formats import text_of
from orchestrator.tables.table import Table, means

SHAPE = ModelShape(
    dim=64, n_layers=4, n_heads=8, n_kv_heads=4, ffn_dim=128, vocab_size=256
)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_case(name: str = "tensor", gpus: int = 1, **changes: Any) -> Case:
    """A case of a toy model with random weights."""
    strategy = Parallel(**{name.replace("-", "_"): PARTS[name]()})
    values = {
        "model": "toy", "random": SHAPE, "label": name, "gpus": gpus,
        "strategy": resolve(strategy, gpus, batch_size=2), "batch_size": 2,
        "new_tokens": 3, "dtype": "float32",
    }  # fmt: skip
    return Case(**(values | changes))


def a_sample(*token_s: float, skew_s: float = 0.0) -> Sample:
    """One generation whose tokens came at these seconds."""
    return Sample(token_s=list(token_s), skew_s=skew_s)


def an_environment(**of_host: Any) -> Environment:
    """Where a record was made."""
    host = {
        "name": "node1", "cpu": "EPYC", "allowed_processors": 8, "memory_bytes": 2**36,
        "system": "Linux 6 x86_64",
    }  # fmt: skip
    packages = {"torch": "2.13.0+cu130"} | {f"package-{i}": "1.2.3" for i in range(12)}
    return Environment(
        hosts=[Host(**(host | of_host))],
        software=Software(
            python="3.12.1", packages=packages, cuda="13.0", nccl="2.28.3"
        ),
        code=Code(commit="c" * 40, source="5" * 64),
    )


def a_rank(rank: int = 0, **changes: Any) -> RankFacts:
    """What one rank saw."""
    values = {
        "rank": rank, "host": "node1", "device": "A100", "device_kind": "cuda", "load_s": 1.5,
        "peak_memory_bytes": 1000 + rank, "peak_reserved_bytes": 2000 + rank,
        "weight_bytes": 500,
    }  # fmt: skip
    return RankFacts(**(values | changes))


def a_record(case: Case, attempt: int = 1, **changes: Any) -> Record:
    """An ok record; three samples of 1, 2 and 3 seconds for the first of three tokens."""
    values = {
        "case": case, "attempt": attempt, "status": "ok", "started_at": START,
        "ended_at": START + timedelta(seconds=90),
        "samples": [a_sample(t, t + 1, t + 2) for t in (1.0, 2.0, 3.0)],
        "ranks": [a_rank(rank) for rank in range(case.gpus)],
        "prompt_lengths": [5, 7], "output_tokens": 6, "ids_digest": "ab" * 32,
    }  # fmt: skip
    return Record(**(values | changes))


def a_failure(case: Case, attempt: int = 1, **changes: Any) -> Record:
    """A record of workers that died."""
    values = {
        "case": case, "attempt": attempt, "status": "failed", "cause": "timeout",
        "evidence": ["still running after 60 s"], "remedy": "give it more time",
        "started_at": START, "ended_at": START + timedelta(seconds=60),
    }  # fmt: skip
    return Record(**(values | changes))


def file(study: Study, record: Record) -> None:
    """Put the record where its attempt would."""
    study.file_case(record.case)
    while True:
        attempt = study.open_attempt(record.case.case_id)
        if attempt.number == record.attempt:
            attempt.write_record(record)
            return


def a_study(results: Path, cases: list[Case], name: str = "made") -> Study:
    """A study with these cases filed, nothing submitted."""
    study = Study(results / name)
    study.create()
    for case in cases:
        study.file_case(case)
    study.write_facts({"cases": [case.case_id for case in cases], "cluster": "local"})
    return study


def big_study(results: Path, number: int) -> Study:
    """`number` cases, nearly all measured: 128 tokens, three samples, some of them failed."""
    cases = [
        a_case(gpus=2 ** (i % 4), seed=i // 4, new_tokens=128) for i in range(number)
    ]
    study = a_study(results, cases, f"big-{number}")
    times = [0.05 + 0.0123456789 * step for step in range(128)]
    samples = [a_sample(*times) for _ in range(3)]
    environment = an_environment(topology="x" * 900)
    entries = []
    for index, case in enumerate(cases):
        entries.append(Entry(case.case_id, 1, 0))
        if index % 10 == 9:
            record = a_failure(case, environment=environment)
        else:
            record = a_record(
                case, samples=samples, output_tokens=256, environment=environment
            )
        folder = study.case_dir(case.case_id) / "attempt-1"
        folder.mkdir()
        (folder / "record.json").write_text(record.model_dump_json(indent=1))
    ledger = LedgerWriter(study.ledger_file)
    ledger.intend("one", "local", "local", [entries])
    ledger.accept("one", ["one"])
    return study


def rows_of(table: Table) -> list[dict[str, Any]]:
    """Return the rows of a comparison, with the mean of each cell, as JSON has them."""
    rows = json.loads(text_of(means(table.frame), "json"))
    assert isinstance(rows, list)
    return rows
