"""`orch doctor`: check that everything a study needs is in place. Changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.options import complete_cluster, results_option

if TYPE_CHECKING:
    from orchestrator.checks import Check
    from orchestrator.clusters.cluster import Cluster

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option(
    "--cluster", "name", metavar="NAME", shell_complete=complete_cluster,
    help="A site of `orch clusters`, or a file.  [default: the site that is detected]",
)  # fmt: skip
@click.option("--job", is_flag=True, help="Also run a job of a minute on the cluster.")
@results_option
def doctor(name: str | None, job: bool, results: Path) -> None:
    """Check that everything a study needs is in place.

    Each finding is ok, warn or fail, and says what to do. The exit code is 1 if one is fail.
    """
    from rich.markup import escape

    from orchestrator.clusters.cluster import load_cluster
    from orchestrator.clusters.detect import detect
    from orchestrator.commands.console import print_data

    cluster = load_cluster(name) if name else detect()
    any_fail = False
    for check in findings(results, cluster, job=job):
        any_fail |= check.level == "fail"
        style = _STYLES[check.level]
        way_out = f"\n       → {escape(check.remedy)}" if check.remedy else ""
        print_data(f"[{style}]{check.level:4}[/] {escape(check.what)}{way_out}")
    sys.exit(any_fail)


def findings(results: Path, cluster: Cluster, *, job: bool) -> Iterator[Check]:
    """Yield each check as it is made."""
    from orchestrator.checks import machine_checks, passed, warn
    from orchestrator.slurm.doctor import slurm_findings

    yield from machine_checks(results, cluster)
    yield passed(f"the cluster is {cluster.name}: {cluster.about}")
    if cluster.confidence == "unverified":
        yield warn(
            f"the facts about {cluster.name} were never checked on it",
            f"compare `orch clusters {cluster.name}` with the site's pages",
        )
    if cluster.kind == "slurm":
        yield from slurm_findings(cluster, results, job=job)
    elif job:
        yield warn(
            f"no job was tried: {cluster.name} runs jobs on this machine, without Slurm",
            "name a Slurm cluster with --cluster",
        )
