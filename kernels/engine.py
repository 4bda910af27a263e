"""What a measurement uses of an engine: ours, or a peer's. Nothing else of one is used.

Shapes, in names: B rows, N new tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.generate import Batch, Generation

OnToken = Callable[[int], None]
"""Called with a token's index once this rank has issued its work for it."""


def ignore(_index: int) -> None:
    """An `on_token` that does nothing."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What an engine tells about itself after it generated."""

    split: tuple[int, ...]
    """Layers of each stage; one number if the model is not split into stages."""
    has_rows: bool
    """Whether this rank had sequences of the batch to generate."""
    weights_wait: str | None = None
    """Where streamed weights wait, and how they are read; None if none are streamed."""
    problems: tuple[str, ...] = ()
    """Why what it generated cannot be right."""


class Engine(Protocol):
    """A model that is loaded and ready to generate: ours, or a peer's.

    All that a measurement uses. Where there are several ranks, all call the same methods in the
    same order.
    """

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that this rank holds."""

    def generate(
        self, batch: Batch, generation: Generation, on_token: OnToken = ...
    ) -> Tensor:
        """Return the new token ids [B, N], on the CPU and the same on every rank."""

    def facts(self, batch: Batch) -> EngineFacts:
        """Return what is known after generating for these prompts. May compute; not to be timed."""

    def close(self) -> None:
        """Free its resources. The engine cannot be used afterwards."""
