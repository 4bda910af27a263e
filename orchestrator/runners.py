"""Which runner a cluster has."""

from orchestrator.cluster import Cluster
from orchestrator.runner import Runner


def runner_for(cluster: Cluster) -> Runner:
    """The runner of that cluster."""
    if cluster.kind == "local":
        from orchestrator.local import LocalRunner

        return LocalRunner(cluster)
    from orchestrator.slurm import SlurmRunner

    return SlurmRunner(cluster)
