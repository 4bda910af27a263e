"""`balance: profiled`: the layers of each stage from what the ranks found."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.profiling.balance import Found, cache_folder, split_for, with_profiled_split
from kernels.pipeline.layer_costs import LayerTimes, Load
from kernels.pipeline.partition import Link, PartitionError
from kernels.shapes import ModelShape
from kernels.strategies import ModelParallel, Parallel, PipelineParallel, TensorParallel
from kernels.world import World
from orchestrator.case import Case

SHAPE = ModelShape(
    dim=32, n_layers=8, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=40_000
)
LOAD = Load(dtype="float32", rows=1, rows_in_flight=2, context=16)
TWO = Parallel(
    pipeline=PipelineParallel(
        degree=2, schedule="async", micro_batches=2, balance="profiled"
    )
)


def found(
    name: str = "slow", layer_s: float = 1.0, head_s: float = 0.1, **more: float
) -> Found:
    times = LayerTimes(layer_s=layer_s, embedding_s=0.1, head_s=head_s)
    return Found(name=name, times=times, **({"memory_bytes": math.inf} | more))


def case(**changes: Any) -> Case:
    fields = {"model": "toy", "random": SHAPE, "label": "pipeline", "strategy": TWO}
    return Case(**(fields | {"gpus": 2, "dtype": "float32"} | changes))


def test_equal_devices_share_the_layers_equally() -> None:
    assert split_for(TWO, SHAPE, LOAD, [found()] * 2, Link()) == (4, 4)


def test_a_faster_device_takes_more_layers() -> None:
    pair = [found(), found("fast", 1 / 3)]
    assert split_for(TWO, SHAPE, LOAD, pair, Link()) == (2, 6)


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    pair = [found(head_s=4.0)] * 2
    assert split_for(TWO, SHAPE, LOAD, pair, Link()) == (6, 2)


def test_one_disturbed_profile_does_not_make_its_device_a_slow_one() -> None:
    three = Parallel(pipeline=PipelineParallel(degree=3, schedule="gpipe"))
    ranks = [found(), found(layer_s=9.0), found()]
    assert sorted(split_for(three, SHAPE, LOAD, ranks, Link())) == [2, 3, 3]


def test_a_device_s_memory_is_honoured() -> None:
    small = 4 * (SHAPE.vocab_size * 32 + 30_000)
    pair = [found(memory_bytes=small), found()]
    assert split_for(TWO, SHAPE, LOAD, pair, Link())[0] < 4


def test_what_fits_nowhere_is_refused() -> None:
    with pytest.raises(PartitionError, match="must fit"):
        split_for(TWO, SHAPE, LOAD, [found(memory_bytes=10)] * 2, Link())


def test_a_stage_of_two_shards_is_as_fast_as_the_slower_one() -> None:
    sharded = Parallel(
        pipeline=PipelineParallel(degree=2), tensor=TensorParallel(degree=2)
    )
    four = [found(), found(), found("fast", 1 / 3), found("fast", 1 / 3)]
    assert split_for(sharded, SHAPE, LOAD, four, Link()) == (2, 6)


def gatherer_of_one(_world: World) -> Callable[[Found], list[Found]]:
    return lambda mine: [mine, mine]


def test_a_profile_is_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    strategy = with_profiled_split(case(), SHAPE, 16, World(), gatherer_of_one)
    assert len(strategy.split) == 2
    assert sum(strategy.split) == 8
    (file,) = cache_folder().glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["key"]["shape"]["vocab_size"] == 40_000
    # A head as heavy as 20 layers, as if it had been measured: the kept profile is believed.
    kept["times"] = {"layer_s": 1.0, "embedding_s": 0.1, "head_s": 20.0}
    file.write_text(json.dumps(kept))
    assert with_profiled_split(case(), SHAPE, 16, World(), gatherer_of_one).split == (
        7,
        1,
    )
    file.write_text("{")
    again = with_profiled_split(case(), SHAPE, 16, World(), gatherer_of_one)
    assert sum(again.split) == 8
    assert json.loads(file.read_text())["times"]["layer_s"] != 1.0


@pytest.mark.parametrize(
    "model",
    [
        ModelParallel(degree=2),
        ModelParallel(degree=2, split=(3, 5)),
        ModelParallel(degree=1, balance="profiled"),
    ],
)
def test_only_a_profiled_split_of_several_stages_needs_a_profile(
    model: ModelParallel,
) -> None:
    assert case().strategy.needs_profile
    assert not Parallel(model=model).needs_profile


def test_a_cache_that_cannot_be_written_is_told_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "orch").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (
        sum(with_profiled_split(case(), SHAPE, 16, World(), gatherer_of_one).split) == 8
    )
    assert "the profile is not kept" in capsys.readouterr().err
