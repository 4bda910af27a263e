"""Decoding: the state that a step reads and writes, and how a step is run.

The state is allocated once for a shape and begun anew in place for each generation. So every step
of every generation reads and writes the same memory, and a step that is captured in a CUDA graph
or compiled during warm-up serves the measured repeats.

Shapes, in names: B rows, T tokens of a prompt.
"""

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from kernels.cache import KVCache, Step
from kernels.generate import Generation, NewTokens

Advance = Callable[[Tensor, Step, NewTokens], None]
"""Takes ids [B, T] and their step through the model, and appends the ids that follow."""


class DecodeState:
    """What a generation of some rows keeps between its steps."""

    def __init__(self, cache: KVCache, new_tokens: int) -> None:
        self.cache = cache
        self.tokens = NewTokens(cache.rows, new_tokens, cache.device)
        self._prompt_slots_S = torch.arange(cache.slots, device=cache.device)
        self.slot_1 = torch.zeros(1, dtype=torch.int64, device=cache.device)
        """Position in the cache of the token that the next step takes in."""
        self._parts: dict[range, DecodeState] = {}

    def fits(self, rows: int, slots: int, new_tokens: int) -> bool:
        """Return whether a generation of that shape can use this state."""
        wanted = (rows, slots, new_tokens)
        return (self.cache.rows, self.cache.slots, self.tokens.count) == wanted

    def begin(self, pad_B: Tensor, rows: range, generation: Generation) -> None:
        """Begin a generation of these rows of the whole batch."""
        self.cache.begin(pad_B)
        self.tokens.begin(rows, generation)
        for of, part in self._parts.items():
            part.tokens.begin_part(self.tokens, of)

    def part(self, rows: range) -> "DecodeState":
        """Return the state of a micro-batch's rows: the same memory, a position of its own."""
        if rows not in self._parts:
            part = copy(self)
            part.cache = self.cache.part(rows)
            part.tokens = self.tokens.part(rows)
            part.slot_1 = self.slot_1.clone()
            self._parts[rows] = part
        return self._parts[rows]

    def prompt_slots(self, columns: range) -> Tensor:
        """Positions in the cache of these columns of the prompts."""
        return self._prompt_slots_S[columns.start : columns.stop]

    def prefill(self, ids_BT: Tensor, advance: Advance) -> None:
        """Take in the prompts and append the first ids."""
        slots_T = self.prompt_slots(range(ids_BT.shape[1]))
        advance(ids_BT, self.cache.step(slots_T), self.tokens)
        self.slot_1.fill_(ids_BT.shape[1])

    def step(self, advance: Advance) -> None:
        """Take in the last ids and append the next ones: the same work on the same memory."""
        advance(self.tokens.last_B[:, None], self.cache.step(self.slot_1), self.tokens)
        self.slot_1 += 1
