"""Flat buffers in memory and in files: every tensor in its place, every failure with its name."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from answers import SHAPES, random_weights

from kernels import memory
from kernels.memory import file_system
from kernels.offload import store as stores
from kernels.offload.buffer_ring import Stream
from kernels.offload.fetch import fetch_for
from kernels.offload.file_store import DiskFile, FileStore, ReadError
from kernels.offload.plan import PAGE_BYTES, Unit, units_of
from kernels.offload.store import HostStore, memory_of, page_aligned, views
from kernels.placement import owned_slices, place
from kernels.shapes import ModelShape
from kernels.strategies import Parallel, Single, TensorParallel
from kernels.weights import RandomWeights, WeightsError

CPU = torch.device("cpu")
SHAPE = SHAPES["qwen2"]
WEIGHTS = random_weights(SHAPE, torch.float32)


def units(tensor: int = 1, rank: int = 0) -> dict[str, Unit]:
    placement = place(Parallel(tensor=TensorParallel(degree=tensor)), SHAPE, rank)
    return units_of(placement, SHAPE, "float32")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path)
    yield store
    store.close()


def fetched(store: FileStore | HostStore, unit: Unit) -> torch.Tensor:
    buffer, fetch = page_aligned(unit.num_bytes), fetch_for(store, [unit], CPU)
    try:
        fetch.start(0, buffer, Stream(CPU).record()).result()
    finally:
        fetch.close()
    return buffer


def nameless_file(store: FileStore) -> Path:
    """The store's only file: it has no name any more, but this process has it open."""
    file, *_ = [
        link
        for link in Path("/proc/self/fd").iterdir()
        if os.path.lexists(link) and os.readlink(link).startswith(str(store.folder))
    ]
    return file


@pytest.mark.parametrize("where", ["host", "files", "files through the page cache"])
@pytest.mark.parametrize(("tensor", "rank"), [(1, 0), (2, 1)])
def test_what_was_put_in_comes_out(
    where: str, tensor: int, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CHUNK_BYTES", 700)
    store = (
        HostStore(CPU)
        if where == "host"
        else FileStore(tmp_path, direct=where == "files", block_bytes=PAGE_BYTES)
    )
    placement = place(Parallel(tensor=TensorParallel(degree=tensor)), SHAPE, rank)
    slices = owned_slices(placement, SHAPE)
    for unit in units(tensor, rank).values():
        store.put(unit, WEIGHTS, torch.float32)
        found = views(unit, fetched(store, unit), torch.float32)
        for name, value in found.items():
            part = slices[name]
            expected = WEIGHTS.read(part.source, part.dim, part.owned)
            assert torch.equal(value, expected), name
    store.close()


def test_weights_are_stored_in_the_dtype_of_the_run(store: FileStore) -> None:
    placement = place(Parallel(single=Single()), SHAPE, 0)
    unit = units_of(placement, SHAPE, "bfloat16")["layers.1"]
    store.put(unit, WEIGHTS, torch.bfloat16)
    found = views(unit, fetched(store, unit), torch.bfloat16)
    name = "layers.1.feed_forward.w2.weight"
    assert torch.equal(found[name], WEIGHTS.read(name).bfloat16())


@pytest.mark.parametrize("where", ["host", "files"])
def test_single_rows_can_be_had(where: str, tmp_path: Path) -> None:
    store = HostStore(CPU) if where == "host" else FileStore(tmp_path)
    unit = units()["tok_embeddings"]
    store.put(unit, WEIGHTS, torch.float32)
    rows = store.rows(unit, [130, 0, 7, 7])
    expected = WEIGHTS.read("tok_embeddings.weight")[[130, 0, 7, 7]]
    assert torch.equal(rows.view(torch.float32), expected)
    store.close()


def test_files_vanish_with_the_process(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    unit = units()["layers.0"]
    store.put(unit, WEIGHTS, torch.float32)
    assert not list(tmp_path.iterdir())
    assert fetched(store, unit).any()
    store.close()


def test_a_truncated_file_is_named_with_the_first_tensor_that_is_gone(
    store: FileStore,
) -> None:
    unit = units()["layers.2"]
    store.put(unit, WEIGHTS, torch.float32)
    os.truncate(nameless_file(store), PAGE_BYTES)
    with pytest.raises(ReadError, match=r"layers\.2\.attention\.wq\.weight.*truncated"):
        fetched(store, unit)


def test_a_checkpoint_of_another_shape_is_refused_with_the_tensor_s_name(
    store: FileStore,
) -> None:
    class Narrower(RandomWeights):
        def read(
            self, source: str, dim: int = 0, owned: range | None = None
        ) -> torch.Tensor:
            return super().read(source, dim, owned)[..., 1:]

    weights = Narrower(SHAPE, 0, torch.float32)
    with pytest.raises(
        WeightsError, match=r"layers\.0\.attention_norm\.weight must be"
    ):
        store.put(units()["layers.0"], weights, torch.float32)


def test_a_full_disk_is_named_with_the_room_that_is_left(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _start: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    unit = units()["layers.0"]
    with pytest.raises(OSError, match=r"bytes left.*layers\.0.*TMPDIR") as caught:
        store.put(unit, WEIGHTS, torch.float32)
    assert caught.value.errno == 28


def test_short_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(5 * PAGE_BYTES)
    (tmp_path / "file").write_bytes(content)
    right = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return right(descriptor, [buffers[0][: 2 * PAGE_BYTES]], offset)

    file = DiskFile(tmp_path / "file")
    monkeypatch.setattr(os, "preadv", short)
    target = page_aligned(len(content))
    file.read_into(target, 0)
    file.close()
    assert bytes(memory_of(target)) == content


@pytest.mark.parametrize("direct", [True, False])
def test_a_few_bytes_can_be_read_from_anywhere(direct: bool, tmp_path: Path) -> None:
    content = os.urandom(3 * PAGE_BYTES)
    (tmp_path / "file").write_bytes(content)
    file = DiskFile(tmp_path / "file", direct=direct)
    for start, length in [(0, 1), (5, 100), (PAGE_BYTES - 1, 2), (100, 2 * PAGE_BYTES)]:
        read = file.read_some(length, start)
        assert bytes(memory_of(read)) == content[start : start + length]
    with pytest.raises(ReadError, match="truncated"):
        file.read_some(2, 3 * PAGE_BYTES - 1)
    file.close()


def test_where_direct_reads_are_refused_the_page_cache_is_emptied_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return right(path, flags, *more)

    (tmp_path / "file").write_bytes(bytes(PAGE_BYTES))
    monkeypatch.setattr(os, "open", refuse)
    file = DiskFile(tmp_path / "file")
    assert file.how == "page cache dropped after each read"
    file.close()


def test_the_file_system_of_a_folder_is_the_kernel_s_word_for_it() -> None:
    assert file_system(Path("/proc/self")) == "proc"


def test_mapped_files_count_as_memory_until_they_are_forgotten(tmp_path: Path) -> None:
    size = 64 * 2**20
    path = tmp_path / "mapped"
    with path.open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())
    mapped = torch.from_file(str(path), size=size, dtype=torch.uint8)
    total = int(mapped.sum())
    with_pages = memory.resident_bytes()
    memory.forget_mapped_files()
    assert with_pages - memory.resident_bytes() > size // 2
    assert int(mapped.sum()) == total


def test_a_large_unit_takes_little_memory_beside_its_file(store: FileStore) -> None:
    shape = ModelShape(
        dim=512, n_layers=1, n_heads=8, n_kv_heads=8, ffn_dim=512, vocab_size=200_000
    )
    placement = place(Parallel(single=Single()), shape, 0)
    unit = units_of(placement, shape, "float32")["output"]
    weights = RandomWeights(shape, 0, torch.float32)
    weights.read("norm.weight")
    weights.read("output.weight", 0, range(10))
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what is taken
    before = memory.resident_bytes()
    assert memory.reset_peak()
    store.put(unit, weights, torch.float32)
    taken = memory.peak_resident_bytes() - before
    assert taken < unit.num_bytes // 2


def cached_pages(path: Path) -> int:
    """Pages of the file that are in the page cache now."""
    with path.open("rb") as file:
        pages = mmap.mmap(
            file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        )
    count = -(-len(pages) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_size_t(len(pages))
    assert libc.mincore(ctypes.c_void_p(address), length, found) == 0
    return sum(page & 1 for page in found)


@pytest.mark.parametrize("direct", [True, False])
def test_what_was_read_does_not_stay_in_the_page_cache(
    direct: bool, tmp_path: Path
) -> None:
    if file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} is memory itself: nothing there can leave it")
    path = tmp_path / "file"
    with path.open("wb") as written:
        written.write(os.urandom(8 * 2**20))
        os.fsync(written.fileno())
        assert cached_pages(path) > 2000, "the measure would not notice"
        if direct:
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file = DiskFile(path, direct=direct)
    target = page_aligned(file.num_bytes)
    file.read_into(target, 0)
    file.close()
    assert cached_pages(path) == 0
