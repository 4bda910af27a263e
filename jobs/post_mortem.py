"""Why workers left no record: from how they ended, where they stood, and what they wrote."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.progress import Board, Standing
from jobs.workers import Ending
from orchestrator.causes import Finding, find_cause, read_ends, usual

_NEAR_END_S = 30
"""Slurm looks at time limits this often; clocks of nodes differ by seconds."""


def explain(
    ending: Ending,
    board: Board,
    log: Path,
    received: signal.Signals | None,
    oom_kills: int,
) -> Finding:
    """The cause of an ending.

    Args:
        received: the signal by which this job was asked to end.
        oom_kills: processes the kernel killed meanwhile for want of host memory.
    """
    standings = board.standings()
    if ending.timed_out:
        return _too_long(ending, standings)
    if ending.stalled:
        return _stalled(ending, standings)
    if received is not None:
        return of_signal(received, standings, os.environ, time.time())
    finding = find_cause(read_ends(log), ending.exit_code, oom_kills)
    if finding.cause in ("nccl", "unknown"):
        return _with(finding, stragglers(standings))
    return finding


def not_started(error: OSError) -> Finding:
    """The workers could not be started at all."""
    return Finding(
        "launch",
        (f"the workers could not be started: {error}",),
        "see that the results folder and the temporary folder can be written",
        retryable=True,
    )


def of_signal(
    received: signal.Signals,
    standings: list[Standing],
    environment: Mapping[str, str],
    now: float,
) -> Finding:
    """A request to end means the job's time is over, where Slurm said so, or somebody's wish."""
    said = f"{received.name} came from outside"
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and now >= int(end) - _NEAR_END_S:
        said += " at the end of the job's time limit"
        return usual("timeout", said, *_where(standings))
    return usual("cancelled", said, *_where(standings))


def _too_long(ending: Ending, standings: list[Standing]) -> Finding:
    said = f"ended after {ending.elapsed_s:.0f} s by the case's time limit"
    return usual("timeout", said, *_where(standings))


def _stalled(ending: Ending, standings: list[Standing]) -> Finding:
    said = f"no rank got on any more; ended after {ending.elapsed_s:.0f} s"
    return Finding(
        "timeout",
        (said, *(stragglers(standings) or _where(standings))),
        "a rank hung, or one step takes longer than `--stall-s` of jobs.launch: see worker.log",
        retryable=True,
    )


def _where(standings: list[Standing]) -> tuple[str, ...]:
    return (f"by then: {_spoken(min(standings, key=lambda each: each.place))}",)


def stragglers(standings: list[Standing]) -> tuple[str, ...]:
    """A line on the ranks that stood behind the others; none where all stood together."""
    first = max(standings, key=lambda each: each.place)
    behind = [each for each in standings if each.place < first.place]
    if not behind:
        return ()
    names = ", ".join(f"rank {each.rank} at {_spoken(each)}" for each in behind)
    return (f"behind the others ({_spoken(first)}): {names}",)


def _spoken(standing: Standing) -> str:
    return f"{standing.phase}, generation {standing.run + 1}, token {standing.token}"


def _with(finding: Finding, more: tuple[str, ...]) -> Finding:
    return Finding(
        finding.cause, (*finding.evidence, *more), finding.remedy, finding.retryable
    )
