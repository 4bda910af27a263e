"""The traced repetition: its facts, its files, flame graphs, and a real case of two ranks."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from jobs.tracing import flame, trace
from jobs.tracing.trace import Traced
from kernels.generate import Batch, Generation
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape
from kernels.spans import Span, of_events
from kernels.strategies import (
    ModelParallel,
    Parallel,
    PipelineParallel,
    Single,
    Strategy,
)
from kernels.weights import RandomWeights
from kernels.world import World
from orchestrator.case import Case
from orchestrator.record import read_record
from orchestrator.study.files import Attempt

CHECKOUT = Path(__file__).resolve().parents[2]
SHAPE = ModelShape(
    dim=32, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=64
)
TWO_STAGES = Parallel(model=ModelParallel(degree=2))
STACKS = {
    ("a.py(1): generate",): 10.0,
    ("a.py(1): generate", "aten::mm <x>"): 30.0,
    ("a.py(1): generate", "aten::add; it"): 60.0,
}


def a_case(spread: Strategy = TWO_STAGES, **changes: object) -> Case:
    values = {"model": "toy", "random": SHAPE, "label": "any", "new_tokens": 3}
    values |= {"gpus": spread.world_size, "dtype": "float32", "prompt_tokens": 8}
    return Case(**(values | {"strategy": spread} | changes))  # type: ignore[arg-type]


def span(rank: int, token: int, start_s: float, end_s: float) -> Span:
    return Span(
        rank=rank,
        kind="compute",
        name="layer",
        start_s=start_s,
        end_s=end_s,
        token=token,
    )


# Two ranks that take turns, the second one for twice as long; the prefill takes 10 s.
TURNS = [
    Traced(spans=[span(0, 0, 0, 10), span(0, 1, 20, 21), span(0, 2, 23, 24)]),
    Traced(spans=[span(1, 0, 10, 20), span(1, 1, 21, 23), span(1, 2, 24, 26)]),
]


def test_the_idle_share_is_that_of_decode_over_all_ranks() -> None:
    facts = trace.facts(a_case(), 8, TURNS)
    assert facts is not None
    assert facts.window_s == 6
    assert facts.idle_share_of_ranks == pytest.approx([4 / 6, 2 / 6])
    assert facts.idle_share == pytest.approx(0.5)
    assert facts.schedule_idle_share == pytest.approx(0.5)


def test_a_pipeline_s_facts_hold_what_its_schedule_costs() -> None:
    gpipe = Parallel(
        pipeline=PipelineParallel(degree=2, schedule="gpipe", micro_batches=4)
    )
    facts = trace.facts(a_case(gpipe), 8, TURNS)
    assert facts is not None
    assert facts.schedule_idle_share == pytest.approx(1 / 5)


def test_trace_and_flame_graphs_are_written_for_all_ranks(tmp_path: Path) -> None:
    attempt = Attempt("x", 1, tmp_path)
    traced = [Traced(spans=each.spans, stacks=STACKS) for each in TURNS]
    written = trace.write(attempt, a_case(), traced)
    assert {file.name for file in written} == {
        "trace.json.gz", "flame.svg", "flame.folded", "flame-0.svg", "flame-0.folded",
        "flame-1.svg", "flame-1.folded",
    }  # fmt: skip
    spans = of_events(json.loads(gzip.decompress(attempt.trace_file.read_bytes())))
    assert [each.rank for each in spans] == [0, 0, 0, 1, 1, 1]
    total = sum(
        int(line.rsplit(" ", 1)[1]) for line in lines(tmp_path / "flame.folded")
    )
    assert total == 200


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_folded_stacks_have_one_line_each_and_no_stray_semicolon() -> None:
    assert flame.folded(STACKS).splitlines() == [
        "a.py(1): generate 10",
        "a.py(1): generate;aten::add, it 60",
        "a.py(1): generate;aten::mm <x> 30",
    ]


def test_a_flame_graph_is_a_drawing_whose_widths_are_times() -> None:
    root = ElementTree.fromstring(flame.drawn(STACKS, "a <title> & more"))
    space = "{http://www.w3.org/2000/svg}"
    widths = {}
    for frame in root.iter(f"{space}g"):
        title, box = frame.find(f"{space}title"), frame.find(f"{space}rect")
        assert title is not None
        assert title.text is not None
        assert box is not None
        widths[title.text.rsplit(": ", 1)[0]] = float(box.attrib["width"])
    assert widths == {
        "all": 1200,
        "a.py(1): generate": 1200,
        "aten::mm <x>": 360,
        "aten::add; it": 720,
    }
    assert any(text.text == "a <title> & more" for text in root.iter(f"{space}text"))


def test_a_flame_graph_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        flame.drawn({}, "x")


def test_the_profiler_sees_operators_under_the_layers_of_generate() -> None:
    weights = RandomWeights(SHAPE, 0, torch.float32)
    engine = parallelize(
        SHAPE, Parallel(single=Single()), World(), torch.float32, weights
    )
    batch, generation = Batch.of([[1, 2, 3]]), Generation(new_tokens=2)
    engine.generate(batch, generation)
    stacks = flame.profiled(lambda: engine.generate(batch, generation), on_gpu=False)
    assert stacks
    assert all(stack[0].endswith("): generate") for stack in stacks)
    multiplied = [stack for stack in stacks if stack[-1] == "aten::addmm"] or [
        stack for stack in stacks if stack[-1] in ("aten::mm", "aten::linear")
    ]
    assert multiplied
    assert any("kernels/llama.py" in frame for frame in multiplied[0])
    assert not any(" object at 0x" in frame for stack in stacks for frame in stack)


def test_a_traced_pipeline_of_two_ranks_leaves_files_and_facts(tmp_path: Path) -> None:
    """Its layers shared out by a profile, which is kept."""
    pipeline = Parallel(
        pipeline=PipelineParallel(
            degree=2, schedule="async", micro_batches=2, in_flight=8, balance="profiled"
        )
    )
    case = a_case(pipeline, trace="flame", repeats=1)
    file = tmp_path / "case.json"
    file.write_text(case.model_dump_json())
    folder = tmp_path / case.case_id / "attempt-1"
    folder.mkdir(parents=True)
    words = ["--standalone", "--nproc-per-node=2", "-m", "jobs.bench", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words,
         "--attempt-dir", str(folder)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT),
                          "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_record((folder / "record.json").read_text(), "record.json")
    assert record.status == "ok"
    assert record.output_tokens == 8 * 3
    assert record.trace is not None
    assert len(record.trace.idle_share_of_ranks) == 2
    assert 0 < record.trace.idle_share < 1
    spans = of_events(
        json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    )
    layers = {
        (each.rank, each.token, each.micro_batch, each.layer)
        for each in spans
        if each.name == "layer"
    }
    split = record.split
    assert sum(split) == SHAPE.n_layers
    layers_of = [range(split[0]), range(split[0], SHAPE.n_layers)]
    assert layers == {
        (rank, token, micro_batch, layer)
        for rank in (0, 1)
        for token in range(3)
        for micro_batch in range(2)
        for layer in layers_of[rank]
    }
    assert len(list((tmp_path / "cache").rglob("profiles/*.json"))) == 1
    assert (folder / "flame-1.svg").is_file()
