"""Which runner a cluster has."""

from orchestrator.clusters.cluster import Cluster
from orchestrator.runner import Runner


def runner_for(cluster: Cluster) -> Runner:
    """The runner of that cluster."""
    if cluster.kind == "local":
        from orchestrator.local.runner import LocalRunner

        return LocalRunner(cluster)
    from orchestrator.slurm.runner import SlurmRunner

    return SlurmRunner(cluster)
