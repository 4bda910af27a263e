"""GPUs and main memory of this machine, without touching CUDA."""

import functools
import subprocess
from pathlib import Path

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@functools.cache
def gpu_memories_bytes() -> tuple[int, ...]:
    """Return the memory of each NVIDIA GPU here, by nvidia-smi; () if there is none."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(line) * 2**20 for line in answer.split() if line.isdigit())


def gpu_memory_bytes() -> int | None:
    """Return the memory of the smallest GPU here, or None without one."""
    return min(gpu_memories_bytes(), default=None)


@functools.cache
def host_memory_bytes() -> int:
    """Main memory that processes here may use: the machine's, or its container's limit."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for file in _CGROUP_LIMITS:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
