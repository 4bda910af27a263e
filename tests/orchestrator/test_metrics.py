"""Each number against its definition, by hand."""

import math
from statistics import stdev

import pytest

from kernels.strategies import DataParallel, Parallel, TensorParallel
from orchestrator.record import Record
from orchestrator.tables.metrics import FACTS, METRICS, measure, runs, summarise, t95
from tests.orchestrator.made import a_case, a_rank, a_record, a_sample

# Two sequences, four tokens each: the first after 2 s, then 0.5 s, 0.5 s and 1 s.
SAMPLE = a_sample(2.0, 2.5, 3.0, 4.0, skew_s=0.25)
RECORD = a_record(
    a_case(gpus=2, batch_size=2, new_tokens=4), samples=[SAMPLE], output_tokens=8,
    prompt_lengths=[3, 5],
)  # fmt: skip


def value(name: str, record: Record = RECORD) -> float | None:
    return measure(runs(record), METRICS[name]).mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("output_tok_per_s", 8 / 4),
        ("decode_tok_per_s", (8 - 2) / (4 - 2)),
        ("seq_tok_per_s", 8 / 2 / 4),
        ("steps_per_s", 3 / 2),
        ("prefill_tok_per_s", 8 / 2),
        ("ttft_s", 2.0),
        ("tpot_s", 2 / 3),
        ("itl_p50_s", 0.5),
        ("generate_s", 4.0),
        ("skew_s", 0.25),
    ],
)
def test_a_metric_is_what_its_definition_says(name: str, expected: float) -> None:
    assert value(name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("load_s", 1.5), ("peak_memory_bytes", 1001), ("peak_reserved_bytes", 2001),
        ("weight_bytes", 500),
    ],
)  # fmt: skip
def test_a_fact_is_that_of_the_slowest_or_fullest_rank(
    name: str, expected: float
) -> None:
    assert FACTS[name](RECORD) == expected


def test_one_token_has_no_time_between_tokens() -> None:
    record = a_record(a_case(new_tokens=1), samples=[a_sample(2.0)], output_tokens=2)
    for name in ("tpot_s", "decode_tok_per_s", "steps_per_s", "itl_p50_s", "itl_p95_s"):
        assert value(name, record) is None
    assert value("output_tok_per_s", record) == 1.0


def test_no_time_at_all_gives_no_rate() -> None:
    record = a_record(a_case(), samples=[a_sample(0.0, 0.0, 0.0)])
    for name in (
        "output_tok_per_s",
        "decode_tok_per_s",
        "prefill_tok_per_s",
        "steps_per_s",
    ):
        assert value(name, record) is None


def test_percentiles_need_gaps_enough_to_mean_something() -> None:
    def record(gaps: int) -> Record:
        times = [float(step) ** 1.1 for step in range(gaps + 1)]
        return a_record(a_case(new_tokens=gaps + 1), samples=[a_sample(*times)])

    assert value("itl_p95_s", record(19)) is None
    assert value("itl_p95_s", record(20)) is not None
    assert value("itl_p99_s", record(99)) is None
    assert value("itl_p99_s", record(100)) is not None


def test_percentiles_are_interpolated_as_numpy_does() -> None:
    numpy = pytest.importorskip("numpy")
    times = [0.0, *(math.exp(0.05 * step) for step in range(150))]
    record = a_record(a_case(new_tokens=151), samples=[a_sample(*times)])
    gaps = numpy.diff(times)
    for name, percent in (("itl_p50_s", 50), ("itl_p95_s", 95), ("itl_p99_s", 99)):
        assert value(name, record) == pytest.approx(numpy.percentile(gaps, percent))


def test_every_sequence_in_flight_and_every_replica_counts() -> None:
    case = a_case()
    strategy = Parallel(tensor=TensorParallel(degree=1), data=DataParallel(degree=2))
    record = a_record(
        case.model_copy(update={"strategy": strategy, "gpus": 2}), samples=[SAMPLE],
        output_tokens=16,
    )  # fmt: skip
    assert value("seq_tok_per_s", record) == 16 / 4 / 4
    assert value("decode_tok_per_s", record) == (16 - 4) / 2


def test_n_is_the_number_of_samples_not_of_ranks_or_tokens() -> None:
    record = a_record(a_case(gpus=4), ranks=[a_rank(rank) for rank in range(4)])
    assert measure(runs(record), METRICS["ttft_s"]).n == 3


def test_a_metric_that_one_sample_leaves_undefined_is_absent() -> None:
    samples = [a_sample(1.0, 2.0), a_sample(1.0, 1.0)]
    record = a_record(a_case(new_tokens=2), samples=samples)
    found = measure(runs(record), METRICS["decode_tok_per_s"])
    assert (found.n, found.mean, found.ci95_low) == (0, None, None)


def test_the_interval_is_student_s() -> None:
    # NIST e-Handbook 1.3.6.7.2: t(0.975, 2) = 4.303
    found = summarise([1.0, 2.0, 3.0])
    half = 4.303 * stdev([1.0, 2.0, 3.0]) / math.sqrt(3)
    assert found.mean == 2.0
    assert found.ci95_low == pytest.approx(2.0 - half)
    assert found.ci95_high == pytest.approx(2.0 + half)


def test_one_sample_has_a_mean_and_no_interval() -> None:
    assert summarise([5.0]).mean == 5.0
    assert summarise([5.0]).ci95_low is None
    assert summarise([]).mean is None


@pytest.mark.parametrize(
    ("degrees", "point"),
    [(1, 12.706), (4, 2.776), (30, 2.042), (31, 2.0395), (60, 2.0003), (1000, 1.9623)],
)
def test_the_points_of_student_s_t_are_right_also_beyond_the_table(
    degrees: int, point: float
) -> None:
    assert t95(degrees) == pytest.approx(point, abs=2e-4)


def test_every_metric_and_fact_says_its_definition() -> None:
    for name, function in (METRICS | FACTS).items():
        assert function.__name__ == name
        assert function.__doc__
