"""Why workers left no record: from how they ended, where they stood, and what they wrote."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.launch.workers import Ending
from jobs.progress import Board, RankProgress
from orchestrator.causes.finding import Finding, find_cause, usual

_NEAR_END_S = 30
"""Slurm looks at time limits this often; clocks of nodes differ by seconds."""


@dataclass(frozen=True, kw_only=True)
class Symptoms:
    """What there is to learn from, besides how the workers ended and where they stood."""

    workers: str = ""
    """Their log."""
    slurm: str = ""
    """What came into the job's log meanwhile."""
    received: signal.Signals | None = None
    """The signal by which this job was asked to end."""
    oom_kills: int = 0
    """Processes the kernel killed meanwhile for want of host memory."""


def explain(ending: Ending, board: Board, told: Symptoms) -> Finding:
    """The cause of an ending."""
    rank_progress = board.rank_progress()
    if ending.timed_out:
        return _too_long(ending, rank_progress)
    if ending.stalled:
        return _stalled(ending, rank_progress)
    if told.received is not None:
        return _of_signal(told.received, rank_progress, told)
    finding = find_cause(told.workers, ending.exit_code, told.oom_kills)
    if finding.cause in ("nccl", "unknown"):
        return _with(finding, stragglers(rank_progress))
    return finding


def _of_signal(
    received: signal.Signals, rank_progress: list[RankProgress], told: Symptoms
) -> Finding:
    """Slurm tells why it ends a job, in the log of the job or of the workers' step."""
    for text in (told.slurm, told.workers):
        finding = find_cause(text)
        if finding.cause in ("node_fail", "preempted", "timeout"):
            return _with(finding, _where(rank_progress))
    return of_signal(received, rank_progress, os.environ, time.time())


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
    rank_progress: list[RankProgress],
    environment: Mapping[str, str],
    now: float,
) -> Finding:
    """A request to end means the job's time is over, where Slurm said so, or somebody's wish."""
    said = f"{received.name} came from outside"
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and now >= int(end) - _NEAR_END_S:
        said += " at the end of the job's time limit"
        return usual("timeout", said, *_where(rank_progress))
    return usual("cancelled", said, *_where(rank_progress))


def _too_long(ending: Ending, rank_progress: list[RankProgress]) -> Finding:
    said = f"ended after {ending.elapsed_s:.0f} s by the case's time limit"
    return usual("timeout", said, *_where(rank_progress))


def _stalled(ending: Ending, rank_progress: list[RankProgress]) -> Finding:
    said = f"no rank got on any more; ended after {ending.elapsed_s:.0f} s"
    return Finding(
        "timeout",
        (said, *(stragglers(rank_progress) or _where(rank_progress))),
        "a rank hung, or one step takes longer than `--stall-s` of jobs.launch: see worker.log",
        retryable=True,
    )


def _where(rank_progress: list[RankProgress]) -> tuple[str, ...]:
    return (f"by then: {_spoken(min(rank_progress, key=lambda each: each.place))}",)


def stragglers(rank_progress: list[RankProgress]) -> tuple[str, ...]:
    """A line on the ranks that stood behind the others; none where all stood together."""
    first = max(rank_progress, key=lambda each: each.place)
    behind = [each for each in rank_progress if each.place < first.place]
    if not behind:
        return ()
    names = ", ".join(f"rank {each.rank} at {_spoken(each)}" for each in behind)
    return (f"behind the others ({_spoken(first)}): {names}",)


def _spoken(standing: RankProgress) -> str:
    return f"{standing.phase}, generation {standing.run + 1}, token {standing.token}"


def _with(finding: Finding, more: tuple[str, ...]) -> Finding:
    return Finding(
        finding.cause, (*finding.evidence, *more), finding.remedy, finding.retryable
    )
