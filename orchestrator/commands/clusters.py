"""`orch clusters`: which sites are known, and what a profile says."""

import json
import sys
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from orchestrator.clusters.cluster import (
    Cluster,
    cluster_names,
    json_schema,
    load_cluster,
)
from orchestrator.clusters.detect import detect
from orchestrator.clusters.parts import Device, Route
from orchestrator.commands.console import duration, put
from orchestrator.commands.options import complete_cluster, json_option


@click.command()
@click.argument(
    "name", metavar="[CLUSTER]", required=False, shell_complete=complete_cluster
)
@json_option
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of a profile, for editors."
)
def clusters(name: str | None, as_json: bool, schema: bool) -> None:
    """List known sites, or show everything about one.

    CLUSTER is the name of a profile in jobs/clusters, or the path of one.
    """
    if schema:
        print(json.dumps(json_schema(), indent=1))
        return
    here = detect().name
    shown = [load_cluster(name)] if name else [load_cluster(n) for n in cluster_names()]
    if as_json:
        json.dump([_row(each, here) for each in shown], sys.stdout, indent=1)
        print()
    elif name:
        put(_explained(shown[0]))
    else:
        put(_list(shown, here))


def _row(cluster: Cluster, here: str) -> dict[str, Any]:
    return {"here": cluster.name == here, **cluster.model_dump(by_alias=True)}


def _list(shown: Iterable[Cluster], here: str) -> Table:
    table = _table("cluster", "facts are", "device", "about")
    for each in shown:
        mark = " (here)" if each.name == here else ""
        table.add_row(
            escape(each.name) + mark,
            each.confidence,
            each.device or "",
            escape(each.about),
        )
    return table


def _explained(cluster: Cluster) -> RenderableType:
    parts: list[RenderableType] = [
        f"[bold]{escape(cluster.name)}[/]: {escape(cluster.about)}",
        f"facts are {cluster.confidence}",
    ]
    parts += [f"  from {escape(source)}" for source in cluster.sources]
    parts += [f"• {escape(note)}" for note in cluster.notes]
    if cluster.devices:
        parts += ["", _devices(cluster)]
    if cluster.routes:
        parts += ["", _routes(cluster.routes)]
    parts += ["", *map(escape, _habits(cluster))]
    return Group(*parts)


def _devices(cluster: Cluster) -> Table:
    table = _table(
        "device", "memory", "a node", "cores each", "main memory each", "about"
    )
    for name, device in cluster.devices.items():
        chosen = "  (default)" if name == cluster.device else ""
        table.add_row(
            escape(name) + chosen, _gib(device.memory_bytes), str(device.per_node),
            str(device.cpus), _gib(device.host_memory_bytes), escape(_about(device)),
        )  # fmt: skip
    return table


def _about(device: Device) -> str:
    extra = f"constraint {device.constraint}" if device.constraint else ""
    return "; ".join(filter(None, (device.about, extra)))


def _routes(routes: Iterable[Route]) -> Table:
    table = _table("partition", "QOS", "up to", "for")
    for route in routes:
        whom = ", ".join(route.devices or ["all"])
        table.add_row(
            route.partition or "(default)", route.qos or "(default)",
            duration(route.max_time_s), whom + (", when named" if route.on_request else ""),
        )  # fmt: skip
    return table


def _habits(cluster: Cluster) -> list[str]:
    said = [
        f"a case may take {duration(cluster.case_time_s)}; {cluster.pack} of them to a job; "
        f"Slurm is asked at most every {duration(cluster.poll_s)}"
    ]
    if cluster.kind == "slurm":
        arrays = (
            f"arrays of up to {cluster.max_array}, {cluster.throttle} jobs at once"
            if cluster.arrays
            else "no arrays: one sbatch a job"
        )
        said.append(arrays)
    if cluster.account_required:
        said.append("needs an account: `account: …` in a profile of your own")
    if cluster.scratch:
        said.append(f"scratch: {cluster.scratch}. {cluster.scratch_note or ''}")
    said.append(
        f"to change it: a file with `extends: {cluster.name}`, given as the cluster"
    )
    return said


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.0f} GiB"
