"""Pipeline parallel: stages work on different micro-batches at the same time.

`kernels.pipeline.schedule` says which forward passes a stage runs in which order, and which ids
the first stage waits for; here a stage runs them. Hidden states travel from stage to stage,
chosen ids from the last stage back to the first. No stage waits for a send that is not known to
have arrived, so no two stages can wait for each other.

Shapes, in names: B rows, T tokens, D model width, N new tokens.
"""

from collections import deque
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

    def run(
        self, batch: Batch, rows: range, generation: Generation, on_token: OnToken
    ) -> Tensor:
        """Run this stage's forward passes, one after the other."""
        size = batch.size, batch.length, generation.new_tokens
        flow = Flow.of(self.strategy, *size)
        passes = forward_passes(flow)
        waits = dependencies(flow, passes)
        state = self.decode_state(*size)
        state.begin(batch.pad_B, rows, generation)
        for segment in _segments(passes, generation.stop_at_eos):
            if segment.start and self._all_ended(state):
                break
            messages = _Messages(self, passes, segment, state)
            for number in segment:
                forward = passes[number]
                self.timeline.at(forward.token, forward.micro_batch)
                x = messages.input(number, waits[number], batch)
                x_BTD = self._compute(forward, x, state)
                if not self.placement.is_last:
                    messages.send(number, x_BTD)
                elif forward.chooses:
                    messages.send(number, self._choose_ids(forward, x_BTD, state, flow))
                if forward.completes_token(flow):
                    on_token(forward.token)
            messages.finish()
        return self.groups.stages.broadcast(
            state.tokens.ids_BN, self.strategy.stages - 1
        )

    def _compute(self, forward: ForwardPass, x: Tensor, state: DecodeState) -> Tensor:
        part = state.part(forward.rows)
        if not forward.token:
            slots_T = state.prompt_slots(forward.columns)
        else:
            # Filled in place: every step of a micro-batch reads its position from one tensor.
            slots_T = part.slot_1.fill_(forward.columns.start)
        return self.forward(x, part.cache.step(slots_T))

    def _choose_ids(
        self, forward: ForwardPass, x_BTD: Tensor, state: DecodeState, flow: Flow
    ) -> Tensor:
        """Return the ids [B] that follow from the last stage's hidden states, and keep them."""
        tokens = state.part(forward.rows).tokens
        ids_B = self.choose(x_BTD, tokens)
        if forward.token:
            tokens.append(ids_B)
            return ids_B
        # The micro-batches of the prefill need not be those of decode, and each of those counts
        # its own tokens: the first ids are appended once every row has one.
        tokens.last_B.copy_(ids_B)
        if forward.completes_token(flow):
            for rows in decode_rows(flow):
                tokens = state.part(rows).tokens
                tokens.append(tokens.last_B)
        return ids_B

    def _all_ended(self, state: DecodeState) -> bool:
        """Return whether every row has ended, which only the last stage knows by itself."""
        ended_1 = torch.tensor([state.tokens.all_ended()], device=self.device).long()
        self.groups.stages.broadcast(ended_1, self.strategy.stages - 1)
        return bool(ended_1)

    def close(self) -> None:
        self.channels.close()
        super().close()


def _segments(passes: list[ForwardPass], may_end: bool) -> list[range]:
    """Cut the passes where all stages agree whether to go on; one segment if rows cannot end."""
    # Not after every token: to agree, the pipeline must drain, and async would be gpipe.
    starts = [
        number
        for number, forward in enumerate(passes)
        if forward.micro_batch == 0
        and forward.token % _TOKENS_PER_SEGMENT == 0
        and (may_end or forward.token == 0)
    ]
    return [range(*segment) for segment in pairwise([*starts, len(passes)])]


class _Messages:
    """What one stage receives and sends during one segment of a generation.

    A segment's receives are all matched by its sends, so that nothing is in transit when the
    stages agree to stop.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        passes: list[ForwardPass],
        segment: range,
        state: DecodeState,
    ) -> None:
        self._passes, self._segment, self._state = passes, segment, state
        channels, ahead = engine.channels, AHEAD[engine.device.type]
        # Each stage sends to one other: hidden states to the next, or ids to the first.
        outward = channels.to_next or channels.to_first
        self._sender = Sender(outward) if outward else None
        self._hidden = self._ids = None
        self._awaited: deque[int] = deque()
        """On the first stage: passes whose ids are not back yet."""
        own = [passes[number] for number in segment]
        if channels.from_previous:
            buffers = (
                engine.new_hidden(len(each.rows), len(each.columns)) for each in own
            )
            self._hidden = Receiver(
                channels.from_previous, buffers, ahead, engine.timeline
            )
        elif channels.to_first:
            # Received into the rows that the next pass reads. A receive posted early cannot
            # overwrite ids still to be read: new ones follow from the pass that reads the old.
            buffers = (
                state.part(each.rows).tokens.last_B for each in own if each.chooses
            )
            self._ids = Receiver(channels.to_first, buffers, ahead, engine.timeline)
            self._awaited += (each for each in segment if passes[each].chooses)

    def input(self, number: int, after: int, batch: Batch) -> Tensor:
        """Return a pass's ids [B, T] or hidden states, once the ids up to `after` are back."""
        forward = self._passes[number]
        if self._hidden:
            x = self._hidden.receive()
        else:
            self._receive_ids(after)
            x = self._input_ids(forward, batch)
        # The first stage began this pass with the ids up to `after` at hand, so every message
        # that led to them has arrived: waiting for those sends takes no time.
        self._release(after)
        return x

    def _input_ids(self, forward: ForwardPass, batch: Batch) -> Tensor:
        if forward.token:
            return self._state.part(forward.rows).tokens.last_B[:, None]
        rows, columns = forward.rows, forward.columns
        return batch.ids_BT[rows.start : rows.stop, columns.start : columns.stop]

    def _receive_ids(self, up_to: int) -> None:
        while self._ids and self._awaited and self._awaited[0] <= up_to:
            self._awaited.popleft()
            self._ids.receive()

    def _release(self, up_to: int) -> None:
        if self._sender:
            self._sender.release(up_to)

    def send(self, number: int, x: Tensor) -> None:
        """Send a pass's hidden states to the next stage, or the last stage's ids to the first."""
        if self._sender:
            self._sender.send(number, x)

    def finish(self) -> None:
        """Receive the ids that are still to come, and wait for the last sends."""
        self._receive_ids(self._segment.stop)
        self._release(self._segment.stop)
