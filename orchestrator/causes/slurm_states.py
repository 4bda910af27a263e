"""Slurm's words in ours: states, reasons why a job waits, and why a submission was refused."""

import re

PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT",
                     "RESV_DEL_HOLD", "CONFIGURING", "EXPEDITING"})  # fmt: skip
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING",
                     "RESIZING", "STAGE_OUT"})  # fmt: skip
ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED",
                   "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED",
                   "LAUNCH_FAILED"})  # fmt: skip

_ENDINGS = {
    "COMPLETED": "ended by itself",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "TIMEOUT": "its time limit was hit",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted by a job of higher priority",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "its deadline passed",
    "OUT_OF_MEMORY": "it used more main memory than it asked for",
    "REVOKED": "another cluster took it",
    "LAUNCH_FAILED": "Slurm could not start it",
}
_HELD = {
    "REQUEUE_HOLD": "held after a failed launch; `scontrol release` or the site's staff free it",
    "SPECIAL_EXIT": "held after a special exit; `scontrol release` frees it",
    "RESV_DEL_HOLD": "held, its reservation is gone",
    "CONFIGURING": "its nodes are being made ready",
}
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
# After these nobody knows whether the controller had already taken the job.
_UNCERTAIN = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|Transport endpoint|Connection reset|"
    r"Unexpected message|Unable to receive|Slurm backup controller|Communication.*failure",
    re.IGNORECASE,
)


def plain_reason(word: str) -> str:
    """Why a job waits, in plain words, with Slurm's own word where it says more."""
    word = word.strip("() ")
    for start, meaning in _REASONS:
        if word.startswith(start):
            exact = word == start or not meaning
            return meaning if exact else f"{meaning} ({word})"
    return word


def plain_state(state: str, reason: str = "") -> str:
    """What a state means for the person who waits; of a pending job the reason."""
    if state in _HELD:
        return _HELD[state]
    if state in ENDED:
        return _ENDINGS[state]
    if state == "COMPLETING":
        return "is being ended"
    if state in ("SUSPENDED", "STOPPED"):
        return "suspended"
    return plain_reason(reason) if state in PENDING else ""


def is_uncertain(said: str) -> bool:
    """Whether sbatch's error leaves open that the job was accepted."""
    return _UNCERTAIN.search(said) is not None


def way_out(said: str) -> str:
    """What can be done about sbatch's refusal."""
    for pattern, remedy in _REFUSALS:
        if re.search(pattern, said):
            return remedy
    return "`orch doctor` looks at what Slurm answers"
