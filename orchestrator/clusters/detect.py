"""Detect the site: from the environment, Slurm's configuration file, then Slurm itself."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from orchestrator.clusters.cluster import Cluster, cluster_names, load_cluster

_CONFIGURATION = (Path("/etc/slurm/slurm.conf"), Path("/run/slurm/conf/slurm.conf"))
_CLUSTER_NAME = re.compile(r"(?im)^\s*ClusterName\s*=\s*(\S+)")


def detect(environment: dict[str, str] | None = None) -> Cluster:
    """Return this site's profile; `slurm` for a Slurm that no profile names, else `local`."""
    known = dict(os.environ) if environment is None else environment
    name = slurm_cluster_name(known)
    host = socket.gethostname()
    for profile in cluster_names():
        cluster = load_cluster(profile)
        if cluster.detect.matches(name, known, host):
            return cluster
    return load_cluster("local" if name is None else "slurm")


def slurm_cluster_name(environment: dict[str, str]) -> str | None:
    """Return Slurm's ClusterName in lower case, or None if no Slurm is configured.

    A controller that is down still leaves the configuration file, so the site is known.
    """
    if name := environment.get("SLURM_CLUSTER_NAME"):
        return name.lower()
    if shutil.which("sbatch", path=environment.get("PATH")) is None:
        return None
    files = [Path(environment["SLURM_CONF"])] if "SLURM_CONF" in environment else []
    for file in [*files, *_CONFIGURATION]:
        try:
            found = _CLUSTER_NAME.search(file.read_text(errors="replace"))
        except OSError:
            continue
        if found:
            return found[1].lower()
    return _ask_slurm(environment)


def _ask_slurm(environment: dict[str, str]) -> str | None:
    # A site without a configuration file on its login nodes ("configless").
    try:
        answer = subprocess.run(
            ["scontrol", "show", "config"],
            capture_output=True, text=True, timeout=20, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _CLUSTER_NAME.search(answer.stdout)
    return found[1].lower() if found else None
