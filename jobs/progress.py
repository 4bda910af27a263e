"""Progress of each rank: a few integers in shared memory.

A rank reports a token by one store into mapped memory, which costs the measurement nothing. The
supervisor (`jobs.launch`) reads the board and writes heartbeat.json from it, for `orch status`.
"""

import contextlib
import mmap
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.case import Case
from orchestrator.files import write_whole
from orchestrator.record import Heartbeat
from orchestrator.study.files import Attempt

PHASES = ("starting", "loading", "warming up", "measuring", "checking", "done")
STARTING, LOADING, WARMING, MEASURING, CHECKING, DONE = range(len(PHASES))

_PHASE, _GENERATION, _TOKENS, _LOADED, _UPDATES, _FIELDS = 0, 1, 2, 3, 4, 5
_FIELD_BYTES = 8


@dataclass(frozen=True)
class RankProgress:
    """How far one rank is."""

    rank: int
    phase: str
    generation: int
    """Index of the generation, warm-up included."""
    tokens: int
    """Tokens issued in this generation."""
    loaded_percent: int
    """Of the weights."""
    updates: int
    """Grows with every report; it stands still exactly when the rank does."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts ranks, the slowest first."""
        return (self.generation, self.tokens, self.loaded_percent)


class ProgressBoard:
    """Progress of all ranks of one machine; memory is not shared between machines."""

    def __init__(self, memory: mmap.mmap | bytearray, one_node: bool = True) -> None:
        self._cells: Final = memoryview(memory).cast("q")
        self._one_node = one_node

    @classmethod
    def create(cls, folder: Path, ranks: int, one_node: bool = True) -> "ProgressBoard":
        """Make a new board in a folder, for the ranks of this machine to open.

        Args:
            one_node: every rank is on this machine; ranks elsewhere cannot report here.
        """
        _file(folder).write_bytes(bytes(ranks * _FIELDS * _FIELD_BYTES))
        return cls(_mapped(folder), one_node)

    @classmethod
    def open(cls, folder: Path | None, ranks: int) -> "ProgressBoard":
        """Open the board that `create` made on this machine, or else one that nobody reads."""
        if folder is None or not _file(folder).exists():
            return cls(bytearray(ranks * _FIELDS * _FIELD_BYTES))
        return cls(_mapped(folder))

    def reporter(self, rank: int) -> "ProgressReporter":
        """Return the reporter of a rank."""
        return ProgressReporter(self._cells[rank * _FIELDS : (rank + 1) * _FIELDS])

    def updates(self) -> int:
        """Reports of all ranks so far."""
        return sum(self._cells[_UPDATES::_FIELDS].tolist())

    def rank_progress(self) -> list[RankProgress]:
        """Progress of every rank that can report here; of at least one."""
        rows = [
            self._cells[start : start + _FIELDS].tolist()
            for start in range(0, len(self._cells), _FIELDS)
        ]
        ranks = [
            RankProgress(rank, PHASES[phase], *rest)
            for rank, (phase, *rest) in enumerate(rows)
        ]
        reported = [each for each in ranks if each.updates]
        return ranks if self._one_node or not reported else reported


def _file(folder: Path) -> Path:
    return folder / f"progress-{socket.gethostname()}"


def _mapped(folder: Path) -> mmap.mmap:
    with _file(folder).open("r+b") as stream:
        return mmap.mmap(stream.fileno(), 0)


class ProgressReporter:
    """One rank's part of the board."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def enter(self, phase: int, generation: int = 0) -> None:
        """Report that a phase, or the next generation of it, begins."""
        self._cells[_PHASE] = phase
        self._cells[_GENERATION] = generation
        self._cells[_TOKENS] = 0
        self._cells[_UPDATES] += 1

    def token(self, index: int) -> None:
        """Report that the work for a token was issued."""
        self._cells[_TOKENS] = index + 1
        self._cells[_UPDATES] += 1

    def loaded(self, done_bytes: int, total_bytes: int) -> None:
        """Report how much of the weights is loaded."""
        self._cells[_LOADED] = 100 * done_bytes // max(total_bytes, 1)
        self._cells[_UPDATES] += 1


def write_heartbeat(
    attempt: Attempt, case: Case, ranks: Sequence[RankProgress], started_at: datetime
) -> None:
    """Replace the attempt's heartbeat by the progress of the slowest rank."""
    slowest = min(ranks, key=lambda each: each.order)
    beat = Heartbeat(
        at=datetime.now(UTC),
        phase=_phase(slowest, case),
        done=slowest.generation * case.new_tokens + slowest.tokens,
        total=(case.warmup + case.repeats) * case.new_tokens,
        host=socket.gethostname(),
        started_at=started_at,
    )
    # Progress is a courtesy: a disk that takes no heartbeat must not end the attempt.
    with contextlib.suppress(OSError):
        write_whole(attempt.heartbeat_file, beat.model_dump_json(), durable=False)


def _phase(rank: RankProgress, case: Case) -> str:
    name = rank.phase
    if name == PHASES[LOADING]:
        return f"{name} {rank.loaded_percent} %"
    if name == PHASES[WARMING]:
        return f"{name} {rank.generation + 1} of {case.warmup}"
    if name == PHASES[MEASURING]:
        return f"{name} {rank.generation - case.warmup + 1} of {case.repeats}"
    return name
