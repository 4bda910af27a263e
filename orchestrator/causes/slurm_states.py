"""Slurm's words: job states, reasons why a job waits, and why a submission was refused.

The only table of each. States are those of Slurm 22 to 25 (JOB STATE CODES in squeue(1)).
"""

import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.record import Cause


@dataclass(frozen=True)
class SlurmState:
    """What one of Slurm's job states means."""

    phase: Literal["pending", "running", "ended"]
    plain: str = ""
    """For a person; empty if the reason or the phase says enough."""
    cause: Cause = "unknown"
    """Of a job that ended so without a record."""


_RELEASE = "`scontrol release` or the site's staff free it"
STATES = {
    "PENDING": SlurmState("pending"),
    "REQUEUED": SlurmState("pending"),
    "REQUEUE_FED": SlurmState("pending"),
    "EXPEDITING": SlurmState("pending"),
    "CONFIGURING": SlurmState("pending", "its nodes are being made ready"),
    "REQUEUE_HOLD": SlurmState("pending", f"held after a failed launch; {_RELEASE}"),
    "SPECIAL_EXIT": SlurmState("pending", f"held after a special exit; {_RELEASE}"),
    "RESV_DEL_HOLD": SlurmState("pending", "held, its reservation is gone"),
    "RUNNING": SlurmState("running"),
    "COMPLETING": SlurmState("running", "is being ended"),
    "SUSPENDED": SlurmState("running", "suspended"),
    "STOPPED": SlurmState("running", "suspended"),
    "SIGNALING": SlurmState("running"),
    "RESIZING": SlurmState("running"),
    "STAGE_OUT": SlurmState("running"),
    "COMPLETED": SlurmState("ended", "ended by itself", "lost"),
    "CANCELLED": SlurmState("ended", "cancelled", "cancelled"),
    "FAILED": SlurmState("ended", "failed"),
    "TIMEOUT": SlurmState("ended", "it reached its time limit", "timeout"),
    "NODE_FAIL": SlurmState("ended", "its node failed", "node_fail"),
    "PREEMPTED": SlurmState(
        "ended", "preempted by a job of higher priority", "preempted"
    ),
    "BOOT_FAIL": SlurmState("ended", "its node did not boot", "node_fail"),
    "DEADLINE": SlurmState("ended", "its deadline passed", "timeout"),
    "OUT_OF_MEMORY": SlurmState(
        "ended", "it used more main memory than it asked for", "oom_host"
    ),
    "REVOKED": SlurmState("ended", "another cluster took it", "cancelled"),
    "LAUNCH_FAILED": SlurmState("ended", "Slurm could not start it", "launch"),
}
_OTHER = SlurmState("running")
"""A state of a newer Slurm: nothing may be concluded from it, least of all an end."""

# sacct's `code:signal` of a job that FAILED; 128 + signal is how a shell reports a signal.
_EXIT_CAUSES: dict[str, Cause] = {
    "0:125": "oom_host",
    "0:53": "launch",
    "126:0": "launch",
    "127:0": "launch",
    "143:0": "cancelled",
    "0:15": "cancelled",
}


def known_state(text: str) -> str:
    """Find the state in what Slurm prints: `CANCELLED by 1000`, `COMPLETED,FLAG`, `OUT_OF_ME+`."""
    word = re.split(r"[ ,]", text.strip())[0].upper()
    if word in STATES:
        return word
    stem = word.rstrip("+")
    return next(
        (each for each in sorted(STATES) if stem and each.startswith(stem)), word
    )


def phase_of(state: str) -> Literal["pending", "running", "ended"]:
    """Return whether a job in that state waits, runs or has ended."""
    return STATES.get(state, _OTHER).phase


def cause_of(state: str, exit_code: str = "") -> Cause:
    """Return why a job without a record ended.

    Args:
        state: one that means an end.
        exit_code: sacct's `code:signal`, where it is known.
    """
    if state == "FAILED":
        return _EXIT_CAUSES.get(exit_code, "unknown")
    return STATES.get(state, _OTHER).cause


_REASONS = (
    ("Resources", "waits for nodes to become free; it is next"),
    ("Priority", "jobs of higher priority come first"),
    ("JobArrayTaskLimit", "the array's own limit of jobs at once"),
    ("DependencyNeverSatisfied", "waits for a job that failed: it will never start"),
    ("Dependency", "waits for another job"),
    ("BeginTime", "starts later; Slurm delays a requeued job by two minutes"),
    ("JobHeldUser", "held by its user; `scontrol release` frees it"),
    ("JobHeldAdmin", "held by the site's staff"),
    ("launch_failed_requeued_held", "held after a failed launch; ask the site's staff"),
    ("launch_failure_limit_exceeded", "held after failed launches; ask the site's staff"),
    ("PartitionTimeLimit", "longer than the partition allows: it will not start"),
    ("PartitionNodeLimit", "more nodes than the partition allows: it will not start"),
    ("PartitionDown", "the partition is down"),
    ("PartitionInactive", "the partition is switched off"),
    ("PartitionConfig", "the partition does not take it: it will not start"),
    ("QOSMaxWallDurationPerJobLimit", "longer than the QOS allows: it will not start"),
    ("QOSMaxCpuPerJobLimit", "more cores than the QOS allows: it will not start"),
    ("InvalidQOS", "the QOS is not valid any more: it will not start"),
    ("InvalidAccount", "the account is not valid any more: it will not start"),
    ("BadConstraints", "no node can ever satisfy it: it will not start"),
    ("Reservation", "waits for its reservation"),
    ("Licenses", "waits for a licence"),
    ("Nodes_required_for_job_are_DOWN", "the nodes it needs are down or reserved"),
    ("ReqNodeNotAvail, Reserved_for_maintenance",
     "a maintenance comes before it would end; a shorter case_time may fit before it"),
    ("ReqNodeNotAvail,_Reserved_for_maintenance",
     "a maintenance comes before it would end; a shorter case_time may fit before it"),
    ("ReqNodeNotAvail", "the nodes it needs are not available now"),
    ("SystemFailure", "Slurm had a failure"),
    ("JobLaunchFailure", "Slurm could not start it"),
    ("QOSMax", "your limit of this QOS is used up"),
    ("QOSGrp", "this QOS is used up by all its users together"),
    ("AssocMax", "your limit of this account is used up"),
    ("AssocGrp", "this account is used up by all its users together"),
    ("MaxMemPerLimit", "asks for more memory than allowed: it will not start"),
    ("Cleaning", "its last run is being cleaned up"),
    ("None", ""),
)  # fmt: skip

_REFUSALS = (
    (r"Requested time limit is invalid", "take a shorter case_time or fewer cases per job"),
    (r"[Ii]nvalid partition", "`sinfo -s` lists the partitions; set `partition` in a profile"),
    (r"not permitted to use this partition", "take another partition in a profile"),
    (r"Invalid qos", "`sacctmgr show qos` lists them; set `qos` in a profile"),
    (r"Invalid account", "`sacctmgr show associations user=$USER` lists yours; set `account` "
     "in a profile"),
    (r"Requested node configuration is not available",
     "no node has so many GPUs, cores or so much memory: compare the profile with `sinfo -N -l`"),
    (r"Invalid generic resource|[Ii]nvalid gres", "`sinfo -o '%G'` lists the GPU types; set "
     "`devices` in a profile"),
    (r"Invalid feature", "`sinfo -o '%f'` lists the features; set the device's `constraint`"),
    (r"job array", "the array is too large for the site: set `max_array` in a profile"),
    (r"[Mm]emory required|[Mm]emory specification", "take less `host_memory` in a profile"),
    (r"Job violates accounting/QOS policy|submit limit|[Ll]imit.*reached",
     "wait until some of your jobs ended, or take another QOS"),
    (r"Access/permission denied", "this user may not submit here"),
)  # fmt: skip
# After these errors nobody knows whether the controller had already accepted the job.
_UNCERTAIN = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|Transport endpoint|Connection reset|"
    r"Unexpected message|Unable to receive|Slurm backup controller|Communication.*failure",
    re.IGNORECASE,
)


def plain_reason(word: str) -> str:
    """Return why a job waits, in plain words, with Slurm's own word if it says more."""
    word = word.strip("() ")
    for start, meaning in _REASONS:
        if word.startswith(start):
            exact = word == start or not meaning
            return meaning if exact else f"{meaning} ({word})"
    return word


def plain_state(state: str, reason: str = "") -> str:
    """Return what a state means to the person who waits; for a pending job the reason."""
    known = STATES.get(state, _OTHER)
    return known.plain or (plain_reason(reason) if known.phase == "pending" else "")


def is_uncertain(said: str) -> bool:
    """Return whether the job may have been accepted despite sbatch's error."""
    return _UNCERTAIN.search(said) is not None


def way_out(said: str) -> str:
    """Return the remedy for a refusal by sbatch."""
    for pattern, remedy in _REFUSALS:
        if re.search(pattern, said):
            return remedy
    return "`orch doctor` checks what Slurm answers"
