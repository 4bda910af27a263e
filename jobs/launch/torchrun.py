"""How ranks are started: torchrun's command line and environment. Runs nothing itself."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkout import ROOT


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes of a job and their rendezvous."""

    ranks_per_node: int
    count: int = 1
    rendezvous: str = ""
    """`host:port` on the first node; unused on a single node."""
    job_id: str = ""
    """The same on every node, different for each job and attempt: an earlier attempt's workers
    must not join."""
    step: tuple[str, ...] = ()
    """Command that starts another once on each node; empty on a single node."""


def nodes_of(environment: Mapping[str, str], ranks: int, attempt: int) -> Nodes:
    """Return the nodes that the script of the job names (templates/slurm.sh.j2), or this one."""
    count = int(environment.get("ORCH_NODES", "1"))
    return Nodes(
        ranks_per_node=ranks // count,
        count=count,
        rendezvous=environment.get("ORCH_RENDEZVOUS", ""),
        job_id=f"{environment.get('SLURM_JOB_ID', 'orch')}.{attempt}",
        step=tuple(shlex.split(environment.get("ORCH_SRUN", ""))),
    )


def torchrun(nodes: Nodes, log_dir: Path, program: Sequence[str]) -> list[str]:
    """Return the command that runs `program` (a module and its arguments) as every rank.

    torchrun prefixes each line of a rank with `[rank0]:`, and ends all ranks when one dies.
    """
    # Not by host name: a machine's own name need not resolve.
    rendezvous = ["--standalone", "--local-addr=127.0.0.1"]
    if nodes.count > 1:
        rendezvous = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={nodes.rendezvous}",
            f"--rdzv-id={nodes.job_id}",
        ]
    return [
        *nodes.step,
        sys.executable,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nnodes={nodes.count}",
        f"--nproc-per-node={nodes.ranks_per_node}",
        "--max-restarts=0",
        "--role=rank",
        "--tee=3",
        f"--log-dir={log_dir}",
        "--module",
        *program,
    ]


def worker_environment(environment: Mapping[str, str], ranks: int) -> dict[str, str]:
    """Return the environment of workers; `ranks` of them share this machine's processors."""
    path = environment.get("PYTHONPATH", "")
    threads = max(1, processors(environment) // ranks)
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), path))),
        "PYTHONUNBUFFERED": "1",
        # torchrun would set 1; sites often set the number of the whole task.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def processors(environment: Mapping[str, str]) -> int:
    """Return the number of processors that this job may use."""
    allowed = len(os.sched_getaffinity(0))
    granted = environment.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(granted)) if granted.isdigit() else allowed
