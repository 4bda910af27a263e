"""The virtual cluster as fixtures: started once for all tests, with accounting and without."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import NoSlurm, why_not
from site_of_tests import Site
from virtual_slurm import VirtualSlurm

from tests.orchestrator.sandbox import make_sandbox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and by which cluster they need."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slurm)
            if "without_accounting" not in item.name:
                item.add_marker(pytest.mark.accounting)


def demand_slurm() -> None:
    """Skip where there can be no real Slurm; in CI that is an error."""
    if reason := why_not():
        _refuse(reason)


def _refuse(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"CI must run the tests on a real Slurm: {reason}")
    pytest.skip(reason)


def _start(
    tmp_path_factory: pytest.TempPathFactory, accounting: bool
) -> Iterator[VirtualSlurm]:
    demand_slurm()
    cluster = VirtualSlurm(tmp_path_factory.mktemp("slurm"), accounting=accounting)
    try:
        try:
            cluster.start()
        except NoSlurm as error:  # packages that cannot be installed
            _refuse(str(error))
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def with_accounting(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[VirtualSlurm]:
    """A cluster that sacct knows."""
    yield from _start(tmp_path_factory, True)


@pytest.fixture(scope="session")
def without_accounting(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[VirtualSlurm]:
    """A cluster where sacct answers nothing."""
    yield from _start(tmp_path_factory, False)


@pytest.fixture(params=["with_accounting", "without_accounting"])
def slurm(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VirtualSlurm]:
    """Each kind of cluster in turn, whole and empty at the start of each test."""
    cluster: VirtualSlurm = request.getfixturevalue(request.param)
    yield from _borrowed(cluster, monkeypatch)


@pytest.fixture
def accounted_slurm(
    with_accounting: VirtualSlurm, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VirtualSlurm]:
    """The cluster with accounting alone, for what only it can do."""
    yield from _borrowed(with_accounting, monkeypatch)


def _borrowed(
    cluster: VirtualSlurm, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VirtualSlurm]:
    cluster.refresh()
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    yield cluster
    if cluster.runs("slurmctld"):
        ids = cluster.command("squeue", "-h", "-a", "-o", "%A", check=False).split()
        if ids:
            subprocess.run(["scancel", *ids], env=cluster.environment, check=False)


@pytest.fixture
def site(slurm: VirtualSlurm, tmp_path: Path) -> Site:
    """A checkout on each kind of cluster, with a quick jobs.launch."""
    return Site(slurm, make_sandbox(tmp_path / "checkout"))


@pytest.fixture
def accounted_site(accounted_slurm: VirtualSlurm, tmp_path: Path) -> Site:
    """The same, on the cluster with accounting alone."""
    return Site(accounted_slurm, make_sandbox(tmp_path / "checkout"))
