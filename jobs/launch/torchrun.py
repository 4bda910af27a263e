"""How ranks are started: torchrun's command line and the variables it finds. Decides, acts not."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.checkout import CHECKOUT


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of a job, and where they meet."""

    ranks_per_node: int
    count: int = 1
    rendezvous: str = ""
    """`host:port` on the first node; needed for several."""
    job_id: str = ""
    """The same on every node, another for each job and attempt."""
    step: tuple[str, ...] = ()
    """What starts a command once on each node; empty: it is started here."""


def nodes_of(environment: Mapping[str, str], ranks: int, attempt: int) -> Nodes:
    """The nodes that this job's script (templates/slurm.sh.j2) tells of; without one, this one."""
    count = int(environment.get("ORCH_NODES", "1"))
    return Nodes(
        ranks_per_node=ranks // count,
        count=count,
        rendezvous=environment.get("ORCH_RENDEZVOUS", ""),
        job_id=f"{environment.get('SLURM_JOB_ID', 'orch')}.{attempt}",
        step=tuple(shlex.split(environment.get("ORCH_SRUN", ""))),
    )


def torchrun(nodes: Nodes, log_dir: Path, program: Sequence[str]) -> list[str]:
    """The command that starts the ranks of `program` (a module and its arguments).

    Every line that a rank writes comes out with `[rank0]:` before it; one rank's death ends all.
    """
    # A free port of this machine, whose own name need not resolve on it.
    meeting = ["--standalone", "--local-addr=127.0.0.1"]
    if nodes.count > 1:
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={nodes.rendezvous}",
            f"--rdzv-id={nodes.job_id}",
        ]
    return [
        *nodes.step,
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meeting,
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
    """The variables of workers that share this machine's processors among `ranks`."""
    path = environment.get("PYTHONPATH", "")
    threads = max(1, processors(environment) // ranks)
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(CHECKOUT), path))),
        "PYTHONUNBUFFERED": "1",
        # torchrun would set 1, sites often set the number for the whole task.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def processors(environment: Mapping[str, str]) -> int:
    """Processors that this job may use."""
    allowed = len(os.sched_getaffinity(0))
    granted = environment.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(granted)) if granted.isdigit() else allowed
