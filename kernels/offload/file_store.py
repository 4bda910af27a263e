"""Where streamed weights wait: one flat file per unit, read in blocks by several threads.

What a file gives is checked against the sums taken when it was written, the first time each
block is read; later reads trust the disk.
"""

import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from kernels.memory import forget_mapped_files
from kernels.offload.disk_reader import BLOCK_BYTES, DiskFile, ReadError
from kernels.offload.layer_store import chunks, memory_of
from kernels.offload.plan import Unit
from kernels.weights import Weights


class FileStore:
    """Units in files, one each, read in blocks by any number of threads."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: bool = False,
        direct: bool = True,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """A store without units yet.

        Args:
            folder: on the disk to stream from.
            keep: give the files names and leave them; else they vanish with the process.
            direct: whether to read around the page cache.
            block_bytes: of one read, a multiple of `disk_reader.ALIGNMENT`.
        """
        self.block_bytes = block_bytes
        self.folder = folder
        self.how = "files"
        self._keep = keep
        self._prefix = "" if keep else f"orch-offload-{secrets.token_hex(8)}-"
        self._direct = direct
        self._files: dict[str, DiskFile] = {}
        self._sums: dict[str, list[int]] = {}
        self._seen: set[tuple[str, int]] = set()
        # Single rows wait behind the large blocks that are under way: better all at once.
        self._row_threads = ThreadPoolExecutor(8, thread_name_prefix="offload-rows")

    def put(self, unit: Unit, weights: Weights, dtype: torch.dtype) -> None:
        """Read a unit from the checkpoint and keep it."""
        self._write(unit, chunks(unit, weights, dtype))
        # A mapped checkpoint's pages count as this process's memory: it would seem to grow.
        forget_mapped_files()

    def keep(self, unit: Unit, flat: Tensor) -> None:
        """Keep a unit that has been on the device so far."""
        if unit.name not in self._files:
            self._write(unit, iter([(0, flat.cpu())]))

    def _write(self, unit: Unit, parts: Iterator[tuple[int, Tensor]]) -> None:
        path = self.folder / f"{self._prefix}{unit.name}.weights"
        with path.open("xb", buffering=0) as file:
            try:
                _reserve(file.fileno(), unit, path)
                self._files[unit.name] = DiskFile(path, direct=self._direct)
            finally:
                # Nameless before it holds anything: whatever kills the process, nothing is left.
                if not self._keep:
                    path.unlink()
            self._sums[unit.name] = _fill(file.fileno(), unit, parts, self.block_bytes)
        self.how = f"files, {self._files[unit.name].how}"

    def read_block(self, unit: Unit, start: int, target: memoryview) -> None:
        """Fill `target` with the block that begins at byte `start` of the unit.

        Raises:
            ReadError: the file is truncated, or not what was written; names the tensors.
        """
        try:
            self._files[unit.name].read_into(target, start)
        except ReadError as error:
            raise ReadError(f"{_names(unit, start, target)}: {error}") from error
        block = start // self.block_bytes
        if (unit.name, block) in self._seen:
            return
        if zlib.crc32(target) != self._sums[unit.name][block]:
            raise ReadError(
                f"{_names(unit, start, target)}: bytes {start} to {start + len(target)} of "
                f"{self._files[unit.name].path} are not what was written: the disk is failing, or "
                f"another program wrote to the file"
            )
        self._seen.add((unit.name, block))

    def rows(self, unit: Unit, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of one matrix, as uint8 [rows, bytes of a row]."""
        piece = unit.piece(name)
        width = piece.num_bytes // piece.dims[0]
        file = self._files[unit.name]
        starts = [piece.start + row * width for row in rows]
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
        """Give everything back."""
        self._row_threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()


def _names(unit: Unit, start: int, target: memoryview) -> str:
    inside = [
        piece.name
        for piece in unit.pieces
        if piece.start < start + len(target) and start < piece.start + piece.num_bytes
    ]
    return ", ".join(inside) or unit.name


def _reserve(descriptor: int, unit: Unit, path: Path) -> None:
    # In one piece where the file system can, and a full disk is known before anything is written.
    try:
        os.posix_fallocate(descriptor, 0, unit.num_bytes)
    except OSError as error:
        room = os.statvfs(path.parent)
        raise OSError(
            error.errno,
            f"{path.parent} has {room.f_bavail * room.f_frsize} bytes left, the next of the "
            f"streamed weights ({unit.name}) needs {unit.num_bytes}: let TMPDIR name a folder on "
            f"a larger disk, or take source: host",
        ) from error


def _fill(
    descriptor: int, unit: Unit, parts: Iterator[tuple[int, Tensor]], block_bytes: int
) -> list[int]:
    """Write a unit's parts, zeros between them, and put them on the disk; the blocks' sums."""
    sums, end = _Sums(block_bytes), 0
    for start, part in parts:
        content = memory_of(part.view(-1).view(torch.uint8))
        for piece in (bytes(start - end), content):
            _write_all(descriptor, piece)
            sums.add(piece)
        end = start + len(content)
    padding = bytes(unit.num_bytes - end)
    _write_all(descriptor, padding)
    sums.add(padding)
    # Only clean pages can be dropped; a page that stayed would be read from memory.
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return sums.finished()


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _Sums:
    """CRC-32 of each block of what is added."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._done: list[int] = []
        self._sum = 0
        self._room = block_bytes

    def add(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        while rest:
            part, rest = rest[: self._room], rest[self._room :]
            self._sum = zlib.crc32(part, self._sum)
            self._room -= len(part)
            if not self._room:
                self._done.append(self._sum)
                self._sum, self._room = 0, self._block_bytes

    def finished(self) -> list[int]:
        return (
            [*self._done, self._sum] if self._room < self._block_bytes else self._done
        )
