"""Pipeline parallel: micro-batches follow each other through the stages, each with its KV lane.

`kernels.schedule` says in which order a stage works and what the first stage waits for; here a
stage does so. Hidden states travel from stage to stage, chosen ids from the last stage back to
the first. Every direction of every pair of neighbours has a group of its own, its messages in
the order of the pieces, and nobody waits for a send that is not known to have arrived: no
two stages can wait for each other.

Shapes, in names: B rows, T tokens, D model width, N new tokens.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work

from kernels.engine import Engine, OnToken
from kernels.generate import Batch, Generation, NewTokens
from kernels.placement import Strategy, axis_groups
from kernels.schedule import Flow, Piece, enters_after, lanes, order
from kernels.timeline import Timeline
from kernels.world import Group, World

_AHEAD = 2
"""Receives asked for before they are needed, so that they overlap with the computation."""


class Channels:
    """The one-way lines between this rank and the stages next to it."""

    def __init__(self, strategy: Strategy, world: World) -> None:
        """Make all lines of the world; every rank calls this."""
        self._groups: list[Group] = []
        self.before: Group | None = None
        """From the stage before to this one."""
        self.after: Group | None = None
        """From this stage to the next one."""
        self.back: Group | None = None
        """From the last stage to the first one."""
        for stages in axis_groups(strategy)["stages"] if strategy.stages > 1 else ():
            for sender, receiver in itertools.pairwise(stages):
                line = world.group((sender, receiver))
                self.after = line if world.rank == sender else self.after
                self.before = line if world.rank == receiver else self.before
                self._groups.append(line)
            line = world.group((stages[-1], stages[0]))
            self.back = line if line.index >= 0 else self.back
            self._groups.append(line)

    def close(self) -> None:
        """Free their connections."""
        for group in self._groups:
            group.close()


class Inbox:
    """Tensors that another rank sends in a fixed order, asked for ahead of their use."""

    def __init__(
        self, line: Group, rooms: Iterable[Callable[[], Tensor]], timeline: Timeline
    ) -> None:
        self._line = line
        self._timeline = timeline
        self._rooms = iter(rooms)
        self._coming: deque[tuple[Work | None, Tensor]] = deque()

    def take(self) -> Tensor:
        """The next tensor; waits for it (on a GPU, the stream does)."""
        self.ask()
        work, tensor = self._coming.popleft()
        if work is not None:
            with self._timeline.span("communication", "receive"):
                work.wait()
        self.ask()
        return tensor

    def ask(self) -> None:
        """Have the next receives under way."""
        while len(self._coming) < _AHEAD and (room := next(self._rooms, None)):
            tensor = room()
            self._coming.append((self._line.start_receive(tensor, 0), tensor))


class Outbox:
    """Tensors under way to another rank, kept until they have arrived."""

    def __init__(self, line: Group) -> None:
        self._line = line
        self._going: deque[tuple[int, Work | None, Tensor]] = deque()

    def put(self, number: int, tensor: Tensor) -> None:
        """Send without waiting."""
        tensor = tensor.contiguous()
        self._going.append((number, self._line.start_send(tensor, 1), tensor))

    def forget(self, number: int) -> None:
        """Let go of the tensors up to this number, which are known to have arrived."""
        while self._going and self._going[0][0] <= number:
            work = self._going.popleft()[1]
            if work is not None:
                work.wait()


class PipelineEngine(Engine):
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
        trip = _Trip(self, flow, pieces, batch)
        chosen = _Chosen(self, flow, rows, generation)
        lane = self.reused_lane(batch.size, batch.length + generation.new_tokens)
        lane.begin(batch.pad_B)
        for number, piece in enumerate(pieces):
            self.timeline.at(piece.token, piece.micro_batch)
            x = trip.enter(number, waits[number])
            slots_T = torch.arange(
                piece.columns.start, piece.columns.stop, device=self.device
            )
            x_BTD = self.forward(x, lane.part(piece.rows).step(slots_T))
            if not self.placement.is_last:
                trip.hand_on(number, x_BTD)
            elif piece.chooses:
                trip.hand_back(number, chosen.next(piece, x_BTD))
            if number + 1 == len(pieces) or pieces[number + 1].token > piece.token:
                on_token(piece.token)
        trip.end(len(pieces))
        return self.groups.stages.broadcast(chosen.ids(), self.strategy.stages - 1)

    def close(self) -> None:
        """Free the groups and lines; the engine is of no use afterwards."""
        self.channels.close()
        super().close()


class _Trip:
    """What enters and leaves one stage during one generation."""

    def __init__(
        self, engine: PipelineEngine, flow: Flow, pieces: list[Piece], batch: Batch
    ) -> None:
        self._pieces, self._batch = pieces, batch
        self._last_B = batch.pad_B.new_zeros(flow.rows)
        """On the first stage: the ids that came back, which the next token starts from."""
        self._returned = 0
        """Pieces whose ids came back."""
        line = engine.channels
        self._first = engine.placement.is_first
        self._next = Outbox(line.after) if line.after else None
        self._to_first = Outbox(line.back) if line.back and not self._first else None
        self._before = self._back = None
        if line.before:
            rooms = (
                lambda each=each: engine.new_hidden(len(each.rows), len(each.columns))
                for each in pieces
            )
            self._before = Inbox(line.before, rooms, engine.timeline)
        if line.back and self._first:
            ids = (
                lambda each=each: self._last_B.new_empty(len(each.rows))
                for each in pieces
                if each.chooses
            )
            self._back = Inbox(line.back, ids, engine.timeline)

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

    def end(self, count: int) -> None:
        """Take what still comes and see the last of what was sent off."""
        if self._first:
            self._collect(count - 1)
        for outbox in (self._next, self._to_first):
            if outbox:
                outbox.forget(count)


class _Chosen:
    """The ids chosen on the last stage; elsewhere room for them."""

    def __init__(
        self, engine: PipelineEngine, flow: Flow, rows: range, generation: Generation
    ) -> None:
        self._engine, self._generation, self._rows = engine, generation, rows
        self._lanes = lanes(flow)
        self._tokens = [self._new_tokens(lane) for lane in self._lanes]
        self._first_B = torch.zeros(
            flow.rows, dtype=torch.int64, device=engine.device
        )  # of the prefill, whose micro-batches need not be those of decode

    def _new_tokens(self, rows: range) -> NewTokens:
        start = self._rows.start
        return NewTokens(
            range(start + rows.start, start + rows.stop),
            self._generation,
            self._engine.device,
        )

    def next(self, piece: Piece, x_BTD: Tensor) -> Tensor:
        """The ids [B] that follow from a piece's hidden states."""
        if piece.token:
            tokens = self._tokens[piece.micro_batch]
            ids_B = self._engine.choose(x_BTD, tokens)
            tokens.append(ids_B)
            return ids_B
        ids_B = self._engine.choose(x_BTD, self._new_tokens(piece.rows))
        self._first_B[piece.rows.start : piece.rows.stop] = ids_B
        if piece.rows.stop == len(self._first_B):
            for rows, tokens in zip(self._lanes, self._tokens, strict=True):
                tokens.append(self._first_B[rows.start : rows.stop])
        return ids_B

    def ids(self) -> Tensor:
        """All ids [B, N]."""
        return torch.cat([tokens.ids_BN for tokens in self._tokens])
