"""Causes from logs as they really look, from exit codes, and from Slurm's own account."""

import time
from pathlib import Path

import pytest

from orchestrator.causes.finding import (
    announce,
    find_cause,
    read_ends,
    status_of,
    usual,
)
from orchestrator.causes.slurm_states import (
    STATES,
    cause_of,
    known_state,
    phase_of,
    plain_state,
)
from orchestrator.record import Cause

OOM_LINE = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total "
    "capacity of 79.15 GiB of which 1.12 GiB is free."
)
OOM_ON_RANK_1 = f"""\
[rank0]:loading llama-2-70b:  12%|#2        | 10/80\rloading llama-2-70b:  14%|#4  | 11/80
[rank1]:[rank1]: Traceback (most recent call last):
[rank0]:[rank0]: Traceback (most recent call last):
[rank1]:[rank1]:   File "bench.py", line 88, in generate
[rank1]:[rank1]: {OOM_LINE}
[rank0]:[rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, remote \
process exited or there was a network error, NCCL version 2.27.3
W0923 10:11:12.000 41 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 44 \
closing signal SIGTERM
E0923 10:11:12.100 41 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1) \
local_rank: 1 (pid: 45) of binary: python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
KILLED_RANK = """\
[rank0]:[rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer \
[127.0.0.1]:51234
W0923 10:11:12.000 41 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 44 \
closing signal SIGTERM
E0923 10:11:12.100 41 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: -9) \
local_rank: 1 (pid: 45) of binary: python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
jobs.bench FAILED
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 45)
  traceback : Signal 9 (SIGKILL) received by PID 45
"""

LINES = [
    (OOM_LINE, "oom_gpu", False),
    ("RuntimeError: CUDA error: out of memory", "oom_gpu", False),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", "oom_host", False),
    ("srun: error: a1: task 0: Out Of Memory", "oom_host", False),
    ("[rank0]:MemoryError", "oom_host", False),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 4000000000000 bytes.",
        "oom_host",
        False,
    ),
    (
        "slurmstepd: error: *** JOB 812 ON sg001 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME "
        "LIMIT ***",
        "timeout",
        False,
    ),
    (
        "slurmstepd: error: *** STEP 812.0 ON sg001 CANCELLED AT 2026-01-02T03:04:05 DUE TO "
        "PREEMPTION ***",
        "preempted",
        True,
    ),
    (
        "slurmstepd: error: *** JOB 812 ON sg001 CANCELLED AT 2026-01-02T03:04:05 DUE TO NODE "
        "FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
        "node_fail",
        True,
    ),
    (
        "slurmstepd: error: *** STEP 812.0 ON sg001 CANCELLED AT 2026-01-02T03:04:05 ***",
        "cancelled",
        True,
    ),
    (
        "slurmstepd: error: *** JOB 8_2 ON sg001 CANCELLED AT 2026-01-02T03:04:05 DUE to SIGNAL "
        "Terminated ***",
        "cancelled",
        True,
    ),
    (
        "srun: error: Unable to create step for job 17: Requested node configuration is not "
        "available",
        "config",
        False,
    ),
    (
        "srun: error: Unable to create step for job 17: Memory required by task is not available",
        "config",
        False,
    ),
    (
        "srun: error: Unable to create step for job 17: Unable to contact slurm controller "
        "(connect failure)",
        "launch",
        True,
    ),
    (
        "[rank0]:RuntimeError: [enforce fail at third_party/gloo/gloo/transport/tcp/device.cc:84] "
        "ifa != nullptr. Unable to find address for: ib0",
        "launch",
        False,
    ),
    (
        "[W923 socket.cpp:764] The server socket has failed to bind to [::]:29400 (errno: 98 - "
        "Address already in use).",
        "launch",
        True,
    ),
    (
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while "
        "trying to connect to (sg001, 29400).",
        "launch",
        True,
    ),
    (
        "[rank1]:[E923 ProcessGroupNCCL.cpp:616] [Rank 1] Watchdog caught collective operation "
        "timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600013 ms",
        "nccl",
        True,
    ),
    (
        "[rank0]: RuntimeError: [unbound_buffer.cc:78] Timed out waiting 600000ms for recv "
        "operation to complete",
        "nccl",
        True,
    ),
    ("ModuleNotFoundError: No module named 'sentencepiece'", "launch", False),
    ("OSError: [Errno 28] No space left on device", "launch", True),
    ("torch.AcceleratorError: CUDA error: invalid device ordinal", "launch", False),
    ("AssertionError: Loading a checkpoint for MP=8 but world size is 4", "config", False),
    ("[rank3]:Killed", "unknown", True),
    ("srun: error: sg001: task 0: Killed", "unknown", True),
    ("traceback : Signal 11 (SIGSEGV) received by PID 9", "unknown", False),
]  # fmt: skip


@pytest.mark.parametrize(("line", "cause", "retryable"), LINES)
def test_a_line_of_a_real_log_names_its_cause(
    line: str, cause: str, retryable: bool
) -> None:
    noise = "INFO starting\nall is well\n"
    finding = find_cause(f"{noise}{line}\n{noise}", exit_code=1)
    assert (finding.cause, finding.retryable) == (cause, retryable)
    assert finding.evidence[0] == line
    assert finding.remedy


def test_the_root_is_found_among_the_interleaved_lines_of_its_peers() -> None:
    finding = find_cause(OOM_ON_RANK_1, exit_code=1)
    assert (finding.cause, finding.status) == ("oom_gpu", "oom")
    assert finding.evidence == (f"[rank1]:[rank1]: {OOM_LINE}",)


def test_a_peers_complaint_before_the_root_does_not_hide_it() -> None:
    lines = OOM_ON_RANK_1.splitlines()
    complaint = next(line for line in lines if "remote process exited" in line)
    lines.remove(complaint)
    assert find_cause("\n".join([complaint, *lines])).cause == "oom_gpu"


def test_of_two_roots_the_earlier_wins() -> None:
    full = "OSError: [Errno 28] No space left on device"
    assert find_cause(f"{full}\n{OOM_LINE}").cause == "launch"
    assert find_cause(f"{OOM_LINE}\n{full}").cause == "oom_gpu"


def test_a_killed_rank_is_told_from_the_connection_that_it_broke() -> None:
    finding = find_cause(KILLED_RANK, exit_code=1)
    assert (finding.cause, finding.retryable) == ("unknown", True)
    assert "exitcode: -9" in finding.evidence[0]
    assert "local_rank: 1" in finding.evidence[0]


def test_a_killed_rank_is_out_of_memory_when_the_kernel_says_so() -> None:
    finding = find_cause(KILLED_RANK, exit_code=1, oom_kills=1)
    assert (finding.cause, finding.status) == ("oom_host", "oom")
    assert find_cause(OOM_ON_RANK_1, oom_kills=1).cause == "oom_gpu"


def test_a_lost_connection_alone_is_a_matter_of_communication() -> None:
    finding = find_cause(KILLED_RANK.splitlines()[0], exit_code=1)
    assert (finding.cause, finding.retryable) == ("nccl", True)


LEFT_ALONE = (
    "W1123 10:19:55.467000 14 torch/distributed/elastic/rendezvous/dynamic_rendezvous.py:1298] "
    "The node 'sg001_14_0' has failed to shutdown the rendezvous '8.1' due to an error of type "
    "RendezvousConnectionError."
)


def test_a_node_that_finds_the_meeting_place_closed_is_not_the_root() -> None:
    finding = find_cause(f"{LEFT_ALONE}\n{KILLED_RANK}", exit_code=1)
    assert (finding.cause, finding.retryable) == ("unknown", True)
    assert "exitcode: -9" in finding.evidence[0]
    raised = "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: no"
    assert find_cause(raised, exit_code=1).cause == "launch"


QUOTED = """\
[rank1]:[rank1]: Traceback (most recent call last):
[rank1]:[rank1]:   File "api.py", line 137, in meet
[rank0]:[rank0]: Traceback (most recent call last):
[rank1]:[rank1]:     raise RendezvousConnectionError(
[rank1]:[rank1]:     ...<2 lines>...
[rank1]:[rank1]:         "CUDA out of memory. Tried to allocate"
[rank0]:[rank0]:   File "<frozen runpy>", line 198, in run
[rank1]:[rank1]: KeyError: 'layers.3'
"""


WITHOUT_LIBUV = """\
Traceback (most recent call last):
  File "c10d_rendezvous_backend.py", line 159, in _create_tcp_store
    store = TCPStore(
        host,
    ...<3 lines>...
        timeout=timedelta(seconds=read_timeout),
    )
RuntimeError: use_libuv was requested but PyTorch was build without libuv support

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "c10d_rendezvous_backend.py", line 183, in _create_tcp_store
    raise RendezvousConnectionError(
        "The connection to the C10d store has failed. See inner exception for details."
    ) from exc
torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d \
store has failed. See inner exception for details.
"""


def test_a_torch_without_libuv_is_told_as_such() -> None:
    finding = find_cause(WITHOUT_LIBUV, exit_code=1)
    assert (finding.cause, finding.retryable) == ("launch", False)
    assert "use_libuv" in finding.evidence[0]
    assert "without libuv" in finding.remedy


def test_source_that_a_traceback_quotes_is_no_evidence() -> None:
    finding = find_cause(QUOTED, exit_code=1)
    assert (finding.cause, finding.evidence[0]) == ("unknown", OWN_ERROR)
    for said in (OOM_LINE, f"[rank0]:[rank0]: {OOM_LINE}"):
        assert find_cause(f"{QUOTED}{said}\n", exit_code=1).cause == "oom_gpu"


OWN_ERROR = "[rank1]:[rank1]: KeyError: 'layers.3'"


def test_a_programs_own_error_is_nearer_than_what_its_peers_see() -> None:
    lost = KILLED_RANK.splitlines()[0]
    step = "slurmstepd: error: *** STEP 8.0 ON sg1 CANCELLED AT 2026-01-02T03:04:05 ***"
    for consequence in (lost, step, "SignalException: Process 7 got signal: 15"):
        finding = find_cause(f"{consequence}\n{OWN_ERROR}\n", exit_code=1)
        assert (finding.cause, finding.retryable) == ("unknown", False)
        assert finding.evidence[0] == OWN_ERROR


def test_a_kill_is_nearer_than_a_programs_own_error_but_both_are_shown() -> None:
    finding = find_cause(f"{OWN_ERROR}\n{KILLED_RANK}", exit_code=1)
    assert (finding.cause, finding.retryable) == ("unknown", True)
    assert "exitcode: -9" in finding.evidence[0]
    assert finding.evidence[1] == OWN_ERROR


def test_an_error_without_a_signature_is_unknown_and_shown() -> None:
    log = "[rank0]:[rank0]: Traceback (most recent call last):\n" + (
        "[rank0]:[rank0]: ValueError: seven is not eight\n"
    )
    finding = find_cause(log, exit_code=1)
    assert (finding.cause, finding.retryable) == ("unknown", False)
    assert finding.evidence == (
        "[rank0]:[rank0]: ValueError: seven is not eight",
        "the workers ended with exit code 1",
    )


def test_silence_is_unknown_and_worth_another_try() -> None:
    finding = find_cause("", exit_code=-11)
    assert (finding.cause, finding.retryable) == ("unknown", True)
    assert finding.evidence == ("the workers were ended by signal 11",)
    assert find_cause("").evidence == ("nothing was written",)


def test_what_a_program_of_ours_announces_is_the_cause() -> None:
    said = announce("config", "no checkpoint in /x:\n take another path")
    assert said == "orch: config: no checkpoint in /x: take another path"
    finding = find_cause(f"[rank0]:{said}\n[rank1]:{said}\n{KILLED_RANK}", exit_code=1)
    assert (finding.cause, finding.evidence) == ("config", (f"[rank0]:{said}",))


def test_evidence_is_short_and_printable() -> None:
    finding = find_cause(f"10%\r20%\r\x1b[31m{OOM_LINE}\x1b[0m{'x' * 9000}\n")
    assert finding.evidence[0].startswith(OOM_LINE)
    assert len(finding.evidence[0]) == 500


def test_a_log_of_many_megabytes_is_read_at_both_ends(tmp_path: Path) -> None:
    noise = "[rank0]:NCCL INFO channel 00/32 : 0 1 2 3\n" * 500_000
    early, late = tmp_path / "early.log", tmp_path / "late.log"
    early.write_text(f"{OOM_LINE}\n{noise}")
    late.write_text(f"{noise}{OOM_LINE}\n")
    for file in (early, late):
        text = read_ends(file)
        assert len(text) < 5_000_000 < file.stat().st_size
        assert find_cause(text).cause == "oom_gpu"


@pytest.mark.alone
def test_time_to_find_grows_with_the_log_and_not_faster() -> None:
    line = (
        "[rank0]:[rank0]:   File 'x.py', line 7, in some_function_of_torch: 1.0 2.0\n"
    )

    def seconds(lines: int) -> float:
        start = time.process_time()
        find_cause(line * lines)
        return time.process_time() - start

    seconds(100)
    assert seconds(32_000) < 30 * seconds(4_000)


def test_short_logs_are_read_whole_and_missing_ones_are_empty(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"caf\xe9\n")
    assert read_ends(tmp_path / "log") == "caf�\n"
    assert read_ends(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("state", "exit_code", "cause"),
    [
        ("TIMEOUT", "0:0", "timeout"),
        ("DEADLINE", "0:0", "timeout"),
        ("PREEMPTED", "0:15", "preempted"),
        ("NODE_FAIL", "1:0", "node_fail"),
        ("BOOT_FAIL", "1:0", "node_fail"),
        ("OUT_OF_MEMORY", "0:125", "oom_host"),
        ("OUT_OF_ME+", "0:125", "oom_host"),
        ("CANCELLED by 1000", "0:15", "cancelled"),
        ("CANCELLED+", "0:0", "cancelled"),
        ("FAILED", "0:125", "oom_host"),
        ("FAILED", "0:53", "launch"),
        ("FAILED", "127:0", "launch"),
        ("FAILED", "1:0", "unknown"),
        ("COMPLETED", "0:0", "lost"),
        ("SOMETHING_NEW", "0:0", "unknown"),
    ],
)
def test_a_state_of_slurm_names_a_cause(state: str, exit_code: str, cause: str) -> None:
    assert cause_of(known_state(state), exit_code) == cause


def test_every_state_of_slurm_means_something_to_a_person() -> None:
    told = {name: plain_state(name, "Resources") for name in STATES}
    silent = {name for name, words in told.items() if not words}
    assert silent == {"RUNNING", "SIGNALING", "RESIZING", "STAGE_OUT"}


def test_a_state_that_is_not_known_is_no_end() -> None:
    assert phase_of(known_state("SOMETHING_NEW")) == "running"


@pytest.mark.parametrize(
    ("cause", "retryable"),
    [
        ("oom_host", False), ("timeout", False),
        ("node_fail", True), ("preempted", True), ("cancelled", True),
    ],
)  # fmt: skip
def test_what_would_fail_the_same_way_again_is_not_retryable(
    cause: Cause, retryable: bool
) -> None:
    assert usual(cause).retryable is retryable


def test_each_cause_has_a_status() -> None:
    assert status_of("oom_gpu") == status_of("oom_host") == "oom"
    assert status_of("invalid_result") == "invalid"
    assert status_of("timeout") == status_of("unknown") == "failed"
