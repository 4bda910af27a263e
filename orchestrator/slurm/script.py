"""The script of a job: what Slurm is asked for, and the few lines that a node runs.

Rendered from templates/slurm.sh.j2 to text that a person can read, submit and run by hand. It
names job specs and logs relative to its own folder, so that it contains no odd folder name.
"""

import re
import shlex
import sys
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.checkout import checkout
from orchestrator.clusters.cluster import Cluster
from orchestrator.errors import InputError
from orchestrator.slurm.resources import Resources
from orchestrator.units import slurm_time

SCRIPT = "job.sh"

LOG = "%j_0_log.out"
ARRAY_LOG = "%A_%a_0_log.out"
"""submitit's names, so that its tools find them too."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_name(key: str) -> str:
    """Return the name of a submission's jobs, by which squeue and sacct find them."""
    return f"orch-{key}"


def render(
    cluster: Cluster, need: Resources, *, key: str, jobs: int, summary: str
) -> str:
    """Return the script of `jobs` jobs of one shape.

    Args:
        key: names the jobs, in Slurm's job name and comment.
        summary: for the person who reads it.

    Raises:
        InputError: a value cannot be written into a script.
    """
    if not _KEY.fullmatch(key):
        raise InputError(f"a key is letters, digits, '.', '_' and '-', got {key!r}")
    for name in cluster.environment:
        if not _VARIABLE.fullmatch(name):
            raise InputError(
                f"{cluster.name}: environment: {name!r} is no name of a variable"
            )
    template = _environment().get_template("slurm.sh.j2")
    return template.render(
        summary=summary,
        file=SCRIPT,
        jobs=jobs,
        options=_options(cluster, need, key, jobs),
        export_none=cluster.export_none,
        cpus_per_task=need.cpus_per_task,
        checkout=checkout(),
        environment=_variables(cluster),
        setup=cluster.setup,
        nodes=need.nodes,
        srun=shlex.join(_srun(cluster, need)),
        host_suffix=cluster.rendezvous.host_suffix,
        python=cluster.python or sys.executable,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(checkout() / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is no HTML: every value passes `quote`
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["comment"] = _comment
    return environment


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _options(cluster: Cluster, need: Resources, key: str, jobs: int) -> list[str]:
    """Return the #SBATCH options, in the order a person asks: who, where, what, how long."""
    array = f"0-{jobs - 1}%{min(cluster.throttle, jobs)}" if jobs > 1 else None
    mail = cluster.mail
    cpus = need.cpus_per_task if cluster.give_cpus else None
    values: dict[str, Any] = {
        "job-name": job_name(key),
        "comment": f"orch:{key}",
        "array": array,
        "account": need.account,
        "partition": need.partition,
        "qos": need.qos,
        "nodes": need.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus,
        "mem": f"{need.memory_mib}M" if cluster.give_memory else None,
        "constraint": need.constraint,
        "exclude": ",".join(cluster.exclude_nodes) or None,
        "time": slurm_time(need.time_s),
        "output": ARRAY_LOG if jobs > 1 else LOG,
        "open-mode": "append",
        "export": "NONE" if cluster.export_none else None,
        "mail-user": mail.user if mail else None,
        "mail-type": ",".join(mail.events) if mail else None,
    }
    given = [_option(name, value) for name, value in values.items() if value]
    flags = {None: [], True: ["--requeue"], False: ["--no-requeue"]}[cluster.requeue]
    whole = ["--exclusive"] if cluster.whole_node else []
    gpus = [need.gpus] if need.gpus else []
    return given + gpus + whole + flags + cluster.options


def _option(name: str, value: object) -> str:
    return f"--{name}={shlex.quote(str(value))}"


def _variables(cluster: Cluster) -> dict[str, str]:
    interface = cluster.rendezvous.interface
    sockets = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if interface else ()
    return {**{name: str(interface) for name in sockets}, **cluster.environment}


def _srun(cluster: Cluster, need: Resources) -> list[str]:
    return [
        "srun",
        "--kill-on-bad-exit=1",
        "--wait=60",
        f"--nodes={need.nodes}",
        f"--ntasks={need.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={need.cpus_per_task}",
        *cluster.srun_options,
    ]
