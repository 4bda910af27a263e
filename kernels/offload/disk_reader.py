"""Large reads of a file into memory, around the page cache where the file system allows it.

Weights that come out of the page cache are memory's numbers, not the disk's: so files are read
with O_DIRECT, and where that is refused the pages are dropped after each read. `how` says which.
Knows bytes only, nothing of layers or devices.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path

ALIGNMENT = 4096
"""Offsets, lengths and addresses of direct reads are multiples of it (a disk's block at most)."""
BLOCK_BYTES = 8 * 2**20
"""What one thread reads at a time: large enough for any disk's full rate."""


class ReadError(ValueError):
    """A file that holds less than it should, or something else; the message names the file."""


def round_up(num_bytes: int, alignment: int = ALIGNMENT) -> int:
    """The least multiple of `alignment` that is no less.

    >>> round_up(4097)
    8192
    """
    return -(-num_bytes // alignment) * alignment


class DiskFile:
    """A file open for large reads from several threads at once."""

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        """Opens `path`.

        Args:
            path: the file; it may be unlinked afterwards.
            direct: whether to try O_DIRECT at all.
        """
        self.path = path
        self._descriptor, self.is_direct = _open(path, direct)
        self.num_bytes = os.fstat(self._descriptor).st_size

    @property
    def how(self) -> str:
        """In which way the page cache is kept out."""
        return "O_DIRECT" if self.is_direct else "page cache dropped after each read"

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes at `offset`.

        Args:
            target: bytes; for a direct read its address and length are aligned, as is `offset`.
            offset: in the file.

        Raises:
            ReadError: the file ends before.
        """
        done = 0
        while done < len(target):
            got = os.preadv(self._descriptor, [target[done:]], offset + done)
            done += got
            # A direct read that stops off a boundary has met the end, and cannot go on from there.
            if not got or (self.is_direct and done < len(target) and done % ALIGNMENT):
                raise ReadError(
                    f"{self.path} ends at byte {offset + done}, "
                    f"{len(target)} bytes at {offset} were to be read: it is truncated"
                )
        if not self.is_direct:
            os.posix_fadvise(
                self._descriptor, offset, len(target), os.POSIX_FADV_DONTNEED
            )

    def read_some(self, num_bytes: int, offset: int) -> bytes:
        """A few bytes from anywhere, aligned or not.

        Raises:
            ReadError: the file ends before.
        """
        start = offset // ALIGNMENT * ALIGNMENT
        wanted = round_up(offset + num_bytes - start)
        # An anonymous map begins on a page, as a direct read must.
        with _scratch(wanted) as page:
            self.read_into(page, start)
            return bytes(page[offset - start : offset - start + num_bytes])

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _open(path: Path, direct: bool) -> tuple[int, bool]:
    if direct and hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            if _direct_works(descriptor):
                return descriptor, True
            os.close(descriptor)
    return os.open(path, os.O_RDONLY), False


def _direct_works(descriptor: int) -> bool:
    # Some file systems take the flag and refuse the read.
    with _scratch(ALIGNMENT) as page:
        try:
            os.preadv(descriptor, [page], 0)
        except OSError:
            return False
        return True


def _scratch(num_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, num_bytes))


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`, as the kernel names it (ext4, nfs, …)."""
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
