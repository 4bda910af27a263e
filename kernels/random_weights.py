"""Seeded random weights of any shape, of which any slice can be made alone, at memory speed.

Every row of a matrix is a window of one pool of uniform random numbers; where the window starts
follows from the seed, the tensor's name and the row. So a shard costs its own bytes, whatever
the sharding, and nothing larger is ever made. The numbers are integers scaled by powers of two:
the same bits on every machine, and each dtype is the rounding of the same weights.
"""

import hashlib
import math
from functools import cached_property

import torch
from torch import Tensor

from kernels.checkpoints.files import WeightsError
from kernels.shapes import ModelShape, tensors

_STARTS = 4_194_301
"""Number of window starts: a prime, so that no two rows of a matrix share one."""
_STEPS = 1 << 23
"""Values of the pool are multiples of 1 / 2**23 in [-1, 1): exact in float32."""


class RandomWeights:
    """Weights that a seed determines; the same numbers for every way of slicing them."""

    def __init__(self, shape: ModelShape, seed: int, dtype: torch.dtype) -> None:
        self.shape = shape
        self.seed = seed
        self.dtype = dtype
        self._dims = tensors(shape)

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        if source not in self._dims:
            raise WeightsError(f"a random model of this shape has no tensor {source}")
        dims = self._dims[source]
        wanted = [range(size) for size in dims]
        if owned is not None:
            wanted[dim] = owned
        start, step = self._window(source)
        if len(dims) == 1:
            values = self._float_pool[start : start + dims[0]]
            return _vector(source, values)[wanted[0].start : wanted[0].stop].to(
                self.dtype
            )
        rows = torch.arange(wanted[0].start, wanted[0].stop, dtype=torch.int64)
        starts = (rows * step + start) % _STARTS + wanted[1].start
        windows = self._pool.unfold(0, max(len(wanted[1]), 1), 1)
        matrix = windows.index_select(0, starts)
        return matrix.mul_(_scale(source, dims[1])).to(self.dtype)

    def _window(self, source: str) -> tuple[int, int]:
        digest = hashlib.sha256(f"{self.seed}/{source}".encode()).digest()
        start = int.from_bytes(digest[:8], "little") % _STARTS
        return start, 1 + int.from_bytes(digest[8:16], "little") % (_STARTS - 1)

    @cached_property
    def _float_pool(self) -> Tensor:
        widest = max(dims[-1] for dims in self._dims.values())
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        steps = torch.randint(
            -_STEPS, _STEPS, (_STARTS + widest,), generator=generator, dtype=torch.int32
        )
        return steps.to(torch.float32) / _STEPS

    @cached_property
    def _pool(self) -> Tensor:
        # float16 would round the smallest values twice, before and after scaling.
        dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
        return self._float_pool.to(dtype)


def _scale(source: str, fan_in: int) -> float:
    """Return a power of two near what keeps the variance: each layer then adds as much as came in.

    The embedding is kept small beside that. Were it large, the last token would drown what the
    layers say of the context, and a tied head would repeat that token forever.
    """
    if source == "tok_embeddings.weight":
        return 2.0**-5
    return 2.0 ** round(math.log2(math.sqrt(3 / fan_in)))


def _vector(source: str, values: Tensor) -> Tensor:
    return values / 2 if source.endswith(".bias") else 1 + values / 8
