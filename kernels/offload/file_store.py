"""Streamed weights in files: one flat file per unit, read in blocks by several threads."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from kernels.memory import forget_mapped_files
from kernels.offload.disk_reader import BLOCK_BYTES, DiskFile, ReadError
from kernels.offload.layer_store import chunks, memory_of
from kernels.offload.plan import Unit
from kernels.weights import Weights


class FileStore:
    """Units in nameless files, one each, read in blocks by any number of threads."""

    def __init__(
        self, folder: Path, *, direct: bool = True, block_bytes: int = BLOCK_BYTES
    ) -> None:
        """Make a store without units.

        Args:
            folder: on the disk to stream from.
            direct: whether to read around the page cache.
            block_bytes: of one read, a multiple of `disk_reader.ALIGNMENT`.
        """
        self.block_bytes = block_bytes
        self.folder = folder
        self.how = "files"
        self._direct = direct
        self._files: dict[str, DiskFile] = {}
        # Each single row waits behind the large blocks under way: better to wait for all at once.
        self._row_threads = ThreadPoolExecutor(8, thread_name_prefix="offload-rows")

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        descriptor, name = tempfile.mkstemp(".weights", "orch-offload-", self.folder)
        with open(descriptor, "wb") as file:
            try:
                _reserve(file, unit, self.folder)
                self._files[unit.name] = DiskFile(Path(name), direct=self._direct)
            finally:
                # Nameless before it holds anything: whatever kills the process, nothing is left.
                os.unlink(name)
            _fill(file, chunks(unit, weights, dtype))
        self.how = f"files, {self._files[unit.name].how}"
        # A mapped checkpoint's pages count as this process's memory, which would seem to grow.
        forget_mapped_files()

    def read_block(self, unit: Unit, start: int, target: memoryview) -> None:
        """Fill `target` with the block that begins at byte `start` of the unit.

        Raises:
            ReadError: the file is truncated; names the tensors.
        """
        try:
            self._files[unit.name].read_into(target, start)
        except ReadError as error:
            raise ReadError(f"{_names(unit, start, target)}: {error}") from error

    def rows(self, unit: Unit, name: str, rows: Sequence[int]) -> Tensor:
        tensor = unit.tensor(name)
        width = tensor.num_bytes // tensor.dims[0]
        file = self._files[unit.name]
        starts = [tensor.start + row * width for row in rows]
        try:
            read = [
                *self._row_threads.map(lambda at: file.read_some(width, at), starts)
            ]
        except ReadError as error:
            raise ReadError(f"{name}: {error}") from error
        return torch.frombuffer(bytearray(b"".join(read)), dtype=torch.uint8).view(
            len(rows), width
        )

    def close(self) -> None:
        self._row_threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()


def _names(unit: Unit, start: int, target: memoryview) -> str:
    inside = [
        tensor.name
        for tensor in unit.tensors
        if tensor.start < start + len(target)
        and start < tensor.start + tensor.num_bytes
    ]
    return ", ".join(inside) or unit.name


def _reserve(file: IO[bytes], unit: Unit, folder: Path) -> None:
    # In one piece where the file system can, and a full disk is known before anything is written.
    try:
        os.posix_fallocate(file.fileno(), 0, unit.num_bytes)
    except OSError as error:
        room = os.statvfs(folder)
        raise OSError(
            error.errno,
            f"{folder} has {room.f_bavail * room.f_frsize} bytes left, the next of the "
            f"streamed weights ({unit.name}) needs {unit.num_bytes}: let TMPDIR name a folder on "
            f"a larger disk, or take source: host",
        ) from error


def _fill(file: IO[bytes], parts: Iterator[tuple[int, Tensor]]) -> None:
    """Write parts of a unit where they belong, and have the disk hold them."""
    for start, part in parts:
        file.seek(start)
        file.write(memory_of(part.view(-1).view(torch.uint8)))
    file.flush()
    # Only clean pages can be dropped; a page that stayed would be read from memory.
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
