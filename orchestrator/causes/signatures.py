"""Lines in logs that tell why a job ended: data for `orchestrator.causes.finding`, nothing else.

Sources: Slurm's slurmstepd/req.c, srun/launch.c, slurm_errno.c, cgroup plugin; PyTorch's
distributed/run.py, ProcessGroupNCCL.cpp, c10 allocators; NCCL's init.cc and bootstrap.cc.
"""

import re
from dataclasses import dataclass

from orchestrator.record import Cause

ROOT, SIGNAL, CONSEQUENCE = range(3)
"""How near a line stands to the root. A process killed by a signal says less than an error that
names itself, and what others then complain of, or are told, says least."""


@dataclass(frozen=True)
class Signature:
    """A pattern and what a line with it means."""

    pattern: re.Pattern[str]
    cause: Cause
    retryable: bool
    remedy: str
    distance: int = ROOT


def _lines(
    cause: Cause, retryable: bool, remedy: str, *patterns: str, distance: int = ROOT
) -> list[Signature]:
    return [
        Signature(re.compile(each, re.MULTILINE), cause, retryable, remedy, distance)
        for each in patterns
    ]


# What torchrun, srun and torch's own hook write before a line of a rank.
PREFIX = r"^(?:\d+: *)?(?:\[[^\]\n]{1,30}\]:? ?)*"

GPU_MEMORY = (
    "needs more GPU memory than there is: take more GPUs, a smaller batch, fewer tokens, a "
    "16-bit dtype, zero-offload, or a larger GPU"
)
HOST_MEMORY = (
    "needs more host memory than the job may use: ask for more, or take fewer ranks"
)
TIME = "needs more time: raise the time limit, or ask for fewer tokens or repeats"
PREEMPTED = "evicted by a job that goes before it: run it again, or in a QOS that keeps its place"
NODE = "the node failed: run it again, on another node"
CANCELLED = "somebody ended it: `orch retry` runs it again"
KILLED = (
    "a process was killed from outside and does not know why: the host ran out of memory, the "
    "job was ended, or somebody used kill; compare `sacct -o State,MaxRSS`"
)
COMMUNICATION = (
    "ranks lost one another: find the rank that hung or is silent in the log; "
    "NCCL_DEBUG=INFO tells the network in use, NCCL_SOCKET_IFNAME chooses it"
)
_REQUEST = "Slurm refused the request: fix it in the cluster profile or the grid"
_WAIT = "Slurm did not answer the job: `orch retry` runs it again"
_DEVICES = "the job sees other GPUs than it needs: compare the GPU request with the case's gpus"

SIGNATURES: tuple[Signature, ...] = (
    # ---- what our own programs say of themselves (orchestrator.causes.finding.announce)
    *_lines(
        "config", False, "fix what the message names, then `orch retry`",
        r"orch: config: .+",
    ),
    *_lines(
        "launch", False, "fix what the message names, then `orch retry`",
        r"orch: launch: .+",
    ),
    # ---- memory
    *_lines(
        "oom_gpu", False, GPU_MEMORY,
        r"CUDA out of memory\. Tried to allocate",
        r"torch\.(?:cuda\.)?OutOfMemoryError",
        r"CUDA error: out of memory",
        r"CUBLAS_STATUS_ALLOC_FAILED",
        r"Failed to CUDA calloc",
        r"[Cc]uda failure (?:2 )?'out of memory'",
        r"HIP out of memory",
    ),
    *_lines(
        "oom_host", False, HOST_MEMORY,
        r"Detected \d+ oom[-_]kill event",
        r"oom-kill event\(s\)",
        r"Some of the step tasks have been OOM Killed",
        r"task [\d,-]+: Out Of Memory",
        r"can't allocate memory: you tried to allocate",
        r"\b(?:MemoryError|_ArrayMemoryError)\b",
        r"std::bad_alloc",
        r"Cannot allocate memory",
    ),
    # ---- Slurm ends a job
    *_lines(
        "timeout", False, TIME,
        r"CANCELLED AT \S+ DUE TO TIME LIMIT",
    ),
    *_lines("preempted", True, PREEMPTED, r"CANCELLED AT \S+ DUE TO PREEMPTION"),
    *_lines("preempted", True, PREEMPTED, r"CANCELLED AT \S+ DUE TO JOB REQUEUE"),
    *_lines("node_fail", True, NODE, r"DUE TO NODE FAILURE"),
    *_lines(
        "cancelled", True, CANCELLED,
        r"(?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: DUE to SIGNAL [^*]+)? \*\*\*",
        distance=CONSEQUENCE,  # srun says so too when it ends a step for one rank's error
    ),
    # ---- srun, inside the job, starts no ranks (what sbatch refuses: causes.slurm_states)
    *_lines(
        "config", False, _REQUEST,
        r"Requested node configuration is not available",
        r"Memory required by task is not available",
    ),
    *_lines(
        "launch", True, _WAIT,
        r"Socket timed out on send/recv",
        r"Unable to contact slurm controller",
    ),
    *_lines(
        "launch", True,
        "submit from outside an allocation, or with the inherited SLURM_* variables unset",
        r"Unable to create step for job \d+: Invalid generic resource",
    ),
    # ---- ranks find one another
    *_lines(
        "launch", False,
        "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names a network interface that the node lacks: "
        "`ip -br address` there lists them; correct it, or `rendezvous: interface` of the profile",
        r"Unable to find address for: \S+",
        r"Bootstrap : no socket interface found",
    ),
    *_lines(
        "launch", False,
        "this torch was built without libuv, and torchrun needs it: install torch from PyPI",
        r"use_libuv was requested but PyTorch was buil[dt] without libuv",
    ),
    *_lines(
        "launch", True, "another process has the port: run it again, a free one is taken",
        r"errno: 98 - Address already in use",
        r"EADDRINUSE",
        r"The server socket has failed to listen on any local network address",
    ),
    *_lines(
        "launch", True,
        "a rank did not reach the first node: check that each node's name leads to its address, "
        "and that no firewall stands between",
        r"The client socket has timed out after \d+\w* while trying to connect to",
        r"(?<!error of type )Rendezvous(?:Closed|Connection|Timeout)Error",
        r"The connection to the C10d store has failed",
        r"Timed out after \d+ seconds waiting for clients",
        r"wait timeout after \d+ms, keys:",
    ),
    # ---- ranks talk to one another
    *_lines(
        "nccl", True, COMMUNICATION,
        r"Watchdog caught collective operation timeout",
        r"Timed out waiting \d+ms for (?:recv|send) operation",
        r"unhandled system error \(run with NCCL_DEBUG",
        r"Application timeout caused pair closure",
    ),
    # ---- the surroundings of the program
    *_lines(
        "launch", False,
        "the environment lacks a package: activate the one that `make` built, or install it there",
        r"ModuleNotFoundError: No module named",
        r"ImportError: ",
    ),
    *_lines(
        "launch", False, "fix the setup lines of the cluster profile",
        r"Lmod has detected the following error",
        r"module: command not found",
        r"activate: No such file",
    ),
    *_lines(
        "launch", True, "a file system is full or its quota used up: make room, then `orch retry`",
        r"No space left on device",
        r"Disk quota exceeded",
    ),
    *_lines(
        "launch", False, "results cannot be written there: fix the permissions or take another "
        "folder with --results",
        r"Read-only file system",
    ),
    *_lines(
        "launch", False, _DEVICES,
        r"CUDA error: invalid device ordinal",
        r"no CUDA GPUs are available",
        r"[Dd]uplicate GPU detected",
    ),
    *_lines(
        "launch", False, "this torch does not fit the GPU or its driver: install another build",
        r"no kernel image is available",
        r"CUDA driver version is insufficient",
        r"NVIDIA driver on your system is too old",
    ),
    *_lines(
        "config", False, "this checkpoint is cut for another number of ranks",
        r"Loading a checkpoint for MP=\d+ but world size is \d+",
    ),
    *_lines(
        "launch", False, "an old script: torchrun no longer passes --local-rank",
        r"unrecognized arguments: --local-rank",
    ),
    *_lines(
        "node_fail", True, "the GPU failed: run it again, on another node; tell the site",
        r"uncorrectable (?:NVLink|ECC) error",
        r"CUDA error: uncorrectable",
        r"GPU (?:is lost|has fallen off the bus)",
    ),
    # ---- a process was killed
    *_lines(
        "unknown", True, KILLED,
        PREFIX + r"Killed$",
        r"task [\d,-]+: Killed",
        r"exitcode ?\s*: -9\b",
        r"Signal 9 \(SIGKILL\)",
        distance=SIGNAL,
    ),
    *_lines(
        "unknown", True,
        "a file that was mapped shrank, or /dev/shm is full: check both, then `orch retry`",
        r"exitcode ?\s*: -7\b", r"Signal 7 \(SIGBUS\)", r"\bBus error\b",
        distance=SIGNAL,
    ),
    *_lines(
        "unknown", False, "native code crashed: see the lines above it in the log",
        r"exitcode ?\s*: -11\b", r"Signal 11 \(SIGSEGV\)", r"Segmentation fault",
        distance=SIGNAL,
    ),
    *_lines(
        "cancelled", True, CANCELLED,
        r"got signal: 15", r"exitcode ?\s*: -15\b", r"Signal 15 \(SIGTERM\)",
        distance=CONSEQUENCE,
    ),
    # ---- what the others then see
    *_lines(
        "nccl", True, COMMUNICATION,
        r"remote process exited or there was a network error",
        r"unhandled cuda error",
        r"ncclInvalidUsage|NCCL error.{0,80}invalid usage",
        r"Connection (?:closed by|reset by) peer",
        r"Socket closed$",
        r"Broken pipe",
        r"due to an error of type Rendezvous\w+",
        distance=CONSEQUENCE,
    ),
)  # fmt: skip
"""Earliest line wins among those nearest to the root."""
