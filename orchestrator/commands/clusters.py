"""`orch clusters`: which sites are known, and what a profile says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.options import complete_cluster, json_option

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.clusters.cluster import Cluster
    from orchestrator.clusters.parts import Device, Route


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
    from orchestrator.clusters.cluster import cluster_names, json_schema, load_cluster
    from orchestrator.clusters.detect import detect

    if schema:
        if name or as_json:
            raise click.UsageError("--schema is the same for every site: give it alone")
        print(json.dumps(json_schema(), indent=1))
        return
    here = detect().name
    shown = [load_cluster(name)] if name else [load_cluster(n) for n in cluster_names()]
    if as_json:
        print(json.dumps([_row(each, here) for each in shown], indent=1))
    elif name:
        _explain(shown[0], name)
    else:
        _list(shown, here)


def _row(cluster: Cluster, here: str) -> dict[str, Any]:
    return {"here": cluster.name == here, **cluster.model_dump(by_alias=True)}


def _list(shown: Iterable[Cluster], here: str) -> None:
    from orchestrator.commands.console import print_data

    rows = [
        (
            f"{each.name} (here)" if each.name == here else each.name,
            each.confidence, each.device or "", each.about,
        )
        for each in shown
    ]  # fmt: skip
    print_data(_table(("cluster", "facts are", "device", "about"), rows))


def _explain(cluster: Cluster, name: str) -> None:
    from rich.markup import escape

    from orchestrator.commands.console import print_data

    print_data(f"[bold]{escape(cluster.name)}[/]: {escape(cluster.about)}")
    changed = ", unless this file changes them" if Path(name).is_file() else ""
    print_data(f"facts are {cluster.confidence}{changed}")
    for source in cluster.sources:
        print_data(escape(f"  from {source}"))
    for note in cluster.notes:
        print_data(escape(f"• {note}"))
    if cluster.devices:
        print_data("")
        print_data(_devices(cluster))
    if cluster.routes:
        print_data("")
        print_data(_routes(cluster.routes))
    print_data("")
    for line in _settings(cluster, name):
        print_data(escape(line))


def _devices(cluster: Cluster) -> Table:
    columns = (
        "device",
        "memory",
        "per node",
        "cores each",
        "main memory each",
        "about",
    )
    rows = [
        (
            f"{name}  (default)" if name == cluster.device else name,
            _gib(device.memory_bytes), str(device.per_node), str(device.cpus),
            _gib(device.host_memory_bytes), _about(device),
        )
        for name, device in cluster.devices.items()
    ]  # fmt: skip
    return _table(columns, rows)


def _about(device: Device) -> str:
    extra = f"constraint {device.constraint}" if device.constraint else ""
    return "; ".join(filter(None, (device.about, extra)))


def _routes(routes: Iterable[Route]) -> Table:
    from orchestrator.commands.console import duration

    rows = [
        (
            route.partition or "(default)", route.qos or "(default)", duration(route.max_time_s),
            ", ".join(route.devices or ["all"]) + ", when named" * route.on_request,
        )
        for route in routes
    ]  # fmt: skip
    return _table(("partition", "QOS", "up to", "devices"), rows)


def _settings(cluster: Cluster, name: str) -> Iterable[str]:
    from orchestrator.commands.console import duration
    from orchestrator.units import counted

    yield (
        f"time for a case: {duration(cluster.case_time_s)}; each job runs "
        f"{counted(cluster.cases_per_job, 'case')}"
    )
    if cluster.kind == "slurm":
        yield f"Slurm is asked at most every {duration(cluster.poll_s)}"
        yield (
            f"arrays of up to {cluster.max_array} jobs, {cluster.throttle} at once"
            if cluster.arrays
            else "no arrays: one sbatch for each job"
        )
    if cluster.account_required:
        yield "needs an account: `account: …` in a profile of your own"
    if cluster.scratch:
        yield f"scratch: {cluster.scratch}. {cluster.scratch_note or ''}"
    base = str(Path(name).absolute()) if Path(name).is_file() else cluster.name
    yield f"to change it, write a file with `extends: {base}` and name it as the cluster"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.0f} GiB"
