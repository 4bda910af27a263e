"""The pipeline's schedules as integers: order, waits, decode_rows, idle shares."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.pipeline.schedule import (
    Flow,
    ForwardPass,
    bubble,
    decode_rows,
    decode_window,
    dependencies,
    forward_passes,
    idle_share,
    timetable,
)
from kernels.strategies import DataParallel, Parallel, PipelineParallel, Single


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    return Flow(
        schedule=draw(st.sampled_from(("sequential", "gpipe", "async"))),
        rows=draw(st.integers(1, 9)),
        prompt_tokens=draw(st.integers(1, 6)),
        new_tokens=draw(st.integers(1, 6)),
        micro_batches=draw(st.integers(1, 10)),
        prefill_micro_batches=draw(st.integers(0, 14)),
    )


def drawn(flow: Flow, stages: int) -> list[str]:
    rows = [["  ."] * 40 for _ in range(stages)]
    for entry in timetable(flow, stages):
        text = f" {entry.forward.token}{entry.forward.micro_batch}"
        assert rows[entry.stage][int(entry.start)] == "  .", "two passes at once"
        rows[entry.stage][int(entry.start)] = text
    return ["".join(row[:10]) for row in rows]


@given(flows())
def test_micro_batches_are_disjoint_and_hold_every_row_of_the_batch(flow: Flow) -> None:
    rows = [row for cache in decode_rows(flow) for row in cache]
    assert rows == list(range(flow.rows))
    assert all(decode_rows(flow))


@given(flows())
def test_every_column_of_every_row_is_computed_once_and_in_order(flow: Flow) -> None:
    columns: dict[int, list[int]] = {row: [] for row in range(flow.rows)}
    for forward in forward_passes(flow):
        for row in forward.rows:
            columns[row] += forward.columns
    written = flow.prompt_tokens + flow.new_tokens - 1
    assert all(seen == list(range(written)) for seen in columns.values())


@given(flows())
def test_every_row_gets_one_id_for_each_new_token(flow: Flow) -> None:
    tokens: dict[int, list[int]] = {row: [] for row in range(flow.rows)}
    for forward in forward_passes(flow):
        for row in forward.rows if forward.chooses else ():
            tokens[row].append(forward.token)
    assert all(seen == list(range(flow.new_tokens)) for seen in tokens.values())


@given(flows())
def test_no_pass_enters_before_the_ids_it_continues_are_back(flow: Flow) -> None:
    passes = forward_passes(flow)
    waits = dependencies(flow, passes)
    for number, (forward, after) in enumerate(zip(passes, waits, strict=True)):
        assert after < number, "a pass that waits for itself or a later one deadlocks"
        known = {
            (row, before.token)
            for before in passes[: after + 1]
            for row in (before.rows if before.chooses else ())
        }
        if forward.token:
            assert {(row, forward.token - 1) for row in forward.rows} <= known
    assert waits == sorted(waits)


@given(flows())
def test_gpipe_lets_a_token_in_only_when_all_ids_of_the_last_are_back(
    flow: Flow,
) -> None:
    if flow.schedule != "gpipe":
        return
    passes = forward_passes(flow)
    for forward, after in zip(passes, dependencies(flow, passes), strict=True):
        if forward.token:
            assert passes[after].token == forward.token - 1
            assert passes[after + 1].token == forward.token


@given(flows(), st.integers(1, 6), st.integers(0, 3), st.integers(1, 4))
def test_no_stage_is_twice_busy_and_no_pass_overtakes_at_any_size(
    flow: Flow, stages: int, hop: int, prefill: int
) -> None:
    entries = timetable(flow, stages, lambda _, p: 1 if p.token else prefill, hop)
    assert len(entries) == stages * len(forward_passes(flow))
    for stage in range(stages):
        mine = [entry for entry in entries if entry.stage == stage]
        assert [entry.forward for entry in mine] == forward_passes(flow)
        assert all(a.end <= b.start for a, b in itertools.pairwise(mine))
    for before, after in itertools.pairwise(entries):
        if before.forward == after.forward:
            assert before.end + hop <= after.start


def test_gpipe_fills_and_drains_as_its_docstring_draws() -> None:
    flow = Flow(
        schedule="gpipe", rows=3, prompt_tokens=4, new_tokens=3, micro_batches=3
    )
    assert drawn(flow, 3) == [
        " 00 01 02  .  . 10 11 12  .  .",
        "  . 00 01 02  .  . 10 11 12  .",
        "  .  . 00 01 02  .  . 10 11 12",
    ]


def test_async_has_no_barrier_as_its_docstring_draws() -> None:
    flow = Flow(
        schedule="async", rows=3, prompt_tokens=4, new_tokens=4, micro_batches=3
    )
    assert drawn(flow, 3) == [
        " 00 01 02 10 11 12 20 21 22 30",
        "  . 00 01 02 10 11 12 20 21 22",
        "  .  . 00 01 02 10 11 12 20 21",
    ]


def test_sequential_has_one_stage_at_work_at_a_time() -> None:
    flow = Flow(
        schedule="sequential", rows=3, prompt_tokens=4, new_tokens=2, micro_batches=3
    )
    assert drawn(flow, 3) == [
        " 00  .  . 10  .  .  .  .  .  .",
        "  . 00  .  . 10  .  .  .  .  .",
        "  .  . 00  .  . 10  .  .  .  .",
    ]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", range(1, 9))
def test_the_idle_share_of_gpipe_is_that_of_its_paper(stages: int, count: int) -> None:
    flow = Flow(
        schedule="gpipe", rows=8, prompt_tokens=1, new_tokens=5, micro_batches=count
    )
    assert bubble(flow, stages) == pytest.approx((stages - 1) / (count + stages - 1))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", range(1, 9))
def test_async_idles_only_where_there_are_fewer_micro_batches_than_stages(
    stages: int, count: int
) -> None:
    flow = Flow(
        schedule="async", rows=8, prompt_tokens=1, new_tokens=400, micro_batches=count
    )
    expected = max(0, stages - count) / stages
    assert bubble(flow, stages) == pytest.approx(expected, abs=0.01)


def test_more_prefill_micro_batches_than_rows_cut_the_prompts_by_columns() -> None:
    flow = Flow(
        schedule="async",
        rows=2,
        prompt_tokens=5,
        new_tokens=1,
        micro_batches=2,
        prefill_micro_batches=3,
    )
    expected = [
        ForwardPass(
            token=0, micro_batch=0, rows=range(1), columns=range(3), chooses=False
        ),
        ForwardPass(token=0, micro_batch=1, rows=range(1), columns=range(3, 5)),
        ForwardPass(token=0, micro_batch=2, rows=range(1, 2), columns=range(5)),
    ]
    assert forward_passes(flow) == expected


def test_the_decode_window_leaves_the_prefill_out() -> None:
    flow = Flow(schedule="gpipe", rows=1, prompt_tokens=1, new_tokens=2)
    entries = timetable(flow, 2, lambda _, forward: 1 if forward.token else 5)
    assert decode_window(entries) == (10, 12)
    only = Flow(schedule="gpipe", rows=1, prompt_tokens=1, new_tokens=1)
    assert decode_window(timetable(only, 2)) == (0, 2)


def test_the_idle_share_counts_only_what_lies_in_the_window() -> None:
    assert idle_share([(0, 2), (3, 6)], 1, (1, 4)) == pytest.approx(1 / 3)
    assert idle_share([(0, 2), (0, 2)], 2, (0, 2)) == 0
    assert idle_share([], 2, (3, 3)) == 0


def test_a_generation_holds_what_is_in_flight_in_every_replica() -> None:
    assert Parallel(single=Single()).sequences(4) == 4
    assert Parallel(pipeline=PipelineParallel(in_flight=16)).sequences(4) == 16
    assert (
        Parallel(
            data=DataParallel(degree=2), pipeline=PipelineParallel(in_flight=8)
        ).sequences(4)
        == 16
    )
    assert Parallel(data=DataParallel(degree=3)).sequences(4) == 12


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"new_tokens": 0}, {"micro_batches": 0}, {"schedule": "1f1b"}],
)
def test_a_flow_of_nothing_is_refused_with_its_values(wrong: dict[str, object]) -> None:
    right = {"schedule": "gpipe", "rows": 1, "prompt_tokens": 1, "new_tokens": 1}
    with pytest.raises(ValueError, match="got"):
        Flow(**(right | wrong))  # type: ignore[arg-type]
