"""Our engine: a Llama parallelized over the ranks, ready to generate.

`LlamaEngine` holds what our strategies share: the groups of ranks, this rank's part of the model,
its KV caches, the exact logits, replicas. A strategy with a schedule of its own overrides `run`;
one that keeps its weights elsewhere overrides `layers`.

Shapes, in names: B rows, T tokens, D model width, N new tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kernels.cache import KVCache, Step, slots_for
from kernels.decode import DecodeState
from kernels.engine import EngineFacts, OnToken, ignore
from kernels.generate import (
    Batch,
    Generation,
    NewTokens,
    choose,
    last_tokens,
    not_finite,
)
from kernels.groups import Groups, gather_uneven
from kernels.llama import Llama, rotary_tables
from kernels.placement import place, split_evenly, stage_layers
from kernels.shapes import ModelShape
from kernels.strategies import Strategy
from kernels.timeline import OFF, Timeline
from kernels.world import World


class LlamaEngine(ABC):
    """This rank's part of our model. All ranks call the same methods in the same order."""

    cache_type: Callable[..., KVCache] = KVCache
    """What `new_cache` makes."""
    weights_wait: str | None = None
    """Where streamed weights wait, and how they are read."""

    def __init__(
        self,
        *,
        model: Llama,
        strategy: Strategy,
        world: World,
        groups: Groups,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.shape: ModelShape = model.shape
        self.strategy = strategy
        self.world = world
        self.groups = groups
        self.dtype = dtype
        self.device = world.device
        self.placement = place(strategy, self.shape, world.rank)
        self.timeline: Timeline = OFF
        self._state: DecodeState | None = None
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's parameters; a shared one counts once."""
        by_address = {
            parameter.data_ptr(): parameter.nbytes
            for parameter in self.model.parameters()
        }
        return sum(by_address.values())

    @torch.inference_mode()
    def generate(
        self, batch: Batch, generation: Generation, on_token: OnToken = ignore
    ) -> Tensor:
        """Return the new token ids [B, N], on the CPU and the same on every rank.

        Where generation stops at end tokens, -1 stands after a row's end.
        """
        self._check_length(batch, generation)
        rows = self._rows(batch)
        ids_BN = torch.empty(
            (0, generation.new_tokens), dtype=torch.int64, device=self.device
        )
        if rows:
            part = batch.rows(rows).to(self.device)
            ids_BN = self.run(part, rows, generation, on_token)
        # A copy, since the next generation writes into the same memory.
        return self._gather_rows(ids_BN, batch).to("cpu", copy=True)

    @abstractmethod
    def run(
        self, batch: Batch, rows: range, generation: Generation, on_token: OnToken
    ) -> Tensor:
        """Return the new token ids [B, N] of this replica's rows, on the device.

        Args:
            batch: this replica's rows, on the device.
            rows: their places in the whole batch, on which sampling depends.
            generation: what to generate.
            on_token: to be called with each token's index.
        """

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits [B, T, V] of whole prompts, on the CPU and the same on every rank.

        For comparisons. Logits at padding tokens are meaningless.
        """
        rows = self._rows(batch)
        size = (len(rows), batch.length, self.shape.vocab_size)
        dtype = torch.promote_types(self.dtype, torch.float32)
        logits_BTV = torch.empty(size, dtype=dtype, device=self.device)
        if rows:
            part = batch.rows(rows).to(self.device)
            cache = self.new_cache(len(rows), batch.length)
            cache.begin(part.pad_B)
            slots_T = torch.arange(batch.length, device=self.device)
            x_BTD = self.pass_through(part.ids_BT, cache.step(slots_T))
            if self.placement.is_last:
                logits_BTV = self._gather_vocab(self.model.head(x_BTD))
            self.groups.stages.broadcast(logits_BTV, self.strategy.stages - 1)
        return self._gather_rows(logits_BTV, batch).cpu()

    def facts(self, batch: Batch) -> EngineFacts:
        """Return what is known after generating for these prompts; computes their logits."""
        part = last_tokens(batch, self.shape.vocab_size)
        stages = stage_layers(self.strategy, self.shape.n_layers)
        return EngineFacts(
            split=tuple(map(len, stages)),
            has_rows=self.placement.replica < batch.size,
            weights_wait=self.weights_wait,
            problems=tuple(not_finite(self.logits(part), part)),
        )

    def watch(self, timeline: Timeline) -> None:
        """Report to this timeline from now on."""
        self.timeline = timeline

    def synchronize(self) -> None:
        """Wait until the device has done all that was issued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Free the groups. The engine cannot be used afterwards."""
        self._state = None
        self.groups.close()

    # What strategies build on.

    def layers(self) -> Iterable[nn.Module]:
        """This rank's layers in the order of use, each ready when it is yielded."""
        return self.model.layers.values()

    def new_cache(self, rows: int, length: int) -> KVCache:
        """Return a cache for this many rows of at most `length` tokens, prompt and new ones."""
        slots = slots_for(length)
        if slots not in self._tables:
            self._tables[slots] = rotary_tables(
                self.shape, slots, self.device, self.dtype
            )
        return self.cache_type(
            layers=self.placement.layers,
            rows=rows,
            length=length,
            heads=len(self.placement.heads),
            kv_heads=len(self.placement.kv_heads),
            head_dim=self.shape.head_dim,
            tables=self._tables[slots],
            window=self.shape.sliding_window,
            dtype=self.dtype,
        )

    def decode_state(self, rows: int, prompt: int, new_tokens: int) -> DecodeState:
        """Return the last generation's state, or a new one if it does not fit."""
        length = prompt + new_tokens
        state = self._state
        if state is None or not state.fits(rows, slots_for(length), new_tokens):
            self._state = None  # freed before the next is made
            state = self._state = DecodeState(self.new_cache(rows, length), new_tokens)
        return state

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """This stage's work: hidden states [B, T, D] of ids (first stage) or of hidden states."""
        x_BTD = self.model.embed(x) if self.placement.is_first else x
        return self.model.transform(x_BTD, step, self.layers())

    def pass_through(self, ids_BT: Tensor, step: Step) -> Tensor:
        """Return the hidden states after this stage's layers; waits for the stage before."""
        stages, stage = self.groups.stages, self.placement.stage
        x = ids_BT
        if not self.placement.is_first:
            x = self.new_hidden(*ids_BT.shape)
            stages.receive(x, stage - 1)
        x_BTD = self.forward(x, step)
        if not self.placement.is_last:
            stages.send(x_BTD, stage + 1)
        return x_BTD

    def new_hidden(self, rows: int, tokens: int) -> Tensor:
        """Allocate hidden states [B, T, D] to be received from another stage."""
        return torch.empty(
            (rows, tokens, self.shape.dim), dtype=self.dtype, device=self.device
        )

    def choose(self, x_BTD: Tensor, tokens: NewTokens) -> Tensor:
        """Return the next ids [B], from the last stage's hidden states of the last token."""
        logits_BV = self.model.head(x_BTD[:, -1:])[:, 0]
        return choose(logits_BV, tokens, self.placement.vocab, self.groups.shards)

    def _rows(self, batch: Batch) -> range:
        return split_evenly(batch.size, self.strategy.replicas)[self.placement.replica]

    def _gather_vocab(self, logits_BTV: Tensor) -> Tensor:
        parts = split_evenly(self.shape.vocab_size, self.strategy.shards)
        return gather_uneven(self.groups.shards, logits_BTV, -1, parts)

    def _gather_rows(self, x: Tensor, batch: Batch) -> Tensor:
        parts = split_evenly(batch.size, self.strategy.replicas)
        return gather_uneven(self.groups.replicas, x, 0, parts)

    def _check_length(self, batch: Batch, generation: Generation) -> None:
        length = batch.length + generation.new_tokens
        if length > self.shape.max_seq_len:
            raise ValueError(
                f"prompt and new tokens must fit the model's {self.shape.max_seq_len} positions, "
                f"got {batch.length} + {generation.new_tokens}; take shorter prompts or fewer new "
                f"tokens"
            )


class SequentialEngine(LlamaEngine):
    """One batch, one stage at work at a time: single, model and tensor parallel."""

    def run(
        self, batch: Batch, rows: range, generation: Generation, on_token: OnToken
    ) -> Tensor:
        """Prefill, then one token after the other."""
        state = self.decode_state(batch.size, batch.length, generation.new_tokens)
        state.begin(batch.pad_B, rows, generation)
        self.timeline.at(token=0)
        state.prefill(batch.ids_BT, self.advance)
        on_token(0)
        for index in range(1, generation.new_tokens):
            if state.tokens.all_ended():
                break
            self.timeline.at(index)
            state.step(self.advance)
            on_token(index)
        return state.tokens.ids_BN

    def advance(self, ids_BT: Tensor, step: Step, tokens: NewTokens) -> None:
        """Pass ids through all stages and append the next ones."""
        x_BTD = self.pass_through(ids_BT, step)
        if self.placement.is_last:
            ids_B = self.choose(x_BTD, tokens)
        else:
            ids_B = torch.empty_like(tokens.last_B)
        self.groups.stages.broadcast(ids_B, self.strategy.stages - 1)
        tokens.append(ids_B)
