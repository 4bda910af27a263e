"""Batches of prompts, and how the next token is chosen. All on the device, no waiting for it.

Sampling draws no state: the noise of a token is a function of the seed, its index, its row in
the whole batch and its id. So every strategy, shard and micro-batch draws the same.

Shapes, in names: B rows, T tokens of a prompt, N new tokens, V vocabulary, E end ids.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.world import Group

NOTHING = -1
"""Stands after a row's end in generated ids, where generation stops at end tokens."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts left-padded to one length."""

    ids_BT: Tensor
    pad_B: Tensor
    """Padding tokens (id 0) at the front of each row."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], length: int | None = None) -> "Batch":
        """Return these token ids, padded to `length` or to the longest of them.

        Raises:
            ValueError: no prompts, an empty one, or one longer than `length`.
        """
        if not prompts or not all(prompts):
            raise ValueError("a batch needs prompts of at least one token each")
        longest = max(map(len, prompts))
        length = longest if length is None else length
        if longest > length:
            raise ValueError(
                f"a prompt of {longest} tokens does not fit a batch {length} tokens long; "
                f"cut it or take a longer batch"
            )
        pads = [length - len(prompt) for prompt in prompts]
        ids = [
            [0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)
        ]
        return cls(torch.tensor(ids), torch.tensor(pads))

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.ids_BT.shape[0]

    @property
    def length(self) -> int:
        """Tokens of every row, padding included."""
        return self.ids_BT.shape[1]

    def rows(self, rows: range) -> "Batch":
        """Some consecutive rows, at the same length."""
        part = slice(rows.start, rows.stop)
        return Batch(self.ids_BT[part], self.pad_B[part])

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(self.ids_BT.to(device), self.pad_B.to(device))


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What to generate."""

    new_tokens: int
    """Per row, the one that the prefill gives included."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    """Any of these ends a row."""
    stop_at_eos: bool = False
    """Off: every row gets all its tokens, as measuring wants. On: rows end at an end token,
    which is the last one kept, and generation stops once all have ended."""

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens must be at least 1, got {self.new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.stop_at_eos and not self.eos_ids:
            raise ValueError(
                "stop_at_eos needs eos_ids; give the tokenizer's or turn it off"
            )


class NewTokens:
    """The tokens generated for some rows so far, and which rows have ended."""

    def __init__(self, rows: int, new_tokens: int, device: torch.device) -> None:
        """Room for so many tokens of so many rows; `begin` it before use."""
        self.count = new_tokens
        self.row_B = torch.zeros(rows, dtype=torch.int64, device=device)
        """Places in the whole batch, on which sampling depends."""
        self.ids_BN = torch.full((rows, new_tokens), NOTHING, device=device)
        self.index = torch.zeros(1, dtype=torch.int64, device=device)
        """Of the next token; a tensor, so that a graph can replay the step."""
        self.last_B = torch.zeros_like(self.row_B)
        """What the next step reads."""
        self._ended_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self._eos_E = torch.zeros(0, dtype=torch.int64, device=device)

    @classmethod
    def of(
        cls, rows: range, generation: Generation, device: torch.device
    ) -> "NewTokens":
        """Begun for these rows of the whole batch."""
        tokens = cls(len(rows), generation.new_tokens, device)
        tokens.begin(rows, generation)
        return tokens

    def begin(self, rows: range, generation: Generation) -> None:
        """Begin a generation of these rows of the whole batch, in the same memory."""
        self.generation = generation
        torch.arange(rows.start, rows.stop, out=self.row_B)
        self.ids_BN.fill_(NOTHING)
        self.index.zero_()
        self.last_B.zero_()
        self._ended_B.zero_()
        # Only if it is asked for: the ids come from the host, which waits for the device.
        eos_ids = generation.eos_ids if generation.stop_at_eos else ()
        if len(eos_ids) != len(self._eos_E):
            self._eos_E = self._eos_E.new_empty(len(eos_ids))
        if eos_ids:
            self._eos_E.copy_(torch.tensor(eos_ids, dtype=torch.int64))

    def part(self, rows: range) -> "NewTokens":
        """Some of the rows, in the same memory, with an index of their own."""
        part = copy(self)
        part.index = self.index.clone()
        part.begin_part(self, rows)
        return part

    def begin_part(self, whole: "NewTokens", rows: range) -> None:
        """Begin as these rows of a generation that has just begun."""
        cut = slice(rows.start, rows.stop)
        self.generation, self._eos_E = whole.generation, whole._eos_E
        self.row_B, self.ids_BN = whole.row_B[cut], whole.ids_BN[cut]
        self.last_B, self._ended_B = whole.last_B[cut], whole._ended_B[cut]
        self.index.zero_()

    def append(self, ids_B: Tensor) -> None:
        """Add each row's next token; an ended row gets `NOTHING`, whatever was chosen for it."""
        kept_B = ids_B
        if self.generation.stop_at_eos:
            kept_B = ids_B.masked_fill(self._ended_B, NOTHING)
            self._ended_B |= (ids_B[:, None] == self._eos_E).any(1)
        # An ended row goes on being computed: leaving it out would change the shapes of the step.
        self.ids_BN.index_copy_(1, self.index, kept_B[:, None])
        self.last_B.copy_(ids_B)
        self.index += 1

    def all_ended(self) -> bool:
        """Return whether nothing is left to do. Waits for the device, if rows may end at all."""
        return self.generation.stop_at_eos and bool(self._ended_B.all())


def choose(logits_BV: Tensor, tokens: NewTokens, vocab: range, shards: Group) -> Tensor:
    """Return each row's next id [B], the same on every rank of `shards`; of equals the lowest.

    Args:
        logits_BV: this rank's part of the vocabulary.
        tokens: the rows and what to do with them.
        vocab: the ids of this rank's part, in ascending order over `shards`.
        shards: the ranks that hold the other parts.
    """
    temperature = tokens.generation.temperature
    if temperature > 0:
        logits_BV = logits_BV / temperature + gumbel_noise(tokens, vocab)
    # Only the best of each shard travels, not the logits: 16 bytes a row, whatever V.
    best_B, index_B = logits_BV.max(dim=-1)
    id_B = index_B + vocab.start
    if shards.size == 1:
        return id_B
    # One message for both: fp64 holds every score and every id exactly.
    message = torch.stack([best_B.double(), id_B.double()])
    best_GB, id_GB = shards.all_gather(message).unbind(1)
    # The first of equal maxima is the lowest shard, so the lowest id.
    winner_1B = best_GB.argmax(0, keepdim=True)
    return id_GB.gather(0, winner_1B)[0].long()


def gumbel_noise(tokens: NewTokens, vocab: range) -> Tensor:
    """Noise [B, V] whose largest sum with the logits is a draw from their softmax.

    From Gumbel's distribution, hashed from (seed, token index, row, id): no generator state.
    """
    ids_V = torch.arange(vocab.start, vocab.stop, device=tokens.row_B.device)
    hashed = _mix(tokens.index + _mixed_seed(tokens.generation.seed))
    hashed_BV = _mix(_mix(hashed + tokens.row_B)[:, None] + ids_V)
    # 23 bits and a half: never 0 or 1, exact in fp32.
    uniform_BV = ((hashed_BV & 0x7FFFFF).float() + 0.5) / 2**23
    return -torch.log(-torch.log(uniform_BV))


def _mix(x: Tensor) -> Tensor:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014); int64 wraps as uint64 does.
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts the sign in; a hash must shift zeros in.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return (x & (2**64 - 1)) - (2**64 if x & 2**63 else 0)


def _mixed_seed(seed: int) -> int:
    # Spread, so that neighbouring seeds and token indices never meet.
    return _signed((seed * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) & (2**64 - 1))


def not_finite(logits_BTV: Tensor, batch: Batch) -> list[str]:
    """Return what is wrong with the logits of these prompts, padding aside; [] if nothing is."""
    positions_T = torch.arange(batch.length)
    real_BT = positions_T >= batch.pad_B[:, None]
    wrong = int((~logits_BTV.isfinite()).any(-1)[real_BT].sum())
    if wrong:
        return [f"the logits of {wrong} prompt tokens are not finite numbers"]
    return []


def last_tokens(batch: Batch, vocab_size: int, elements: int = 1 << 24) -> Batch:
    """Return the prompts, cut at the front so that their logits are at most so many numbers."""
    keep = max(1, min(batch.length, elements // (batch.size * vocab_size)))
    cut = batch.length - keep
    return Batch(batch.ids_BT[:, cut:], (batch.pad_B - cut).clamp(min=0))
