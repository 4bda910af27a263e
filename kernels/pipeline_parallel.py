"""Pipeline parallel: micro-batches follow each other through the stages, each in rows of its own.

`kernels.pipeline.schedule` says in which order a stage works and what the first stage waits
for; here a stage does so. Hidden states travel from stage to stage, chosen ids from the last
stage back to the first. Nobody waits for a send that is not known to have arrived: no two stages
can wait for each other.

Shapes, in names: B rows, T tokens, D model width, N new tokens.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kernels.decode import DecodeState
from kernels.engine import OnToken
from kernels.generate import Batch, Generation
from kernels.llama_engine import LlamaEngine
from kernels.pipeline.channels import AHEAD, Channels, Inbox, Outbox
from kernels.pipeline.schedule import Flow, Piece, decode_rows, enters_after, order

_ASK_EVERY = 16
"""Where rows may end, all stages drain and ask after so many tokens whether any row goes on."""


class PipelineEngine(LlamaEngine):
    """Stages that work on different micro-batches at the same time."""

    def __init__(self, *, channels: Channels, **parts: Any) -> None:
        super().__init__(**parts)
        self.channels = channels

    def flow(self, rows: int, prompt_tokens: int, new_tokens: int) -> Flow:
        """What goes through the stages in one generation of one replica."""
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
        """This stage's pieces, one after the other."""
        flow = self.flow(batch.size, batch.length, generation.new_tokens)
        pieces = order(flow)
        waits = enters_after(flow, pieces)
        state = self.decode_state(batch.size, batch.length, generation.new_tokens)
        state.begin(batch.pad_B, rows, generation)
        chosen = _Chosen(self, flow, state)
        last_B = batch.pad_B.new_zeros(batch.size)
        for leg in _legs(pieces, generation.stop_at_eos):
            if leg.start and self._all_ended(chosen):
                break
            trip = _Trip(self, pieces, leg, batch, last_B)
            for number in leg:
                piece = pieces[number]
                self.timeline.at(piece.token, piece.micro_batch)
                x_BTD = self._work(piece, trip.enter(number, waits[number]), state)
                if not self.placement.is_last:
                    trip.hand_on(number, x_BTD)
                elif piece.chooses:
                    trip.hand_back(number, chosen.next(piece, x_BTD))
                if number + 1 == len(pieces) or pieces[number + 1].token > piece.token:
                    on_token(piece.token)
            trip.end()
        return self.groups.stages.broadcast(chosen.ids(), self.strategy.stages - 1)

    def _work(self, piece: Piece, x: Tensor, state: DecodeState) -> Tensor:
        part = state.part(piece.rows)
        slots_T = part.slot_1
        if piece.token:
            slots_T.fill_(piece.columns.start)
        else:
            slots_T = state.prompt_slots(piece.columns)
        return self.forward(x, part.cache.step(slots_T))

    def _all_ended(self, chosen: "_Chosen") -> bool:
        """Whether every row has ended, as the last stage knows it."""
        ended_1 = torch.tensor([chosen.all_ended()], device=self.device).long()
        self.groups.stages.broadcast(ended_1, self.strategy.stages - 1)
        return bool(ended_1)

    def close(self) -> None:
        """Free the groups and lines; the engine is of no use afterwards."""
        self.channels.close()
        super().close()


def _legs(pieces: list[Piece], may_end: bool) -> list[range]:
    """The numbers of the pieces, cut where all stages ask each other whether to go on."""
    starts = [0]
    for number, piece in enumerate(pieces):
        is_new = number > 0 and piece.token > pieces[number - 1].token
        if may_end and is_new and piece.token % _ASK_EVERY == 0:
            starts.append(number)
    return [range(*leg) for leg in pairwise([*starts, len(pieces)])]


class _Trip:
    """What enters and leaves one stage during one leg of a generation."""

    def __init__(
        self,
        engine: PipelineEngine,
        pieces: list[Piece],
        leg: range,
        batch: Batch,
        last_B: Tensor,
    ) -> None:
        self._pieces, self._leg, self._batch = pieces, leg, batch
        self._last_B = last_B
        """On the first stage: the ids that came back, which the next token starts from."""
        self._returned = leg.start
        """Pieces whose ids came back."""
        line = engine.channels
        self._first = engine.placement.is_first
        self._next = Outbox(line.after) if line.after else None
        self._to_first = Outbox(line.back) if line.back and not self._first else None
        self._before = self._back = None
        ahead = AHEAD[engine.device.type]
        if line.before:
            rooms = (
                lambda each=each: engine.new_hidden(len(each.rows), len(each.columns))
                for each in pieces[leg.start : leg.stop]
            )
            self._before = Inbox(line.before, rooms, ahead, engine.timeline)
        if line.back and self._first:
            ids = (
                lambda each=each: self._last_B.new_empty(len(each.rows))
                for each in pieces[leg.start : leg.stop]
                if each.chooses
            )
            self._back = Inbox(line.back, ids, ahead, engine.timeline)

    def enter(self, number: int, after: int) -> Tensor:
        """Ids [B, T] or hidden states of a piece, once those up to `after` are back."""
        for outbox in (self._next, self._to_first):
            if outbox:
                outbox.forget(after)
        if self._before:
            return self._before.take()
        self._collect(after)
        piece = self._pieces[number]
        rows = slice(piece.rows.start, piece.rows.stop)
        if piece.token:
            return self._last_B[rows, None]
        return self._batch.ids_BT[rows, piece.columns.start : piece.columns.stop]

    def _collect(self, after: int) -> None:
        while self._returned <= after:
            piece = self._pieces[self._returned]
            self._returned += 1
            if self._back and piece.chooses:
                self._keep(piece, self._back.take())

    def _keep(self, piece: Piece, ids_B: Tensor) -> None:
        self._last_B[piece.rows.start : piece.rows.stop] = ids_B

    def hand_on(self, number: int, x_BTD: Tensor) -> None:
        """Send hidden states to the next stage."""
        assert self._next is not None
        self._next.put(number, x_BTD)

    def hand_back(self, number: int, ids_B: Tensor) -> None:
        """Send chosen ids to the first stage."""
        if self._to_first:
            self._to_first.put(number, ids_B)
        else:
            self._keep(self._pieces[number], ids_B)

    def end(self) -> None:
        """Take what still comes and see the last of what was sent off."""
        if self._first:
            self._collect(self._leg.stop - 1)
        for outbox in (self._next, self._to_first):
            if outbox:
                outbox.forget(self._leg.stop)


class _Chosen:
    """The ids chosen on the last stage; elsewhere room for them."""

    def __init__(self, engine: PipelineEngine, flow: Flow, state: DecodeState) -> None:
        self._engine, self._state = engine, state
        self._rows = decode_rows(flow)
        self._tokens = [state.part(rows).tokens for rows in self._rows]
        self._first_B = torch.zeros(
            flow.rows, dtype=torch.int64, device=engine.device
        )  # of the prefill, whose micro-batches need not be those of decode

    def next(self, piece: Piece, x_BTD: Tensor) -> Tensor:
        """The ids [B] that follow from a piece's hidden states."""
        if piece.token:
            tokens = self._tokens[piece.micro_batch]
            ids_B = self._engine.choose(x_BTD, tokens)
            tokens.append(ids_B)
            return ids_B
        ids_B = self._engine.choose(x_BTD, self._state.part(piece.rows).tokens)
        self._first_B[piece.rows.start : piece.rows.stop] = ids_B
        if piece.rows.stop == len(self._first_B):
            for rows, tokens in zip(self._rows, self._tokens, strict=True):
                tokens.append(self._first_B[rows.start : rows.stop])
        return ids_B

    def all_ended(self) -> bool:
        """Whether nothing is left to do."""
        return all(tokens.all_ended() for tokens in self._tokens)

    def ids(self) -> Tensor:
        """All ids [B, N]."""
        return self._state.tokens.ids_BN
