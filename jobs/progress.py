"""How far each rank is: a few numbers in shared memory.

A rank notes a token by one store into mapped memory, which costs the measurement nothing;
`jobs.launch` reads the board and writes heartbeat.json from it.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PHASES = ("starting", "loading", "warming up", "measuring", "checking", "done")
STARTING, LOADING, WARMING, MEASURING, CHECKING, DONE = range(len(PHASES))

_PHASE, _RUN, _TOKEN, _LOADED, _TICKS, _FIELDS = 0, 1, 2, 3, 4, 5
_BYTES = 8


@dataclass(frozen=True)
class Standing:
    """Where one rank stands."""

    phase: str
    run: int
    """Generations before this one, warm-up included."""
    token: int
    """Tokens issued in this generation."""
    loaded: int
    """Percent of the weights."""
    ticks: int
    """Grows with every note; one that stands still belongs to a rank that does."""


class Board:
    """A slot per rank."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._cells: Final = memoryview(memory).cast("q")

    @classmethod
    def create(cls, file: Path, ranks: int) -> "Board":
        """A new board in a file, for others to open."""
        file.write_bytes(bytes(ranks * _FIELDS * _BYTES))
        return cls.open(file)

    @classmethod
    def open(cls, file: Path) -> "Board":
        """The board that `create` made."""
        with file.open("r+b") as stream:
            return cls(mmap.mmap(stream.fileno(), 0))

    @classmethod
    def unseen(cls, ranks: int) -> "Board":
        """A board that nobody else reads, for workers started by hand."""
        return cls(bytearray(ranks * _FIELDS * _BYTES))

    def slot(self, rank: int) -> "Slot":
        """What the rank notes in."""
        return Slot(self._cells[rank * _FIELDS : (rank + 1) * _FIELDS])

    def ticks(self) -> int:
        """How often any rank has got on."""
        return sum(self._cells[_TICKS::_FIELDS].tolist())

    def standings(self) -> list[Standing]:
        """Where every rank stands."""
        rows = [
            self._cells[start : start + _FIELDS].tolist()
            for start in range(0, len(self._cells), _FIELDS)
        ]
        return [Standing(PHASES[phase], *rest) for phase, *rest in rows]


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
