"""Pipeline parallel: stages work on different micro-batches at the same time.

`kernels.pipeline.schedule` says which forward passes a stage runs in which order, and which ids
the first stage waits for; here a stage runs them. Hidden states travel from stage to stage,
chosen ids from the last stage back to the first. No stage waits for a send that is not known to
have arrived, so no two stages can wait for each other.

Shapes, in names: B rows, T tokens, D model width, N new tokens.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kernels.decode import DecodeState
from kernels.engine import OnToken
from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.pipeline.channels import AHEAD, Channels, Receiver, Sender
from kernels.pipeline.schedule import (
    Flow,
    ForwardPass,
    decode_rows,
    dependencies,
    forward_passes,
)

_TOKENS_PER_SEGMENT = 16
"""If rows may end, all stages drain after so many tokens and agree whether any row goes on."""


class PipelineEngine(LlamaEngine):
    """Stages that work on different micro-batches at the same time."""

    def __init__(self, *, channels: Channels, **parts: Any) -> None:
        super().__init__(**parts)
        self.channels = channels

    def flow(self, rows: int, prompt_tokens: int, new_tokens: int) -> Flow:
        """Return what goes through the stages in one generation of one replica."""
        return Flow(
            schedule=self.strategy.schedule,
            rows=rows,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            micro_batches=self.strategy.micro_batches,
            prefill_micro_batches=self.strategy.prefill_micro_batches,
        )

    def run(
        self, batch: Batch, rows: range, generation: Generation, on_token: OnToken
    ) -> Tensor:
        """Run this stage's forward passes, one after the other."""
        flow = self.flow(batch.size, batch.length, generation.new_tokens)
        passes = forward_passes(flow)
        waits = dependencies(flow, passes)
        state = self.decode_state(batch.size, batch.length, generation.new_tokens)
        state.begin(batch.pad_B, rows, generation)
        chosen = _ChosenIds(self, flow, state)
        last_B = batch.pad_B.new_zeros(batch.size)
        for segment in _segments(passes, generation.stop_at_eos):
            if segment.start and self._all_ended(chosen):
                break
            traffic = _Traffic(self, passes, segment, batch, last_B)
            for number in segment:
                forward = passes[number]
                self.timeline.at(forward.token, forward.micro_batch)
                x = traffic.input(number, waits[number])
                x_BTD = self._compute(forward, x, state)
                if not self.placement.is_last:
                    traffic.send_hidden(number, x_BTD)
                elif forward.chooses:
                    traffic.return_ids(number, chosen.next(forward, x_BTD))
                if (
                    number + 1 == len(passes)
                    or passes[number + 1].token > forward.token
                ):
                    on_token(forward.token)
            traffic.finish()
        return self.groups.stages.broadcast(chosen.ids(), self.strategy.stages - 1)

    def _compute(self, forward: ForwardPass, x: Tensor, state: DecodeState) -> Tensor:
        part = state.part(forward.rows)
        if not forward.token:
            slots_T = state.prompt_slots(forward.columns)
        else:
            slots_T = part.slot_1.fill_(forward.columns.start)
        return self.forward(x, part.cache.step(slots_T))

    def _all_ended(self, chosen: "_ChosenIds") -> bool:
        """Return whether every row has ended, as the last stage knows it."""
        ended_1 = torch.tensor([chosen.all_ended()], device=self.device).long()
        self.groups.stages.broadcast(ended_1, self.strategy.stages - 1)
        return bool(ended_1)

    def close(self) -> None:
        self.channels.close()
        super().close()


def _segments(passes: list[ForwardPass], may_end: bool) -> list[range]:
    """Cut the passes where all stages agree whether to go on; one segment if rows cannot end."""
    starts = [0]
    for number, forward in enumerate(passes):
        begins_token = number > 0 and forward.token > passes[number - 1].token
        if may_end and begins_token and forward.token % _TOKENS_PER_SEGMENT == 0:
            starts.append(number)
    return [range(*segment) for segment in pairwise([*starts, len(passes)])]


class _Traffic:
    """What one stage receives and sends during one segment of a generation."""

    def __init__(
        self,
        engine: PipelineEngine,
        passes: list[ForwardPass],
        segment: range,
        batch: Batch,
        last_B: Tensor,
    ) -> None:
        self._passes, self._segment, self._batch = passes, segment, batch
        self._last_B = last_B
        """On the first stage: the last ids of each row, which its next pass takes in."""
        self._returned = segment.start
        """Passes whose ids are back."""
        self._is_first = engine.placement.is_first
        channels, ahead = engine.channels, AHEAD[engine.device.type]
        self._to_next = Sender(channels.to_next) if channels.to_next else None
        self._to_first = self._hidden = self._ids = None
        if channels.from_previous:
            buffers = self._hidden_buffers(engine)
            self._hidden = Receiver(
                channels.from_previous, buffers, ahead, engine.timeline
            )
        if channels.to_first and self._is_first:
            self._ids = Receiver(
                channels.to_first, self._id_buffers(), ahead, engine.timeline
            )
        elif channels.to_first:
            self._to_first = Sender(channels.to_first)

    def _hidden_buffers(self, engine: PipelineEngine) -> Iterator[Any]:
        for number in self._segment:
            forward = self._passes[number]
            size = len(forward.rows), len(forward.columns)
            yield lambda size=size: engine.new_hidden(*size)

    def _id_buffers(self) -> Iterator[Any]:
        for number in self._segment:
            forward = self._passes[number]
            if forward.chooses:
                rows = len(forward.rows)
                yield lambda rows=rows: self._last_B.new_empty(rows)

    def input(self, number: int, after: int) -> Tensor:
        """Return a pass's ids [B, T] or hidden states, once the ids up to `after` are back."""
        # The first stage starts this pass once those ids are back: what led to them needs
        # nothing more of this stage to arrive, so waiting for it cannot deadlock.
        for sender in (self._to_next, self._to_first):
            if sender:
                sender.release(after)
        if self._hidden:
            return self._hidden.receive()
        self._receive_ids(after)
        forward = self._passes[number]
        rows = slice(forward.rows.start, forward.rows.stop)
        if forward.token:
            return self._last_B[rows, None]
        return self._batch.ids_BT[rows, forward.columns.start : forward.columns.stop]

    def _receive_ids(self, up_to: int) -> None:
        while self._returned <= up_to:
            forward = self._passes[self._returned]
            self._returned += 1
            if self._ids and forward.chooses:
                self._keep(forward, self._ids.receive())

    def _keep(self, forward: ForwardPass, ids_B: Tensor) -> None:
        self._last_B[forward.rows.start : forward.rows.stop] = ids_B

    def send_hidden(self, number: int, x_BTD: Tensor) -> None:
        """Send hidden states to the next stage."""
        assert self._to_next is not None
        self._to_next.send(number, x_BTD)

    def return_ids(self, number: int, ids_B: Tensor) -> None:
        """Send chosen ids to the first stage, or keep them if this is the only one."""
        if self._to_first:
            self._to_first.send(number, ids_B)
        else:
            self._keep(self._passes[number], ids_B)

    def finish(self) -> None:
        """Receive the ids that are still to come, and wait for the last sends."""
        if self._is_first:
            self._receive_ids(self._segment.stop - 1)
        for sender in (self._to_next, self._to_first):
            if sender:
                sender.release(self._segment.stop)


class _ChosenIds:
    """The ids that the last stage chooses; on other stages they are empty."""

    def __init__(self, engine: PipelineEngine, flow: Flow, state: DecodeState) -> None:
        self._engine, self._state = engine, state
        self._rows = decode_rows(flow)
        self._tokens = [state.part(rows).tokens for rows in self._rows]
        # The micro-batches of the prefill need not be those of decode, so the first ids are
        # collected over all rows before the micro-batches of decode begin with them.
        self._first_B = torch.zeros(flow.rows, dtype=torch.int64, device=engine.device)

    def next(self, forward: ForwardPass, x_BTD: Tensor) -> Tensor:
        """Return the ids [B] that follow from the hidden states of a pass."""
        if forward.token:
            tokens = self._tokens[forward.micro_batch]
            ids_B = self._engine.choose(x_BTD, tokens)
            tokens.append(ids_B)
            return ids_B
        ids_B = self._engine.choose(x_BTD, self._state.part(forward.rows).tokens)
        self._first_B[forward.rows.start : forward.rows.stop] = ids_B
        if forward.rows.stop == len(self._first_B):
            for rows, tokens in zip(self._rows, self._tokens, strict=True):
                tokens.append(self._first_B[rows.start : rows.stop])
        return ids_B

    def all_ended(self) -> bool:
        """Return whether nothing is left to do."""
        return all(tokens.all_ended() for tokens in self._tokens)

    def ids(self) -> Tensor:
        """Return all ids [B, N]."""
        return self._state.tokens.ids_BN
