"""How far each rank is: a few numbers in shared memory.

A rank notes a token by one store into mapped memory, which costs the measurement nothing;
`jobs.launch` reads the board and writes heartbeat.json from it.
"""

import mmap
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PHASES = ("starting", "loading", "warming up", "measuring", "checking", "done")
STARTING, LOADING, WARMING, MEASURING, CHECKING, DONE = range(len(PHASES))

_PHASE, _RUN, _TOKEN, _LOADED, _TICKS, _FIELDS = 0, 1, 2, 3, 4, 5
_BYTES = 8


@dataclass(frozen=True)
class RankProgress:
    """Where one rank stands."""

    rank: int
    phase: str
    run: int
    """Generations before this one, warm-up included."""
    token: int
    """Tokens issued in this generation."""
    loaded: int
    """Percent of the weights."""
    ticks: int
    """Grows with every note; one that stands still belongs to a rank that does."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Larger for a rank that is further."""
        return (self.run, self.token, self.loaded)


class Board:
    """A slot per rank. Each machine has a board of its own: memory is not shared further."""

    def __init__(
        self, memory: mmap.mmap | bytearray, everyone_here: bool = True
    ) -> None:
        self._cells: Final = memoryview(memory).cast("q")
        self._everyone_here = everyone_here

    @classmethod
    def create(cls, folder: Path, ranks: int, everyone_here: bool = True) -> "Board":
        """A new board in a folder, for the ranks of this machine to open.

        Args:
            everyone_here: no rank is on another machine, where it cannot note anything.
        """
        _file(folder).write_bytes(bytes(ranks * _FIELDS * _BYTES))
        return cls(_mapped(folder), everyone_here)

    @classmethod
    def open(cls, folder: Path | None, ranks: int) -> "Board":
        """The board that `create` made on this machine; one that nobody reads without it."""
        if folder is None or not _file(folder).exists():
            return cls(bytearray(ranks * _FIELDS * _BYTES))
        return cls(_mapped(folder))

    def slot(self, rank: int) -> "Slot":
        """What the rank notes in."""
        return Slot(self._cells[rank * _FIELDS : (rank + 1) * _FIELDS])

    def ticks(self) -> int:
        """How often any rank has got on."""
        return sum(self._cells[_TICKS::_FIELDS].tolist())

    def rank_progress(self) -> list[RankProgress]:
        """Where every rank stands that can note it here; at least one."""
        rows = [
            self._cells[start : start + _FIELDS].tolist()
            for start in range(0, len(self._cells), _FIELDS)
        ]
        rank_progress = [
            RankProgress(rank, PHASES[phase], *rest)
            for rank, (phase, *rest) in enumerate(rows)
        ]
        heard = [each for each in rank_progress if each.ticks]
        return rank_progress if self._everyone_here or not heard else heard


def _file(folder: Path) -> Path:
    return folder / f"board-{socket.gethostname()}"


def _mapped(folder: Path) -> mmap.mmap:
    with _file(folder).open("r+b") as stream:
        return mmap.mmap(stream.fileno(), 0)


class Slot:
    """One rank's place on the board."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def enter(self, phase: int, run: int = 0) -> None:
        """A phase, or the next generation of it, begins."""
        self._cells[_PHASE] = phase
        self._cells[_RUN] = run
        self._cells[_TOKEN] = 0
        self._cells[_TICKS] += 1

    def token(self, index: int) -> None:
        """The work for this token was issued."""
        self._cells[_TOKEN] = index + 1
        self._cells[_TICKS] += 1

    def loaded(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the weights is there."""
        self._cells[_LOADED] = 100 * done_bytes // max(total_bytes, 1)
        self._cells[_TICKS] += 1
