"""`orch` as a person uses it on a login node of the virtual cluster, in a checkout whose
jobs.launch is the quick one: jobs take milliseconds, or QUICK_CASE_S of the profile.
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from virtual_slurm import VirtualSlurm

from tests.orchestrator.sandbox import Sandbox

PROFILE = Path(__file__).with_name("virtual.yaml")
GRID = {
    "study": "quick",
    "models": {
        "toy": {
            "random": {"dim": 64, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4,
                       "ffn_dim": 128, "vocab_size": 256}
        }
    },
    "fixed": {"dtype": "float32", "batch_size": 2, "prompt_tokens": 8, "new_tokens": 4},
    "axes": {"model": "toy", "strategy": ["model", "tensor"], "gpus": [1, 2]},
}  # fmt: skip


@dataclass
class Site:
    """A checkout, its profile of the cluster and its grid."""

    slurm: VirtualSlurm
    box: Sandbox
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.box.environment |= {
            name: self.slurm.environment[name] for name in ("SLURM_CONF", "PATH")
        }
        cluster = {} if "\n" in str(self.profile) else {"cluster": str(self.profile)}
        self.box.grid.write_text(yaml.safe_dump(GRID | cluster))
        self.change()

    @property
    def profile(self) -> Path:
        return self.box.root / "site.yaml"

    def change(self, **changes: Any) -> None:
        """Write the profile anew, with these keys."""
        self.changes |= changes
        self.profile.write_text(
            yaml.safe_dump({"extends": str(PROFILE), "poll": "1s"} | self.changes)
        )

    def name_model(self, name: str) -> None:
        """Give the grid's model another name."""
        grid = yaml.safe_load(self.box.grid.read_text())
        grid["models"] = {name: grid["models"]["toy"]}
        grid["axes"]["model"] = name
        self.box.grid.write_text(yaml.safe_dump(grid))

    def one_shape(self) -> None:
        """Leave two cases in the grid, which go out as one array."""
        grid = yaml.safe_load(self.box.grid.read_text())
        grid["axes"]["gpus"] = [1]
        self.box.grid.write_text(yaml.safe_dump(grid))

    def slow(self, seconds: float) -> None:
        """How long a case takes."""
        self.change(environment={"QUICK_CASE_S": str(seconds)})

    def status(self) -> list[dict[str, Any]]:
        """The rows of `orch status --json`."""
        done = self.box.orch("status", "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def statuses(self) -> list[str]:
        return [row["status"] for row in self.status()]

    def queue(self, *more: str) -> list[str]:
        """Ids of the jobs that wait or run, one per array task."""
        return self.slurm.command("squeue", "-h", "-r", "-o", "%i", *more).split()

    def hold(self) -> None:
        """Jobs are taken but do not start."""
        self.slurm.command("scontrol", "update", "partitionname=main", "state=down")

    def release(self) -> None:
        """Jobs start."""
        self.slurm.command("scontrol", "update", "partitionname=main", "state=up")

    def drained(self, timeout: float = 90) -> None:
        """Wait until no job is left."""
        self.slurm.wait(lambda: not self.queue(), "the queue to be empty", timeout)

    def running(self) -> list[str]:
        return self.queue("-t", "R")

    def all_run(self, count: int) -> None:
        """Wait until so many cases were started."""
        self.slurm.wait(
            lambda: len(self.box.starts()) >= count, f"{count} cases started"
        )

    def each_ran_once(self) -> None:
        """The promise: every case has exactly one valid result."""
        assert set(self.statuses()) == {"ok"}
        starts = self.box.starts()
        assert sorted(starts) == sorted(set(starts))

    def wrap(self, name: str, script: str) -> None:
        """Put a script of that name before Slurm's own command; `$REAL` is the latter."""
        folder = self.box.root / "wrapped"
        folder.mkdir(exist_ok=True)
        path = self.box.environment["PATH"]
        real = subprocess.run(
            ["which", name], env={"PATH": path}, capture_output=True, text=True
        ).stdout.strip()
        (folder / name).write_text(f"#!/bin/bash\nREAL={real}\n{script}\n")
        (folder / name).chmod(0o755)
        if not path.startswith(f"{folder}:"):
            self.box.environment["PATH"] = f"{folder}:{path}"
