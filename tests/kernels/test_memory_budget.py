"""A model larger than the memory it may take really runs, in a real process, and keeps to it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import larger_than_memory
import pytest
import torch

from kernels.offload.device_budget import BudgetError, DeviceBudget
from kernels.placement import Strategy
from kernels.shapes import weight_bytes

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


def test_a_model_of_four_times_the_budget_runs_within_a_tenth_of_it() -> None:
    model = weight_bytes(larger_than_memory.SHAPE, "float32")
    ids, peak = run("zero-offload", str(model // 4))
    assert peak <= model / 4 * 1.1
    expected, whole = run("single")
    assert ids == expected
    assert whole > model, "the measure would not notice a model in memory"


def test_more_than_the_budget_is_an_error() -> None:
    cpu = torch.device("cpu")
    names = ("zero-offload",)
    strategy = Strategy(names=names, source="disk", memory_budget_bytes=2**20)
    budget = DeviceBudget(cpu, strategy, local_size=1)
    with pytest.raises(BudgetError, match=r"the process held \d+ bytes at its peak"):
        budget.check()
    DeviceBudget(cpu, Strategy(names=names), local_size=1).check()
