"""Worker ranks that live as long as the test session: torch is imported once, by a fork server.

A test hands a function of a module (and its arguments) to the ranks of a world and gets every
rank's result. A rank that hangs or dies fails the test within its time, and takes only this
world with it: the next test that asks for the size gets new ranks.
"""

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

JOIN_S = 120.0
RUN_S = 120.0


class RankFailure(AssertionError):
    """A rank raised, died or did not answer in time; the message holds what it left."""


class Ranks:
    """The ranks of one world, as processes on the CPU that talk through gloo."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[tuple[ForkServerProcess, Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(
        self, function: Callable[..., Any], *args: Any, timeout_s: float = RUN_S
    ) -> list[Any]:
        """`function(world, *args)` on every rank; the results by rank."""
        if not self._workers:
            self._start()
        request = pickle.dumps((function, args))
        for _, pipe in self._workers:
            pipe.send_bytes(request)
        return self._results(timeout_s)

    def close(self) -> None:
        """End the processes of this world."""
        for worker, pipe in self._workers:
            pipe.close()
            worker.join(10)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._workers = []
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "kernels.engine"])
        # The store must outlive the start: every new group meets there too.
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        meet_at = Path(self._folder.name) / "store"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=serve, args=(rank, self.size, f"file://{meet_at}", theirs)
            )
            worker.daemon = True
            worker.start()
            theirs.close()
            self._workers.append((worker, ours))
        self._results(JOIN_S)

    def _results(self, timeout_s: float) -> list[Any]:
        end = time.monotonic() + timeout_s
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._workers)}
        results: list[Any] = [None] * self.size
        while waiting:
            ready = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not ready:
                self._fail(f"ranks {sorted(waiting.values())} hung for {timeout_s} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                results[rank] = self._answer(rank, pipe)
        return results

    def _answer(self, rank: int, pipe: Connection) -> Any:
        try:
            error, result = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self._fail(f"rank {rank} of {self.size} died")
        if error:
            self._fail(f"rank {rank} of {self.size}:\n{error}")
        return result

    def _fail(self, why: str) -> None:
        for worker, _ in self._workers:
            worker.kill()
        self.close()
        raise RankFailure(why)


def serve(rank: int, size: int, meet_at: str, pipe: Connection) -> None:
    """What a rank's process does: join the world, then run what comes through the pipe."""
    import torch

    from kernels.world import World, join, leave

    faulthandler.enable(sys.stderr)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    world = World(
        rank=rank, local_rank=rank, size=size, local_size=size, timeout_s=JOIN_S
    )
    join(world, meet_at)
    pipe.send_bytes(pickle.dumps((None, None)))
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        pipe.send_bytes(_outcome(function, world, args))
    leave()


def _outcome(function: Callable[..., Any], world: Any, args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((None, function(world, *args)))
    except Exception:
        return pickle.dumps((traceback.format_exc(), None))
