"""The stopwatch: what its window holds, and what ranks' times add up to."""

import gc
import time
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from jobs.timing import ClockMarks, EventMarks, Stopwatch, slowest
from kernels.engine import OnToken

CPU = torch.device("cpu")


def watch(tokens: int, **options: object) -> Stopwatch:
    defaults: dict[str, object] = {"meet": lambda: None, "listener": lambda index: None}
    return Stopwatch(CPU, tokens, **{**defaults, **options})  # type: ignore[arg-type]


def test_each_token_gets_its_time_since_the_start() -> None:
    def work(on_token: OnToken) -> str:
        for index in range(3):
            time.sleep(0.02)
            on_token(index)
        time.sleep(0.05)
        return "ids"

    result, seconds = watch(3).time(work)
    assert result == "ids"
    assert len(seconds) == 3
    assert seconds[0] >= 0.02
    assert all(b - a >= 0.02 for a, b in pairwise(seconds))


def test_waiting_for_other_ranks_is_not_measured() -> None:
    order = []

    def meet() -> None:
        time.sleep(0.2)
        order.append("meet")

    def work(on_token: OnToken) -> None:
        order.append("work")
        on_token(0)

    start = time.perf_counter()
    _, seconds = watch(1, meet=meet).time(work)
    assert order == ["meet", "work"]
    assert seconds[0] <= time.perf_counter() - start - 0.2


def test_of_several_marks_of_a_token_the_last_counts() -> None:
    def work(on_token: OnToken) -> None:
        on_token(0)
        time.sleep(0.05)
        on_token(0)

    _, seconds = watch(1).time(work)
    assert seconds[0] >= 0.05


def test_tokens_that_were_never_reached_have_no_time() -> None:
    _, seconds = watch(5).time(lambda on_token: on_token(0))
    assert len(seconds) == 1


def test_the_listener_hears_every_token() -> None:
    heard: list[int] = []

    def work(on_token: OnToken) -> None:
        on_token(0)
        on_token(1)

    watch(2, listener=heard.append).time(work)
    assert heard == [0, 1]


def test_garbage_is_not_collected_inside_the_window() -> None:
    collecting: list[bool] = []
    watch(1).time(lambda on_token: collecting.append(gc.isenabled()))
    assert collecting == [False]
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_failure() -> None:
    def work(on_token: OnToken) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="luck"):
        watch(1).time(work)
    assert gc.isenabled()


def test_the_slowest_rank_is_the_truth_token_by_token() -> None:
    sample = slowest([[1.0, 2.0, 3.5], [1.5, 1.75, 3.0]])
    assert sample.token_s == [1.5, 2.0, 3.5]
    assert sample.skew_s == 0.5


def test_ranks_are_never_pooled() -> None:
    one = slowest([[1.0, 2.0]])
    assert slowest([[1.0, 2.0]] * 4) == one


def test_a_rank_without_rows_has_no_say() -> None:
    sample = slowest([[1.0, 2.0], []])
    assert (sample.token_s, sample.skew_s) == ([1.0, 2.0], 0.0)


def test_a_replica_that_ended_early_stays_at_its_last_token() -> None:
    sample = slowest([[3.0, 4.0], [1.0, 2.0, 3.0]])
    assert sample.token_s == [3.0, 4.0, 4.0]
    assert sample.skew_s == 1.0


def test_no_times_at_all_are_no_sample() -> None:
    with pytest.raises(ValidationError, match="at least one time"):
        slowest([[], []])


@pytest.mark.gpu
def test_events_measure_the_gpus_work_without_waiting_for_it() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    issued: list[float] = []

    def work(on_token: OnToken) -> None:
        start = time.perf_counter()
        for index in range(4):
            for _ in range(10):
                matrix @ matrix
            on_token(index)
        issued.append(time.perf_counter() - start)

    stopwatch = Stopwatch(device, 4, lambda: None, lambda index: None)
    stopwatch.time(work)
    began = time.perf_counter()
    _, seconds = stopwatch.time(work)
    elapsed_s = time.perf_counter() - began
    assert len(seconds) == 4
    assert seconds == sorted(seconds)
    # In seconds, as the clock on the wall has them.
    assert elapsed_s / 2 < seconds[-1] <= elapsed_s
    # Issuing is over long before the work is: nothing in the window waited.
    assert issued[1] < seconds[-1]


def test_both_kinds_of_marks_offer_the_same() -> None:
    offered = {name for name in dir(ClockMarks) if not name.startswith("_")}
    assert offered == {name for name in dir(EventMarks) if not name.startswith("_")}
