"""What Linux tells of memory: this process's, the machine's, and which folders are memory.

Without torch.
"""

import ctypes
import os
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PAGEOUT = 21
"""MADV_PAGEOUT of <linux/mman.h>: give pages up without losing what they hold."""


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most that `resident_bytes` has been, since the process began or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Forget the peak so far; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def available_bytes() -> int:
    """Return what the machine could still hand out without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def forget_mapped_files(at_least_bytes: int = 2**20) -> None:
    """Give up the pages of large mapped files; they come back from the file when touched.

    Shared libraries stay: their pages are in use.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 6 or not words[5].startswith("/") or "x" in words[1]:
            continue
        start, end = (int(word, 16) for word in words[0].split("-"))
        if end - start >= at_least_bytes and ".so" not in os.path.basename(words[5]):
            # Advice: where a kernel does not know it, the pages just stay.
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder, as the kernel names it."""
    best, kind = -1, "unknown"
    real = str(folder.resolve())
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), name
    return kind
