"""What a job asks of Slurm, by a cluster's rules. Jobs that ask for the same form one array."""

import math
from dataclasses import dataclass

from orchestrator.case import Case
from orchestrator.clusters.cluster import Cluster
from orchestrator.clusters.parts import Device, Route
from orchestrator.errors import InputError
from orchestrator.forecast import forecast
from orchestrator.models import shape_of
from orchestrator.units import slurm_time


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One job's shape, in Slurm's terms."""

    nodes: int
    ranks_per_node: int
    cpus_per_task: int
    """Of the one task that each node has."""
    memory_mib: int
    """Per node."""
    time_s: int
    device: str
    gpus: str | None
    """The sbatch option that asks for GPUs."""
    constraint: str | None
    partition: str | None
    qos: str | None
    account: str | None


def resources(cluster: Cluster, case: Case, cases_per_job: int = 1) -> Resources:
    """Return what a job of that many cases like `case` asks for.

    Raises:
        InputError: the cluster has no place for it.
    """
    name = cluster.device or ""
    device = cluster.devices[name]
    if reason := cluster.unsuitable(case):
        raise InputError(f"{cluster.name}: {reason}")
    nodes = cluster.nodes(case.gpus)
    ranks = case.gpus // nodes
    time_s = math.ceil(cluster.case_time_s * cases_per_job / 60) * 60
    route = _route(cluster, time_s, nodes)
    share = device.per_node if cluster.whole_node else ranks
    return Resources(
        nodes=nodes,
        ranks_per_node=ranks,
        cpus_per_task=device.cpus * share,
        memory_mib=_memory_bytes(cluster, device, case, nodes, share) // 2**20,
        time_s=time_s,
        device=name,
        gpus=_gpus(cluster, device, nodes, ranks),
        constraint=device.constraint,
        partition=route.partition,
        qos=route.qos,
        account=_account(cluster),
    )


def _memory_bytes(
    cluster: Cluster, device: Device, case: Case, nodes: int, share: int
) -> int:
    """Return the ranks' share of a node, or more if the weights wait in main memory."""
    usual = device.host_memory_bytes * share
    if not (device.is_gpu and case.strategy.zero_offload):
        return usual
    need = forecast(case, shape_of(case)).host_bytes // nodes
    # The forecast is a floor; an eighth more for what it does not know.
    return max(usual, min(need + need // 8, cluster.host_memory_bytes(case) or need))


def routes_for(cluster: Cluster) -> list[Route]:
    """Return where jobs of the cluster's device may go, in the order they are tried.

    What is only on request goes where its partition or QOS is named; a device that has
    partitions of its own goes to no other.
    """
    named = cluster.partition or cluster.qos
    fitting = [
        route
        for route in cluster.routes
        if (named or not route.on_request)
        and cluster.partition in (None, route.partition)
        and cluster.qos in (None, route.qos)
        and (route.devices is None or cluster.device in route.devices)
    ]
    return [route for route in fitting if route.devices] or fitting


def _route(cluster: Cluster, time_s: int, nodes: int) -> Route:
    routes = routes_for(cluster)
    for route in routes:
        if time_s <= route.max_time_s and nodes <= (route.max_nodes or nodes):
            return route
    raise InputError(_no_route(cluster, routes, time_s, nodes))


def _no_route(cluster: Cluster, routes: list[Route], time_s: int, nodes: int) -> str:
    known = "; ".join(
        f"{_words(route)} takes at most {slurm_time(route.max_time_s)}"
        + (f" and {route.max_nodes} node(s)" if route.max_nodes else "")
        for route in routes or cluster.routes
    )
    return (
        f"{cluster.name} has no partition and QOS for {cluster.device} on {nodes} node(s) for "
        f"{slurm_time(time_s)}: {known}; take fewer GPUs, a shorter case_time, fewer cases per job "
        f"or another device"
    )


def _words(route: Route) -> str:
    parts = (
        f"partition {route.partition}" if route.partition else "",
        f"QOS {route.qos}" if route.qos else "",
    )
    return ", ".join(filter(None, parts)) or "Slurm's default"


def _account(cluster: Cluster) -> str | None:
    if cluster.account is None and cluster.account_required:
        raise InputError(
            f"{cluster.name} takes no job without an account: write a profile with "
            f"`extends: {cluster.name}` and `account: …`, and give its path as the cluster"
        )
    return cluster.account


def _gpus(cluster: Cluster, device: Device, nodes: int, ranks: int) -> str | None:
    flag = cluster.gpu_flag
    if flag == "none" or not device.is_gpu:
        return None
    kind = f"{device.request}:" if device.request else ""
    if flag == "--gres":
        return f"--gres=gpu:{kind}{ranks}"
    if flag == "--gpus" and nodes == 1:
        return f"--gpus={kind}{ranks}"
    # --gpus is of the whole job, and would let Slurm deal them out unevenly.
    return f"--gpus-per-node={kind}{ranks}"
