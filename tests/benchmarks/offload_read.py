"""How much of the disk's own rate zero-offload reaches while it generates, measured side by side.

In each round a few tokens are generated with all weights streamed from files, and a plain file of
the same size on the same disk is read from end to end into memory, with one thread and with
several; both around the page cache where the file system allows it. The ratio of a round is to
the faster of the plain reads. Prints every round and the median.

One sequence by default: with more, few cores are soon slower than the disk, and the ratio says
nothing of the reading. Wants an otherwise idle machine.

    python tests/benchmarks/offload_read.py [--gigabytes 2] [--rounds 5] [--folder DIR]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from kernels.generate import Batch, Generation
from kernels.offload.fetch import READ_THREADS
from kernels.offload.file_store import DiskFile
from kernels.offload.plan import round_up
from kernels.offload.store import BLOCK_BYTES, page_aligned
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape
from kernels.strategies import Parallel, ZeroOffload
from kernels.weights import RandomWeights
from kernels.world import World
from kernels.zero_offload import OffloadEngine

TOKENS = 4
LAYER_BYTES = 4 * (3 * 2048 * 2048 + 3 * 2048 * 5632)


def main() -> None:
    """Print each round's rates and the median share."""
    options = parsed()
    if options.folder:
        tempfile.tempdir = str(options.folder)
    engine = streaming(round(options.gigabytes * 1e9 / LAYER_BYTES), options.rows)
    streamed = sum(unit.num_bytes for unit in engine.streamer.units)
    print(f"weights: {streamed / 1e9:.2f} GB a token, {engine.weights_wait}")
    with plain_file(streamed) as path:
        print(f"plain file: {streamed / 1e9:.2f} GB, {DiskFile(path).how}")
        token_bytes_per_s(engine, streamed, options.rows)  # checks what was written
        shares = [one_round(engine, path, options.rows) for _ in range(options.rounds)]
    engine.close()
    print(f"median share of the plain read: {median(shares):.1%}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1, help="sequences in the batch")
    parser.add_argument("--folder", type=Path, help="on the disk; default: TMPDIR")
    return parser.parse_args()


def streaming(layers: int, rows: int) -> OffloadEngine:
    """An engine all of whose weights are streamed from files."""
    shape = ModelShape(
        dim=2048, n_layers=layers, n_heads=16, n_kv_heads=8, ffn_dim=5632,
        vocab_size=4096,
    )  # fmt: skip
    strategy = Parallel(zero_offload=ZeroOffload(source="disk"))
    weights = RandomWeights(shape, 0, torch.float32)
    engine = parallelize(shape, strategy, World(), torch.float32, weights)
    assert isinstance(engine, OffloadEngine)
    return engine


@contextmanager
def plain_file(num_bytes: int) -> Iterator[Path]:
    """A file of random bytes next to the weights, out of the page cache."""
    with tempfile.TemporaryDirectory(prefix="orch-read-") as folder:
        path = Path(folder) / "plain"
        block = os.urandom(2 * BLOCK_BYTES)
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            for start in range(0, num_bytes, len(block)):
                file.write(block[: num_bytes - start])
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield path


def one_round(engine: OffloadEngine, path: Path, rows: int) -> float:
    """Print the three rates; the engine's share of the better plain one."""
    streamed = path.stat().st_size
    alone = plain_bytes_per_s(path, 1)
    ours = token_bytes_per_s(engine, streamed, rows)
    together = plain_bytes_per_s(path, READ_THREADS)
    share = ours / max(alone, together)
    print(
        f"offload {ours / 1e9:.2f} GB/s | plain read, 1 thread {alone / 1e9:.2f}, "
        f"{READ_THREADS} threads {together / 1e9:.2f} GB/s | share {share:.1%}"
    )
    return share


def token_bytes_per_s(engine: OffloadEngine, streamed: int, rows: int) -> float:
    """Weights through the ring per second, from the first new token to the last."""
    ends: list[float] = []
    engine.generate(
        Batch.of([[1 + row, 2, 3] for row in range(rows)]),
        Generation(new_tokens=TOKENS + 1),
        lambda _token: ends.append(time.perf_counter()),
    )
    return TOKENS * streamed / (ends[-1] - ends[0])


def plain_bytes_per_s(path: Path, threads: int) -> float:
    """The file from end to end into memory, block after block."""
    file = DiskFile(path)
    memory = page_aligned(2 * threads * BLOCK_BYTES)
    memory.fill_(1)  # the kernel's zeroing of fresh pages is not the disk's time

    def read(start: int) -> None:
        place = start // BLOCK_BYTES % (2 * threads) * BLOCK_BYTES
        length = min(BLOCK_BYTES, round_up(file.num_bytes) - start)
        file.read_into(memory[place : place + length], start)

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(0, file.num_bytes, BLOCK_BYTES)))
    seconds = time.perf_counter() - begin
    file.close()
    return file.num_bytes / seconds


if __name__ == "__main__":
    main()
