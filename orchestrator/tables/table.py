"""The comparison table: a row per model, strategy and whatever else varies, a column per number
of GPUs. Nothing is left out: what has no number has a word.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pandas import DataFrame

from orchestrator.case import Case
from orchestrator.errors import InputError, nearest
from orchestrator.record import Record
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.columns import Cell, options
from orchestrator.tables.metrics import FACTS, METRICS, Summary, measure, runs
from orchestrator.units import counted

_ALWAYS = ("model", "strategy")
_IF_VARIED = (
    "dtype", "batch_size", "prompts", "prompt_tokens", "new_tokens", "warmup", "repeats", "seed",
    "temperature", "stop_at_eos", "trace",
)  # fmt: skip
_OF_THE_MODEL = ("path", "random", "model_seed")
"""Shown only where one model's name stands for several."""


@dataclass(frozen=True)
class Table:
    """A row per strategy, and what to say of them."""

    frame: DataFrame
    """Keys, then a column per number of GPUs: a `Summary`, a word, or nothing without a case."""
    about: str
    """One line: the metric, its unit, n, the spread, and what the words mean."""


def comparison(
    found: Sequence[CaseStatus], metric: str, void: Collection[str] = ()
) -> Table:
    """Return the table of one metric.

    Args:
        void: ids of measured cases whose numbers do not count (`agreement.void`).

    Raises:
        InputError: there is no such metric.
    """
    _known(metric)
    cases = [(each, each.case) for each in found if each.case is not None]
    keys = _row_keys([case for _, case in cases])
    counts = sorted({case.gpus for _, case in cases})
    noun = _noun([each.record for each, _ in cases])
    names = {gpus: counted(gpus, noun) for gpus in counts}
    rows: dict[tuple[str, ...], dict[str, Cell | Summary]] = {}
    summaries = []
    for each, case in cases:
        key = tuple(str(_value(case, name)) for name in keys)
        row = rows.setdefault(key, _empty_row(case, keys, names.values()))
        is_void = each.case_id in void
        cell = "invalid" if is_void else _cell(each, metric)
        row[names[case.gpus]] = cell
        if isinstance(cell, Summary):
            summaries.append(cell)
    frame = DataFrame(
        list(rows.values()), columns=[*keys, *names.values()], dtype=object
    )
    return Table(frame, _about(metric, summaries, len(found) - len(cases)))


def means(frame: DataFrame) -> DataFrame:
    """Return the table with the mean in place of each `Summary`."""
    return frame.map(lambda cell: cell.mean if isinstance(cell, Summary) else cell)


def unit(metric: str) -> str:
    """Return the unit that a metric's name ends in."""
    ends = {"_tok_per_s": "tokens/s", "_per_s": "steps/s", "_s": "s", "_bytes": "bytes",
            "_share": "share"}  # fmt: skip
    return next(word for end, word in ends.items() if metric.endswith(end))


def _known(metric: str) -> None:
    valid = [*METRICS, *FACTS]
    if metric not in valid:
        raise InputError(f"no metric {metric!r}; {nearest(metric, valid)}")


def _row_keys(cases: Sequence[Case]) -> list[str]:
    keys = [*_ALWAYS]
    keys += [name for name in _IF_VARIED if len({_text(c, name) for c in cases}) > 1]
    keys += [name for name in _OF_THE_MODEL if _varies_in_a_model(cases, name)]
    if _collide(cases, keys):
        keys.append("options")
    if _collide(cases, keys):
        keys.append("case_id")
    return keys


def _varies_in_a_model(cases: Sequence[Case], name: str) -> bool:
    pairs = {(case.model, _text(case, name)) for case in cases}
    return len(pairs) > len({case.model for case in cases})


def _collide(cases: Sequence[Case], keys: Sequence[str]) -> bool:
    places = {(case.gpus, *(_text(case, name) for name in keys)) for case in cases}
    return len(places) < len(cases)


def _text(case: Case, name: str) -> str:
    return str(_value(case, name))


def _value(case: Case, name: str) -> Cell:
    if name == "options":
        return options(case.strategy)
    value = case.label if name == "strategy" else getattr(case, name)
    return value if isinstance(value, str | int | float | None) else str(value)


def _empty_row(
    case: Case, keys: Sequence[str], names: Iterable[str]
) -> dict[str, Cell | Summary]:
    row: dict[str, Cell | Summary] = {name: _value(case, name) for name in keys}
    row.update(dict.fromkeys(names))
    return row


def _noun(records: Sequence[Record | None]) -> str:
    """Return what a column counts: workers as soon as one rank was a CPU process, else GPUs."""
    kinds = {
        rank.device_kind
        for record in records
        if record is not None
        for rank in record.ranks
    }
    return "worker" if "cpu" in kinds else "GPU"


def _summary(record: Record, metric: str) -> Summary:
    if metric in METRICS:
        return measure(runs(record), METRICS[metric])
    value = FACTS[metric](record)
    return Summary(0 if value is None else 1, value)


def _cell(each: CaseStatus, metric: str) -> Summary | str | None:
    if each.status == "ok" and each.record is not None:
        return _summary(each.record, metric)
    match each.status:
        case "oom" | "pruned":
            return "#"
        case "failed" | "invalid":
            return each.cause
        case _:
            return each.status


def _about(metric: str, summaries: Sequence[Summary], hidden: int) -> str:
    measured = [each for each in summaries if each.mean is not None]
    says = [f"{metric} in {unit(metric)}"]
    if measured:
        numbers = sorted({each.n for each in measured})
        says.append(
            f"mean of n = {'-'.join(map(str, numbers[:: max(1, len(numbers) - 1)]))}"
        )
        says.append(_spread(measured))
    says.append("# = does not fit in memory")
    if hidden:
        says.append(f"not shown, case.json is damaged: {counted(hidden, 'case')}")
    return "; ".join(says)


def _spread(measured: Sequence[Summary]) -> str:
    shares = [
        100 * (each.ci95_high - each.mean) / each.mean
        for each in measured
        if each.ci95_high is not None and each.mean
    ]
    if not shares:
        return "no interval from single samples"
    widest = max(shares)
    return (
        f"95 % intervals up to ±{widest:.0f} %"
        if widest >= 10
        else (f"95 % intervals up to ±{widest:.1f} %")
    )
