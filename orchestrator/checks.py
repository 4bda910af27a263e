"""What `orch doctor` checks of this machine: whether it passed, and what to do where it did not."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import site
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernels.memory import file_system
from orchestrator.checkout import checkout
from orchestrator.clusters.cluster import Cluster
from orchestrator.clusters.hardware import gpu_memories_bytes, host_memory_bytes

_EXTRAS = {"tokenizers": "Llama-3 and Qwen", "parquet": "--format parquet"}
"""Extras of setup.cfg that a study can need, and for what."""
_NODE_LOCAL = ("tmpfs", "overlay", "ramfs")
_LITTLE_BYTES = 2**30

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    level: Level
    """warn: it may be intended; fail: nothing will run like this."""
    what: str
    remedy: str = ""


def passed(what: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check("ok", what)


def warn(what: str, remedy: str) -> Check:
    """Return a check that found something unusual, which may be intended."""
    return Check("warn", what, remedy)


def fail(what: str, remedy: str) -> Check:
    """Return a check that found something to fix."""
    return Check("fail", what, remedy)


def machine_checks(results: Path, cluster: Cluster) -> Iterator[Check]:
    """Check Python, its packages, the results folder and this machine, one after the other."""
    yield from _python()
    yield from _packages()
    yield from _results(results, cluster)
    yield from _machine(cluster)


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield passed(f"Python {version}, {sys.executable}; checkout {checkout()}")
    own = Path(site.getusersitepackages())
    if own.is_dir() and any(own.iterdir()) and site.ENABLE_USER_SITE:
        yield warn(
            f"packages in {own} come along into every environment",
            "export PYTHONNOUSERSITE=1, or move that folder away",
        )


def _packages() -> Iterator[Check]:
    missing = _missing_packages()
    if needed := missing.pop("", None):
        yield fail(f"missing: {', '.join(needed)}", _install(""))
    else:
        versions = ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("torch", "submitit")
        )
        yield passed(f"all packages are there ({versions})")
    for extra, names in missing.items():
        what = f"{_EXTRAS[extra]} cannot be used: missing {', '.join(names)}"
        yield warn(what, _install(f"[{extra}]"))
    yield from _shadows()


def _missing_packages() -> dict[str, list[str]]:
    """Extra → those of its packages that are not installed; "" is what every study needs."""
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("orch-bench") or []:
        found = re.match(r"([\w.-]+)(?:.*extra == ['\"]([\w-]+)['\"])?", line)
        name, extra = (found[1], found[2] or "") if found else (line, "")
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra in ("", *_EXTRAS):
                missing.setdefault(extra, []).append(name)
    return missing


def _install(extra: str) -> str:
    command = f"{sys.executable} -m pip install -e '{checkout()}{extra}'"
    return f"install what is missing for this Python: {command}"


def _shadows() -> Iterator[Check]:
    for room in ("kernels", "jobs"):
        spec = importlib.util.find_spec(room)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or not origin.is_relative_to(checkout()):
            yield fail(
                f"Python finds {room!r} in {origin}, not in the checkout {checkout()}",
                f"uninstall the package {room}, or take it off PYTHONPATH",
            )
    try:
        theirs = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    yield warn(
        f"Hugging Face's package kernels {theirs} is installed too; in jobs, ours comes first",
        "nothing to do while `orch` runs from its checkout",
    )


def _results(results: Path, cluster: Cluster) -> Iterator[Check]:
    folder = results
    while not folder.exists():
        folder = folder.parent
    problem = _cannot_file(folder)
    if problem:
        yield fail(
            f"{folder} cannot hold results: {problem}",
            "give another folder with --results",
        )
        return
    free = shutil.disk_usage(folder).free
    said = f"results go to {results}, {free / 2**30:.0f} GiB free"
    yield (
        passed(said)
        if free > _LITTLE_BYTES
        else warn(said, "make room, or give another folder with --results")
    )
    kind = file_system(folder)
    if cluster.kind == "slurm" and (
        kind in _NODE_LOCAL or folder.is_relative_to("/tmp")
    ):
        yield warn(
            f"compute nodes may not see {folder} ({kind or 'temporary'})",
            "give a folder that all nodes share with --results; `orch doctor --job` tries it",
        )


def _cannot_file(folder: Path) -> str | None:
    """Return why records could not be filed there: they need new files and hard links."""
    first = folder / f".orch-doctor-{uuid.uuid4().hex[:8]}"
    second = first.with_suffix(".link")
    try:
        first.write_text("x")
        os.link(first, second)
    except OSError as error:
        return str(error)
    finally:
        with contextlib.suppress(OSError):
            second.unlink(missing_ok=True)
            first.unlink(missing_ok=True)
    return None


def _machine(cluster: Cluster) -> Iterator[Check]:
    gpus = gpu_memories_bytes()
    if gpus:
        sizes = ", ".join(f"{size / 2**30:.0f} GiB" for size in gpus)
        yield passed(f"{len(gpus)} GPUs here: {sizes}")
    elif cluster.kind == "slurm":
        yield passed("no GPU on this machine; jobs get theirs from Slurm")
    else:
        yield passed("no GPU here (nvidia-smi shows none): ranks compute on the CPU")
    memory = host_memory_bytes() / 2**30
    yield passed(
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory here"
    )
