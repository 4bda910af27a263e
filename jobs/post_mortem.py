"""Why workers left no record: from how they ended, where they stood, and what they wrote."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.progress import Board, Standing
from jobs.workers import Ending
from orchestrator.causes import Finding, find_cause, usual

_NEAR_END_S = 30
"""Slurm looks at time limits this often; clocks of nodes differ by seconds."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What there is to learn from, besides how the workers ended and where they stood."""

    workers: str = ""
    """Their log."""
    slurm: str = ""
    """What came into the job's log meanwhile."""
    received: signal.Signals | None = None
    """The signal by which this job was asked to end."""
    oom_kills: int = 0
    """Processes the kernel killed meanwhile for want of host memory."""


def explain(ending: Ending, board: Board, told: Told) -> Finding:
    """The cause of an ending."""
    standings = board.standings()
    if ending.timed_out:
        return _too_long(ending, standings)
    if ending.stalled:
        return _stalled(ending, standings)
    if told.received is not None:
        return _of_signal(told.received, standings, told)
    finding = find_cause(told.workers, ending.exit_code, told.oom_kills)
    if finding.cause in ("nccl", "unknown"):
        return _with(finding, stragglers(standings))
    return finding


def _of_signal(
    received: signal.Signals, standings: list[Standing], told: Told
) -> Finding:
    """Slurm tells why it ends a job, in the log of the job or of the workers' step."""
    for text in (told.slurm, told.workers):
        finding = find_cause(text)
        if finding.cause in ("node_fail", "preempted", "timeout"):
            return _with(finding, _where(standings))
    return of_signal(received, standings, os.environ, time.time())


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
