"""One definition of each number, derived from a record's raw times.

Notation: a *sample* is one measured generation of the whole batch, on the slowest rank's clock;
`t[i]` its seconds from the common start to token i of every sequence, `T` the tokens of each
sequence, `S` the sequences of one generation, `N` the tokens generated over all of them.

A metric has a value per sample, and the samples are the statistics' n: never tokens, never ranks.
A fact has one value per attempt. None stands for "not defined here".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import sub

from orchestrator.record import RankFacts, Record, Sample

Value = float | None


@dataclass(frozen=True)
class MeasuredSample:
    """One sample and the record it belongs to."""

    record: Record
    sample: Sample

    @property
    def times(self) -> list[float]:
        """t."""
        return self.sample.token_s

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""
        return self.times[-1] - self.times[0]

    @cached_property
    def gaps(self) -> list[float]:
        """Seconds between tokens, shortest first."""
        return sorted(map(sub, self.times[1:], self.times))


Metric = Callable[[MeasuredSample], Value]
Fact = Callable[[Record], Value]

METRICS: dict[str, Metric] = {}
"""Every metric by name; its docstring is its definition."""
FACTS: dict[str, Fact] = {}
"""Every per-attempt number by name."""


def _metric(function: Metric) -> Metric:
    METRICS[function.__name__] = function
    return function


def _fact(function: Fact) -> Fact:
    FACTS[function.__name__] = function
    return function


def sequences(record: Record) -> int:
    """S: all sequences of one generation, those of every replica and all in flight."""
    return record.case.strategy.sequences(record.case.batch_size)


def _ratio(amount: float, seconds: float) -> Value:
    return amount / seconds if amount > 0 and seconds > 0 else None


@_metric
def output_tok_per_s(run: MeasuredSample) -> Value:
    """N / t[T-1]: tokens of the whole batch per second, prefill included."""
    return _ratio(run.record.output_tokens, run.times[-1])


@_metric
def decode_tok_per_s(run: MeasuredSample) -> Value:
    """(N - S) / (t[T-1] - t[0]): tokens of the whole batch per second after the first one."""
    return _ratio(run.record.output_tokens - sequences(run.record), run.decode_s)


@_metric
def seq_tok_per_s(run: MeasuredSample) -> Value:
    """N / S / t[T-1]: tokens per second that the reader of one sequence sees."""
    return _ratio(run.record.output_tokens / sequences(run.record), run.times[-1])


@_metric
def steps_per_s(run: MeasuredSample) -> Value:
    """(T - 1) / (t[T-1] - t[0]): decode steps per second, however many sequences."""
    return _ratio(len(run.times) - 1, run.decode_s)


@_metric
def prefill_tok_per_s(run: MeasuredSample) -> Value:
    """Prompt tokens, padding not counted, / t[0]."""
    return _ratio(sum(run.record.prompt_lengths), run.times[0])


@_metric
def ttft_s(run: MeasuredSample) -> Value:
    """t[0]: time to first token, which is the prefill and its choice."""
    return run.times[0]


@_metric
def tpot_s(run: MeasuredSample) -> Value:
    """(t[T-1] - t[0]) / (T - 1): time per output token after the first."""
    steps = len(run.times) - 1
    return run.decode_s / steps if steps else None


@_metric
def itl_p50_s(run: MeasuredSample) -> Value:
    """Median of the gaps between tokens, t[i] - t[i-1]; needs 2 of them."""
    return _gap_quantile(run, 50)


@_metric
def itl_p95_s(run: MeasuredSample) -> Value:
    """95th percentile of the gaps between tokens; needs 20 of them."""
    return _gap_quantile(run, 95)


@_metric
def itl_p99_s(run: MeasuredSample) -> Value:
    """99th percentile of the gaps between tokens; needs 100 of them."""
    return _gap_quantile(run, 99)


@_metric
def generate_s(run: MeasuredSample) -> Value:
    """t[T-1]: the whole generation."""
    return run.times[-1]


@_metric
def skew_s(run: MeasuredSample) -> Value:
    """Slowest rank's last token minus the fastest rank's."""
    return run.sample.skew_s


def _gap_quantile(run: MeasuredSample, percent: int) -> Value:
    gaps = run.gaps
    # With fewer gaps the quantile would be the maximum under another name.
    if len(gaps) * (100 - percent) < 100:
        return None
    below, rest = divmod(percent * (len(gaps) - 1), 100)
    return gaps[below] + rest / 100 * (gaps[below + (rest > 0)] - gaps[below])


def _fullest(record: Record, of: Callable[[RankFacts], float]) -> Value:
    return max(map(of, record.ranks), default=None)


@_fact
def load_s(record: Record) -> Value:
    """Seconds of loading the weights, on the slowest rank."""
    return _fullest(record, lambda rank: rank.load_s)


@_fact
def peak_memory_bytes(record: Record) -> Value:
    """Peak of the fullest rank: CUDA allocated; on CPU the process's resident set."""
    return _fullest(record, lambda rank: rank.peak_memory_bytes)


@_fact
def peak_reserved_bytes(record: Record) -> Value:
    """Peak of the fullest rank: CUDA reserved; on CPU the same as peak_memory_bytes."""
    return _fullest(record, lambda rank: rank.peak_reserved_bytes)


@_fact
def weight_bytes(record: Record) -> Value:
    """Parameters that the fullest rank holds."""
    return _fullest(record, lambda rank: rank.weight_bytes)


@_fact
def idle_share(record: Record) -> Value:
    """Of all ranks' time in decode, the part without computation; of a traced repetition."""
    return record.trace.idle_share if record.trace else None


@_fact
def schedule_idle_share(record: Record) -> Value:
    """The idle share that the schedule alone would cost: equal stages, communication free."""
    return record.trace.schedule_idle_share if record.trace else None


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over an attempt's samples."""

    n: int
    mean: Value = None
    ci95_low: Value = None
    """Lower end of the mean's 95 % interval by Student's t; None below two samples."""
    ci95_high: Value = None


# Two-sided 95 % points of Student's t for 1, 2, … 30 degrees of freedom (NIST/SEMATECH
# e-Handbook of Statistical Methods, 1.3.6.7.2).
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t95(degrees: int) -> float:
    """Two-sided 95 % point of Student's t for that many degrees of freedom."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    # Abramowitz and Stegun 26.7.5; off by less than 0.0002 from 31 degrees on.
    z = 1.959964
    first = (z**3 + z) / (4 * degrees)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return z + first + second


def summarise(values: Sequence[float]) -> Summary:
    """Mean and its 95 % interval; no interval of fewer than two values."""
    n = len(values)
    if n == 0:
        return Summary(0)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean)
    # Not statistics.stdev, whose exact fractions cost 10,000 cases seconds.
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t95(n - 1) * math.sqrt(variance / n)
    return Summary(n, mean, mean - half, mean + half)


def runs(record: Record) -> list[MeasuredSample]:
    """The record's samples."""
    return [MeasuredSample(record, sample) for sample in record.samples]


def measure(samples: Sequence[MeasuredSample], metric: Metric) -> Summary:
    """The metric over an attempt's samples; nothing if one of them leaves it undefined."""
    values = [metric(run) for run in samples]
    known = [value for value in values if value is not None]
    return summarise(known if len(known) == len(values) else [])
