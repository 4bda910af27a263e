"""A copy of the checkout in which jobs.launch is the quick one, and `orch` in it as a process.

What is tested is all real: the command line, the ledger, the lock, the processes. Only
what a job works through is replaced, so that a test takes seconds.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[2]

GRID = """
study: quick
cluster: local
models:
  toy: {random: {dim: 64, n_layers: 4, n_heads: 8, n_kv_heads: 4, ffn_dim: 128, vocab_size: 256}}
fixed: {dtype: float32, batch_size: 2, prompt_tokens: 8, new_tokens: 4}
axes:
  model: toy
  strategy: [model, tensor]
  gpus: [1, 2]
"""


@dataclass
class Sandbox:
    """One copy, with a results folder and a machine lock of its own."""

    root: Path
    grid: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.root / "results"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", *arguments]

    def environ(self, **more: str) -> dict[str, str]:
        own = {
            "ORCH_RESULTS": str(self.results),
            "ORCH_MACHINE_LOCK": str(self.root / "machine.lock"),
            "PYTHONPATH": "",
        }
        return os.environ | own | self.environment | more

    def orch(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.root, env=self.environ(**more),
            text=True, capture_output=True, timeout=240,
        )  # fmt: skip

    def start(self, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments), cwd=self.root, env=self.environ(**more),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def submit(
        self, *more: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.orch("submit", "--grid", str(self.grid), *more, **environment)

    def runs(self, study: str = "quick") -> list[str]:
        """Lines of runs.log: each start of a case, and each end."""
        log = self.results / study / "runs.log"
        return log.read_text().splitlines() if log.exists() else []

    def starts(self, study: str = "quick") -> list[str]:
        """Case ids in the order they were started."""
        return [line.split()[1] for line in self.runs(study) if " done " not in line]

    def end_jobs(self) -> None:
        """Kill every process of this sandbox's jobs; they have its path in their arguments."""
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or ()
            if any(str(self.root) in each for each in arguments):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def records(self, study: str = "quick") -> list[Path]:
        return sorted(self.results.glob(f"{study}/cases/*/attempt-*/record.json"))


def make_sandbox(root: Path) -> Sandbox:
    """A fresh copy under `root`."""
    ignore = shutil.ignore_patterns("__pycache__")
    for room in ("orchestrator", "kernels", "templates"):
        shutil.copytree(CHECKOUT / room, root / room, ignore=ignore)
    shutil.copytree(CHECKOUT / "jobs" / "clusters", root / "jobs" / "clusters")
    (root / "jobs" / "__init__.py").touch()
    quick = Path(__file__).with_name("quick_launch.py")
    shutil.copy(quick, root / "jobs" / "launch.py")
    grid = root / "quick.yaml"
    grid.write_text(GRID)
    return Sandbox(root, grid)


def wait_until(true: Callable[[], object], what: str, limit_s: float = 120) -> None:
    """Return when it is true; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)
