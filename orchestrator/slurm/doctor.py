"""Compare what a Slurm cluster answers with its profile, for `orch doctor`."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.causes.slurm_states import way_out
from orchestrator.checkout import checkout
from orchestrator.checks import Check, fail, passed, warn
from orchestrator.clusters.cluster import Cluster
from orchestrator.slurm.resources import routes_for
from orchestrator.slurm.submit import clean_environment

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")


def slurm_findings(cluster: Cluster, results: Path, *, job: bool) -> Iterator[Check]:
    """Yield each check as it is made; with `job`, also run a job of a minute."""
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        yield fail(
            f"no {', '.join(missing)} here",
            "run `orch` where Slurm's commands are: a login node of the cluster",
        )
        return
    version = _ask("sbatch", "--version")[1]
    answered, config = _ask("scontrol", "show", "config")
    if not answered:
        yield fail(f"Slurm does not answer: {config}", "wait, or ask the site's staff")
        return
    yield passed(f"{version}; its controller answers")
    yield from _accounting()
    yield from _partitions(cluster)
    yield from _devices(cluster)
    yield from _arrays(cluster, config)
    if job:
        yield _try_job(cluster, results)


def _accounting() -> Iterator[Check]:
    answered, said = _ask("sacct", "-n", "-X", "-P", "-o", "JobID")
    if answered:
        yield passed("the accounting (sacct) answers")
    else:
        yield warn(
            f"no accounting: {said}",
            "orch goes by squeue and the records alone; run `orch status` within minutes of a "
            "job's death to learn why",
        )


def _partitions(cluster: Cluster) -> Iterator[Check]:
    answered, said = _ask("sinfo", "-h", "-o", "%R")
    known = set(said.split()) if answered else set()
    wanted = {route.partition for route in routes_for(cluster) if route.partition}
    if unknown := sorted(wanted - known):
        yield warn(
            f"the profile sends jobs to {', '.join(unknown)}, which sinfo does not show here "
            f"(it shows {', '.join(sorted(known)) or 'none'})",
            f"write a profile with `extends: {cluster.name}` and your `routes`",
        )
    elif wanted:
        yield passed(
            f"sinfo shows the profile's partitions: {', '.join(sorted(wanted))}"
        )


def _devices(cluster: Cluster) -> Iterator[Check]:
    device = cluster.devices[cluster.device or ""]
    if not device.is_gpu or cluster.gpu_flag == "none":
        return
    _, said = _ask("sinfo", "-h", "-o", "%G")
    types = sorted(set(re.findall(r"gpu:([\w.-]*[A-Za-z][\w.-]*)", said)))
    if "gpu" not in said:
        yield fail(
            "sinfo shows no node with GPUs",
            "choose a device without a GPU (`device: cpu`) in a profile, or ask the site",
        )
    elif device.request and types and device.request not in types:
        yield fail(
            f"no node has GPUs of type {device.request}; there are: {', '.join(types)}",
            "choose another `device`, or give its `request` in a profile",
        )
    else:
        yield passed(f"the nodes have GPUs: {', '.join(types) or 'no type is given'}")


def _arrays(cluster: Cluster, config: str) -> Iterator[Check]:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", config)
    largest = int(found[1]) - 1 if found else None
    if cluster.arrays and largest is not None and largest < cluster.max_array:
        if largest < 1:
            yield warn("this Slurm takes no arrays", "set `arrays: false` in a profile")
        else:
            yield warn(
                f"the profile has arrays of {cluster.max_array} jobs, this Slurm takes {largest}",
                f"set `max_array: {largest}` in a profile",
            )


def _try_job(cluster: Cluster, results: Path) -> Check:
    """Run a job of a minute: does it start, find Python and see the results folder?"""
    results.mkdir(parents=True, exist_ok=True)
    seen = results / f".orch-doctor-{uuid.uuid4().hex[:8]}"
    python = shlex.quote(cluster.python or sys.executable)
    route = next(iter(routes_for(cluster)), None)
    options = [
        *([f"--partition={route.partition}"] if route and route.partition else []),
        *([f"--qos={route.qos}"] if route and route.qos else []),
        *([f"--account={cluster.account}"] if cluster.account else []),
    ]
    script = "\n".join(
        ["#!/bin/bash", *cluster.setup, f"export PYTHONPATH={shlex.quote(str(checkout()))}",
         f"{python} -c 'import kernels.shapes, jobs, torch' && touch {shlex.quote(str(seen))}"]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doctor.sh"
        file.write_text(script + "\n")
        answered, said = _ask(
            "sbatch", "--wait", "--time=5", "--nodes=1", "--ntasks=1",
            "--job-name=orch-doctor", "--output=/dev/null", *options, str(file),
            timeout_s=900,
        )  # fmt: skip
    if seen.exists():
        seen.unlink()
        return passed(f"a job ran, found Python and torch, and sees {results}")
    if answered:
        return fail(
            f"a job ran, but what it wrote to {results} does not appear here",
            "give a folder that all nodes share with --results",
        )
    return fail(f"the job failed or was refused: {said}", way_out(said))


def _ask(*command: str, timeout_s: float = 60) -> tuple[bool, str]:
    """Return whether the command succeeded, and what it said."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    text = done.stdout if done.returncode == 0 else done.stderr or done.stdout
    return done.returncode == 0, text.strip()
