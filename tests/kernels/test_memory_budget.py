"""A model larger than the memory it may take really runs, in a real process, and keeps to it."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import larger_than_memory
import pytest
import torch
from larger_than_memory import shape_of

from kernels.offload.budget import BudgetError, DeviceBudget
from kernels.shapes import weight_bytes
from kernels.strategies import ZeroOffload

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
