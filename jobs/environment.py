"""Finds out the `Environment` of a record: machine, software, code and job.

Only named variables are recorded, never all: a record may be shown to anybody. Works without
torch and without git.
"""

import csv
import hashlib
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from orchestrator.checkout import ROOT
from orchestrator.environment import Code, Environment, Gpu, Host, Software

_PACKAGES = (
    "numpy", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "pydantic", "safetensors",
    "sentencepiece", "submitit",
    "tiktoken", "tokenizers", "torch", "transformers", "triton",
)  # fmt: skip
_VARIABLES = (
    "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "KMP_AFFINITY", "MKL_NUM_THREADS",
    "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip
_VARIABLE_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_")
_SLURM = (
    "ARRAY_JOB_ID", "ARRAY_TASK_ID", "CLUSTER_NAME", "CPUS_PER_TASK", "GPUS_ON_NODE", "JOB_ID",
    "JOB_NODELIST", "JOB_NUM_NODES", "JOB_PARTITION", "JOB_QOS", "MEM_PER_CPU", "MEM_PER_NODE",
    "RESTART_COUNT",
)  # fmt: skip
_GPU_FIELDS = {
    "index": "index", "name": "name", "uuid": "uuid", "memory_mib": "memory.total",
    "driver": "driver_version", "mig": "mig.mode.current", "ecc": "ecc.mode.current",
    "max_sm_mhz": "clocks.max.sm", "max_memory_mhz": "clocks.max.memory",
    "power_limit_w": "power.limit",
}  # fmt: skip
"""Our name → the field that nvidia-smi is asked for."""
_UNTRACKED_BYTES = 1 << 20


def describe() -> Environment:
    """This machine, its software, the code, and the job it runs in."""
    return Environment(
        hosts=[this_host()],
        software=software(),
        code=code(),
        variables=variables(os.environ),
        slurm=slurm(os.environ),
    )


def this_host() -> Host:
    """Processors, memory, operating system and GPUs of this machine."""
    return Host(
        name=socket.gethostname(),
        cpu=cpu_model(),
        cores=psutil.cpu_count(logical=False),
        processors=os.cpu_count(),
        allowed_processors=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpus=gpus(),
        topology=_said(["nvidia-smi", "topo", "-m"]),
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, as the kernel has it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.machine())


def gpus() -> list[Gpu]:
    """Return the GPUs that the job sees, by nvidia-smi; [] without it."""
    query = f"--query-gpu={','.join(_GPU_FIELDS.values())}"
    said = _said(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    rows = csv.reader((said or "").splitlines(), skipinitialspace=True)
    return [_gpu(dict(zip(_GPU_FIELDS, row, strict=False))) for row in rows]


def _gpu(said: dict[str, str]) -> Gpu:
    # nvidia-smi writes [N/A] or [Not Supported] where it does not know.
    known = {name: value for name, value in said.items() if not value.startswith("[")}
    memory_mib = _number(known.get("memory_mib"))
    return Gpu(
        index=int(_number(known.get("index")) or 0),
        name=known.get("name", ""),
        uuid=known.get("uuid", ""),
        memory_bytes=None if memory_mib is None else int(memory_mib) << 20,
        driver=known.get("driver"),
        mig=known.get("mig"),
        ecc=known.get("ecc"),
        max_sm_mhz=_whole(known.get("max_sm_mhz")),
        max_memory_mhz=_whole(known.get("max_memory_mhz")),
        power_limit_w=_number(known.get("power_limit_w")),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def software() -> Software:
    """Python and the packages that a number depends on."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Software(python=platform.python_version(), packages=packages)


def code(checkout: Path = ROOT) -> Code:
    """Return which code ran."""
    commit = changes = None
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if top is not None and Path(top.decode().strip()) == checkout.resolve():
        commit = (_git(checkout, "rev-parse", "HEAD") or b"").decode().strip() or None
        changes = changes_digest(checkout)
    return Code(commit=commit, changes=changes, source=source_digest(checkout))


def changes_digest(checkout: Path) -> str | None:
    """SHA-256 of all that differs from the commit, new files included; None for nothing."""
    difference = _git(checkout, "diff", "HEAD", "--binary", "--no-ext-diff") or b""
    listed = _git(checkout, "ls-files", "--others", "--exclude-standard", "-z") or b""
    new = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    if not difference and not new:
        return None
    digest = hashlib.sha256(difference)
    for name in sorted(new):
        _add_file(digest, checkout, name)
    return digest.hexdigest()


def source_digest(checkout: Path) -> str:
    """SHA-256 of the Python files of kernels and jobs, which holds without git too."""
    digest = hashlib.sha256()
    for room in ("jobs", "kernels"):
        for file in sorted((checkout / room).rglob("*.py")):
            _add_file(digest, checkout, str(file.relative_to(checkout)))
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", folder: Path, name: str) -> None:
    digest.update(os.fsencode(name) + b"\0")
    try:
        with (folder / name).open("rb") as stream:
            digest.update(stream.read(_UNTRACKED_BYTES))
    except OSError as error:  # a dangling link, a folder that is a repository
        digest.update(str(error.errno).encode())


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that change how fast a model runs."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES)
    }


def slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the job's numbers and share, by Slurm's names in small letters; {} outside a job."""
    return {
        name.lower(): environment[f"SLURM_{name}"]
        for name in _SLURM
        if f"SLURM_{name}" in environment
    }


def with_torch(found: Software) -> Software:
    """Return the software with how torch was built and is set; for a process that has it loaded."""
    import torch

    update: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.version.cuda:
        nccl: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        update |= {
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, nccl)),
            "cudnn": None if cudnn is None else str(cudnn),
        }
    return found.model_copy(update=update)


def _git(checkout: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(checkout), *arguments]
    return _output(command, {**os.environ, "GIT_OPTIONAL_LOCKS": "0"})


def _said(command: Sequence[str]) -> str | None:
    output = _output(command, os.environ)
    return None if output is None else output.decode(errors="replace").strip()


def _output(command: Sequence[str], environment: Mapping[str, str]) -> bytes | None:
    """Return what a command prints; None if it is not there, fails, or takes long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
