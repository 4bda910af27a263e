"""A model larger than the memory it may take really runs, in a real process, and keeps to it."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import larger_than_memory
import pytest
import torch
from answers import SHAPES, batch_of
from larger_than_memory import shape_of
from offloaded import build

from kernels import memory
from kernels.generate import Generation
from kernels.offload.budget import BudgetError, DeviceBudget
from kernels.offload.host_cache import LAYERS_ON_DEVICE
from kernels.offload.plan import OffloadError, working_bytes
from kernels.placement import place
from kernels.shapes import weight_bytes
from kernels.strategies import Parallel, Single, ZeroOffload
from kernels.world import World
from kernels.zero_offload import OffloadEngine

SCRIPT = Path(larger_than_memory.__file__)
CHECKOUT = SCRIPT.parent.parent.parent


def run(*args: str) -> tuple[list[list[int]], int]:
    """The ids that the script printed, and the most memory its process held."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *args],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        # The kernel's own peak; a process may have its forgotten, so it is looked at often.
        peak = max(peak, peak_of(process.pid))
        time.sleep(0.02)
    output, _ = process.communicate()
    assert process.returncode == 0
    ids: list[list[int]] = json.loads(output)
    return ids, peak


def peak_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peaks[0].split()[1]) * 1024 if peaks else 0


ROOM_BYTES = 180 * 2**20
"""What the budget leaves beside the process itself for weights, cache and workspaces."""


def test_a_model_of_four_times_the_budget_runs_within_a_tenth_of_it() -> None:
    _, bare = run("1", "single")  # builds of torch differ by hundreds of megabytes
    budget = bare + ROOM_BYTES
    one, two = (weight_bytes(shape_of(layers), "float32") for layers in (1, 2))
    layers = str(1 + math.ceil((4 * budget - one) / (two - one)))
    ids, peak = run(layers, "zero-offload", str(budget))
    assert peak <= budget * 1.1
    expected, whole = run(layers, "single")
    assert ids == expected
    assert whole > 4 * budget, "the measure would not notice a model in memory"


def test_more_than_the_budget_is_an_error() -> None:
    cpu = torch.device("cpu")
    options = ZeroOffload(source="disk", memory_budget_bytes=2**20)
    budget = DeviceBudget(cpu, options, local_size=1)
    with pytest.raises(BudgetError, match=r"the process held \d+ bytes at its peak"):
        budget.check()
    DeviceBudget(cpu, ZeroOffload(), local_size=1).check()


MISSING = re.compile(r"raise memory_budget_bytes by (\d+)")
SHAPE, ROWS, NEW_TOKENS = SHAPES["gqa"], 4, 20
BATCH = batch_of(ROWS)
Use = Callable[[OffloadEngine], object]


def generate(engine: OffloadEngine) -> None:
    engine.generate(BATCH, Generation(new_tokens=NEW_TOKENS))


def logits(engine: OffloadEngine) -> None:
    engine.logits(BATCH)


def use_within(budget_bytes: int, kv: str, use: Use) -> None:
    options = ZeroOffload(source="disk", kv=kv, memory_budget_bytes=budget_bytes)  # type: ignore[arg-type]
    engine = build(World(), "gqa", Parallel(zero_offload=options))
    try:
        use(engine)
    finally:
        engine.close()


def missing_bytes(budget_bytes: int, kv: str, use: Use) -> int:
    with pytest.raises(OffloadError) as refused:
        use_within(budget_bytes, kv, use)
    found = MISSING.search(str(refused.value))
    assert found
    return int(found[1])


def beside_weights_bytes(kv: str, use: Use) -> int:
    """What a use needs more than loading does: that much just fits, a byte less does not."""
    little = 2**20
    budget = little + missing_bytes(little, kv, lambda _: None)
    use_within(budget, kv, lambda _: None)
    needed = missing_bytes(budget, kv, use)
    use_within(budget + needed, kv, use)
    assert missing_bytes(budget + needed - 1, kv, use) == 1
    return needed


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process hold the same all the time, so that a room can fit to the byte."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: 2**20)
    monkeypatch.setattr(memory, "peak_resident_bytes", lambda: 2**20)


def activation_bytes() -> int:
    placement = place(Parallel(single=Single()), SHAPE, 0)
    return working_bytes(placement, SHAPE, ROWS, BATCH.length, 4)


def layer_cache_bytes(tokens: int) -> int:
    """Keys and values of one layer in fp32; a cache has a multiple of 8 slots."""
    slots = math.ceil(tokens / 8) * 8
    return 2 * ROWS * slots * SHAPE.n_kv_heads * SHAPE.head_dim * 4


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("kv", "layers"),
    [("device", SHAPE.n_layers), ("host", SHAPE.n_layers + LAYERS_ON_DEVICE)],
)
def test_keys_and_values_count_in_the_budget(kv: str, layers: int) -> None:
    cache = layers * layer_cache_bytes(BATCH.length + NEW_TOKENS)
    assert beside_weights_bytes(kv, generate) == activation_bytes() + cache


@pytest.mark.usefixtures("process")
def test_all_logits_count_in_the_budget() -> None:
    cache = SHAPE.n_layers * layer_cache_bytes(BATCH.length)
    numbers = ROWS * BATCH.length * SHAPE.vocab_size
    found = beside_weights_bytes("device", logits) - activation_bytes() - cache
    assert found == 3 * numbers * 4


def test_ranks_of_one_machine_share_its_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 160 * 2**20)
    strategy = Parallel(zero_offload=ZeroOffload(resident="auto"))
    build(World(), "gqa", strategy).close()
    with pytest.raises(OffloadError):
        build(dataclasses.replace(World(), local_size=2), "gqa", strategy)
