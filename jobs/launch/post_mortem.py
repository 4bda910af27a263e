"""Why workers left no record: from how they ended, their last progress, and their logs."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.launch.workers import Ending, Limits
from jobs.progress import RankProgress
from orchestrator.causes.finding import Finding, find_cause, usual

_NEAR_END_S = 30
"""Slurm checks time limits this often, and clocks of nodes differ by seconds."""


@dataclass(frozen=True, kw_only=True)
class Symptoms:
    """What is known besides how the workers ended and how far they were."""

    worker_log: str = ""
    job_log: str = ""
    """What Slurm and the supervisor wrote to the job's log during the attempt."""
    received: signal.Signals | None = None
    """The signal that asked this job to end."""
    oom_kills: int = 0
    """Processes of the job that the kernel killed for want of host memory."""
    stall_s: float = Limits.stall_s


def explain(
    ending: Ending, ranks: Sequence[RankProgress], symptoms: Symptoms
) -> Finding:
    """Find the cause of an ending."""
    if ending.timed_out:
        return _too_long(ending, ranks)
    if ending.stalled:
        return _stalled(ranks, symptoms)
    if symptoms.received is not None:
        return _asked_to_end(symptoms.received, ranks, symptoms)
    finding = find_cause(symptoms.worker_log, ending.exit_code, symptoms.oom_kills)
    if finding.cause in ("nccl", "unknown"):
        return _with_evidence(finding, stragglers(ranks))
    return finding


def _asked_to_end(
    received: signal.Signals, ranks: Sequence[RankProgress], symptoms: Symptoms
) -> Finding:
    # Slurm writes why it ends a job to the log of the job or of the workers' step.
    for text in (symptoms.job_log, symptoms.worker_log):
        finding = find_cause(text)
        if finding.cause in ("node_fail", "preempted", "timeout"):
            return _with_evidence(finding, _progress(ranks))
    return of_signal(received, ranks, os.environ, time.time())


def not_started(error: OSError) -> Finding:
    """Return the finding for workers that could not be started at all."""
    return Finding(
        "launch",
        (f"the workers could not be started: {error}",),
        "make sure that the results folder and the temporary folder can be written",
        retryable=True,
    )


def of_signal(
    received: signal.Signals,
    ranks: Sequence[RankProgress],
    environment: Mapping[str, str],
    now: float,
) -> Finding:
    """Return the finding for a signal: the time limit, if Slurm had announced it; else a person."""
    evidence = f"{received.name} came from outside"
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and now >= int(end) - _NEAR_END_S:
        evidence += " at the end of the job's time limit"
        return usual("timeout", evidence, *_progress(ranks))
    return usual("cancelled", evidence, *_progress(ranks))


def _too_long(ending: Ending, ranks: Sequence[RankProgress]) -> Finding:
    evidence = f"ended after {ending.elapsed_s:.0f} s by the case's time limit"
    return usual("timeout", evidence, *_progress(ranks))


def _stalled(ranks: Sequence[RankProgress], symptoms: Symptoms) -> Finding:
    return Finding(
        "timeout",
        (
            f"no rank made progress for {symptoms.stall_s:.0f} s",
            *(stragglers(ranks) or _progress(ranks)),
        ),
        "a rank hangs, or one step takes longer than that: see worker.log, or raise "
        "ORCH_STALL_S (seconds) in the profile's environment",
        retryable=True,
    )


def _progress(ranks: Sequence[RankProgress]) -> tuple[str, ...]:
    slowest = min(ranks, key=lambda each: each.order)
    return (f"progress at the end: {_position(slowest)}",)


def stragglers(ranks: Sequence[RankProgress]) -> tuple[str, ...]:
    """Return a line that names the ranks behind the fastest; nothing if all were equally far."""
    fastest = max(ranks, key=lambda each: each.order)
    behind = [each for each in ranks if each.order < fastest.order]
    if not behind:
        return ()
    names = ", ".join(f"rank {each.rank} at {_position(each)}" for each in behind)
    return (f"behind the others ({_position(fastest)}): {names}",)


def _position(rank: RankProgress) -> str:
    return f"{rank.phase}, generation {rank.generation + 1}, token {rank.tokens}"


def _with_evidence(finding: Finding, more: tuple[str, ...]) -> Finding:
    return Finding(
        finding.cause, (*finding.evidence, *more), finding.remedy, finding.retryable
    )
