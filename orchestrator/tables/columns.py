"""The columns of `orch collect --long`: one tidy row per case, failures included.

What each means stands in results/README.md; a test keeps the two lists equal.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, get_type_hints

from kernels.strategies import PARTS, Strategy
from orchestrator.case import Case
from orchestrator.environment import Environment
from orchestrator.record import Record
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.metrics import FACTS, METRICS, measure, runs, sequences

Kind = Literal["text", "int", "float", "bool"]
Cell = str | int | float | bool | None

_OF_CASE: dict[str, Kind] = {
    "model": "text", "strategy": "text", "gpus": "int", "batch_size": "int", "dtype": "text",
}  # fmt: skip
_MORE_OF_CASE: dict[str, Kind] = {
    "path": "text", "model_seed": "int", "prompts": "text", "prompt_tokens": "int",
    "new_tokens": "int", "warmup": "int", "repeats": "int", "seed": "int",
    "temperature": "float", "stop_at_eos": "bool",
    "trace": "text",
}  # fmt: skip
_INT: Kind = "int"
_DEGREES = ("replicas", "stages", "shards")
_OPTIONS: dict[str, Kind] = {
    name: "int" if hint in (int, int | None) else "text"
    for part in PARTS.values()
    for name, hint in get_type_hints(part).items()
    if name != "degree" and name in {each.name for each in fields(part)}
}
"""Every option of every strategy, once."""
_OF_RECORD: dict[str, tuple[Kind, Callable[[Record], Any]]] = {
    "sequences": ("int", sequences),
    "output_tokens": ("int", lambda record: record.output_tokens),
    "ids_digest": ("text", lambda record: record.ids_digest),
}
_OF_OTHERS: dict[str, Kind] = {"ids_agree": "bool"}
"""What only a look at other cases tells."""
_OF_ATTEMPT: dict[str, tuple[Kind, Callable[[Record], Any]]] = {
    "device": ("text", lambda record: _distinct(rank.device for rank in record.ranks)),
    "hosts": ("text", lambda record: _distinct(rank.host for rank in record.ranks)),
    "started_at": ("text", lambda record: record.started_at.isoformat()),
    "ended_at": ("text", lambda record: record.ended_at.isoformat()),
    "cluster": ("text", lambda record: record.cluster or None),
    "driver": ("text", lambda record: _of(record, lambda each: each.driver)),
    "cuda": ("text", lambda record: _of(record, lambda each: each.software.cuda)),
    "nccl": ("text", lambda record: _of(record, lambda each: each.software.nccl)),
    "torch": ("text", lambda record: _of(record, lambda each: each.software.torch)),
    "commit": ("text", lambda record: _of(record, lambda each: each.code.commit)),
    "changes": ("text", lambda record: _of(record, lambda each: each.code.changes)),
}
_OF_STATUS: dict[str, tuple[Kind, Callable[[CaseStatus], Any]]] = {
    "attempt": ("int", lambda each: each.attempt),
    "job_id": ("text", lambda each: each.job_id),
    "elapsed_s": ("float", lambda each: each.elapsed_s),
    "retryable": ("bool", lambda each: each.retryable),
    "evidence": ("text", lambda each: "\n".join(each.evidence) or None),
    "remedy": ("text", lambda each: each.remedy),
}
_PARTS_OF_SUMMARY = ("mean", "ci95_low", "ci95_high")


def _columns() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {"case_id": "text", **_OF_CASE}
    kinds |= {"status": "text", "cause": "text", "n": "int"}
    for name in METRICS:
        kinds |= {f"{name}_{part}": "float" for part in _PARTS_OF_SUMMARY}
    kinds |= {name: "int" if name.endswith("_bytes") else "float" for name in FACTS}
    kinds |= {name: kind for name, (kind, _) in _OF_RECORD.items()}
    kinds |= _OF_OTHERS | _MORE_OF_CASE | dict.fromkeys(_DEGREES, _INT) | _OPTIONS
    kinds |= {name: kind for name, (kind, _) in _OF_ATTEMPT.items()}
    kinds |= {name: kind for name, (kind, _) in _OF_STATUS.items()}
    return kinds


COLUMNS = _columns()
"""Name → kind, in the order they are written."""


def long_row(
    each: CaseStatus, ids_agree: bool | None = None, *, counts: bool = True
) -> dict[str, Cell]:
    """One case; None if a column does not apply. Numbers only if the record is ok.

    Args:
        ids_agree: whether its ids are those of the other cases with the same work.
        counts: off if its ids are wrong: it is invalid then, and has no numbers.
    """
    row: dict[str, Cell] = dict.fromkeys(COLUMNS)
    row["ids_agree"] = ids_agree
    row |= {"case_id": each.case_id, "status": each.status, "cause": each.cause, "n": 0}
    if not counts:
        row |= {"status": "invalid", "cause": "invalid_result"}
    row |= {name: of(each) for name, (_, of) in _OF_STATUS.items()}
    if each.case is not None:
        row |= _case_cells(each.case)
    if each.record is not None:
        row |= {name: of(each.record) for name, (_, of) in _OF_ATTEMPT.items()}
        if each.status == "ok" and counts:
            row |= _measured_cells(each.record)
    return row


def _case_cells(case: Case) -> dict[str, Cell]:
    names = (_OF_CASE | _MORE_OF_CASE).keys() - {"strategy"}
    cells = {name: getattr(case, name) for name in names} | {"strategy": case.label}
    cells["trace"] = str(case.trace).lower() if case.trace else None
    cells |= {name: getattr(case.strategy, name) for name in _DEGREES}
    return cells | _option_cells(case.strategy)


def _option_cells(strategy: Strategy) -> dict[str, Cell]:
    """Return every option of the strategy, a list as `1-3`."""
    cells: dict[str, Cell] = {}
    for part in strategy.parts.values():
        for name, kind in _OPTIONS.items():
            if (value := getattr(part, name, None)) is not None:
                text = "-".join(map(str, value)) if isinstance(value, tuple) else value
                cells[name] = text if kind == "int" else str(text)
    return cells


def options(strategy: Strategy) -> str | None:
    """Return what is set of a strategy besides degrees, as JSON; None if all is at its default."""
    changed = {
        name: value
        for part in strategy.options().values()
        for name, value in part.items()
        if name != "degree"
    }
    return json.dumps(changed) if changed else None


def _measured_cells(record: Record) -> dict[str, Cell]:
    samples = runs(record)
    cells: dict[str, Cell] = {"n": len(samples)}
    for name, metric in METRICS.items():
        found = measure(samples, metric)
        cells[f"{name}_mean"] = found.mean
        cells[f"{name}_ci95_low"] = found.ci95_low
        cells[f"{name}_ci95_high"] = found.ci95_high
    cells |= {name: fact(record) for name, fact in FACTS.items()}
    return cells | {name: of(record) for name, (_, of) in _OF_RECORD.items()}


def _distinct(words: Any) -> str | None:
    return ", ".join(dict.fromkeys(words)) or None


def _of(record: Record, fact: Callable[[Environment], str | None]) -> str | None:
    return None if record.environment is None else fact(record.environment)
