"""Streamed weights in a file, read in blocks by several threads.

Weights that come out of the page cache are memory's numbers, not the disk's: so the file is read
with O_DIRECT, and where that is refused the pages are dropped after each read. `how` says which.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from kernels.memory import file_system, forget_mapped_files
from kernels.offload.plan import PAGE_BYTES, Unit, round_up
from kernels.offload.store import BLOCK_BYTES, chunks, memory_of, page_aligned
from kernels.weights import Weights


class ReadError(ValueError):
    """A file holds less than it should; the message names the file."""


class DiskFile:
    """A file open for large reads from several threads at once."""

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        """Open `path`, which may be unlinked afterwards; try O_DIRECT unless told not to."""
        self.path = path
        self._descriptor, self.is_direct = _open(path, direct)
        self.num_bytes = os.fstat(self._descriptor).st_size

    @property
    def how(self) -> str:
        """In which way the page cache is kept out."""
        return "O_DIRECT" if self.is_direct else "page cache dropped after each read"

    def read_into(self, target: Tensor, offset: int) -> None:
        """Fill `target`, flat uint8, with the bytes at `offset`.

        For a direct read the target's address and length, and the offset, must be multiples of
        `PAGE_BYTES`.

        Raises:
            ReadError: the file ends before.
        """
        memory, done = memory_of(target), 0
        while done < len(memory):
            got = os.preadv(self._descriptor, [memory[done:]], offset + done)
            done += got
            # A direct read that stops off a boundary has met the end, and cannot go on from there.
            if not got or (self.is_direct and done < len(memory) and done % PAGE_BYTES):
                raise ReadError(
                    f"{self.path} ends at byte {offset + done}, "
                    f"{len(memory)} bytes at {offset} were to be read: it is truncated"
                )
        if not self.is_direct:
            os.posix_fadvise(
                self._descriptor, offset, len(memory), os.POSIX_FADV_DONTNEED
            )

    def read_some(self, num_bytes: int, offset: int) -> Tensor:
        """Return a few bytes, flat uint8, from anywhere, aligned or not.

        Raises:
            ReadError: the file ends before.
        """
        start = offset // PAGE_BYTES * PAGE_BYTES
        pages = page_aligned(round_up(offset + num_bytes - start))
        self.read_into(pages, start)
        return pages[offset - start : offset - start + num_bytes]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _open(path: Path, direct: bool) -> tuple[int, bool]:
    if direct and hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                # Some file systems take the flag and refuse the read.
                os.preadv(descriptor, [memory_of(page_aligned(PAGE_BYTES))], 0)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor, True
    return os.open(path, os.O_RDONLY), False


class FileStore:
    """Units in one nameless file, read in blocks by any number of threads."""

    def __init__(
        self, folder: Path, *, direct: bool = True, block_bytes: int = BLOCK_BYTES
    ) -> None:
        """Make an empty store; `block_bytes` is a multiple of `PAGE_BYTES`."""
        self.block_bytes = block_bytes
        self.folder = folder
        descriptor, name = tempfile.mkstemp(".weights", "orch-offload-", folder)
        self._writer = os.fdopen(descriptor, "wb")
        try:
            self._reader = DiskFile(Path(name), direct=direct)
        finally:
            # Nameless before it holds anything: whatever kills the process, nothing is left.
            os.unlink(name)
        self._starts: dict[str, int] = {}
        self._end = 0
        # Each single row waits behind the large blocks under way: better to wait for all at once.
        self._row_threads = ThreadPoolExecutor(8, thread_name_prefix="offload-rows")

    def how(self) -> str:
        kind = file_system(self.folder)
        memory = ", which is memory" if kind in ("tmpfs", "ramfs") else ""
        return f"files, {self._reader.how}, {kind}{memory}"

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        self._reserve(unit)
        for start, chunk in chunks(unit, weights, dtype):
            self._writer.seek(self._end + start)
            self._writer.write(memory_of(chunk.view(-1).view(torch.uint8)))
        self._writer.flush()
        # Only clean pages can be dropped; a page that stayed would be read from memory.
        os.fdatasync(self._writer.fileno())
        os.posix_fadvise(self._writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._starts[unit.name] = self._end
        self._end += unit.num_bytes
        # A mapped checkpoint's pages count as this process's memory, which would seem to grow.
        forget_mapped_files()

    def _reserve(self, unit: Unit) -> None:
        # In one piece where the file system can, and a full disk is known before it is written to.
        try:
            os.posix_fallocate(self._writer.fileno(), self._end, unit.num_bytes)
        except OSError as error:
            room = os.statvfs(self.folder)
            raise OSError(
                error.errno,
                f"{self.folder} has {room.f_bavail * room.f_frsize} bytes left, the next of "
                f"the streamed weights ({unit.name}) needs {unit.num_bytes}: let TMPDIR name a "
                f"folder on a larger disk, or take source: host",
            ) from error

    def read_block(self, unit: Unit, start: int, target: Tensor) -> None:
        try:
            self._reader.read_into(target, self._starts[unit.name] + start)
        except ReadError as error:
            raise ReadError(f"{_names(unit, start, target)}: {error}") from error

    def rows(self, unit: Unit, rows: Sequence[int]) -> Tensor:
        [matrix] = unit.tensors
        start = self._starts[unit.name]
        width = matrix.num_bytes // matrix.dims[0]

        def read(row: int) -> Tensor:
            return self._reader.read_some(width, start + row * width)

        try:
            return torch.stack([*self._row_threads.map(read, rows)])
        except ReadError as error:
            raise ReadError(f"{matrix.name}: {error}") from error

    def close(self) -> None:
        self._row_threads.shutdown(cancel_futures=True)
        self._writer.close()
        self._reader.close()


def _names(unit: Unit, start: int, target: Tensor) -> str:
    """Name the tensors of which the target would hold a part."""
    end = start + len(target)
    inside = [
        tensor.name
        for tensor in unit.tensors
        if tensor.start < end and start < tensor.end
    ]
    return ", ".join(inside) or unit.name
