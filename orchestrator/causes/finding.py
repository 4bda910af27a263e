"""Why a job or its workers ended: from a log's text, an exit code, or Slurm's own account.

    find_cause(read_ends(attempt.log_file))       what the workers' log proves

Slurm's account decides where it names a cause of its own; where it only says FAILED, the log
does. The lines looked for stand in `orchestrator.causes.signatures`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orchestrator.causes import signatures
from orchestrator.causes.signatures import CONSEQUENCE, ROOT, SIGNATURES, Signature
from orchestrator.record import Cause, Status

_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 3 << 20
_EVIDENCE_LINES = 5
_LINE_LENGTH = 500


@dataclass(frozen=True)
class Finding:
    """A cause, and what shows that it is the cause."""

    cause: Cause
    evidence: tuple[str, ...]
    """Log lines, or what Slurm said; earliest first."""
    remedy: str
    """What a person can do about it."""
    retryable: bool
    """Whether the same case can succeed when it is run again unchanged."""

    @property
    def status(self) -> Status:
        """The status of a case that ended so."""
        return status_of(self.cause)


def status_of(cause: Cause) -> Status:
    """Map a cause to a status: out of memory is a finding, a wrong result is invalid."""
    if cause in ("oom_gpu", "oom_host"):
        return "oom"
    return "invalid" if cause == "invalid_result" else "failed"


def announce(cause: Cause, message: str) -> str:
    """Return the line by which our programs say why they stop; `find_cause` recognises it."""
    return f"orch: {cause}: {' '.join(message.split())}"


def usual(cause: Cause, *evidence: str) -> Finding:
    """Return a finding that Slurm or a job knows by other means than a log, with its usual remedy.

    Args:
        cause: one that comes from outside the program: cancelled, node_fail, oom_host,
            preempted or timeout.
    """
    retryable, remedy = _USUAL[cause]
    return Finding(cause, evidence, remedy, retryable)


_USUAL: dict[Cause, tuple[bool, str]] = {
    "cancelled": (True, signatures.CANCELLED),
    "node_fail": (True, signatures.NODE),
    "oom_host": (False, signatures.HOST_MEMORY),
    "preempted": (True, signatures.PREEMPTED),
    "timeout": (False, signatures.TIME),
}


def read_ends(file: Path) -> str:
    """Read a log, or the first and last part of a long one; "" if there is none."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            size = stream.seek(0, 2)
            stream.seek(max(len(head), size - _TAIL_BYTES))
            tail = stream.read(_TAIL_BYTES)
            gap = b"\n" if size > _HEAD_BYTES + _TAIL_BYTES else b""
    except FileNotFoundError:
        return ""
    return (head + gap + tail).decode("utf-8", errors="replace")


def find_cause(
    log_text: str, exit_code: int | None = None, oom_kills: int = 0
) -> Finding:
    """Return why the workers that wrote this log ended.

    Args:
        log_text: what all ranks wrote, interleaved.
        exit_code: of the process that started them; negative for a signal, as in subprocess.
        oom_kills: processes that the kernel killed meanwhile for want of host memory.
    """
    text = _without_source(log_text.replace("\r", "\n"))  # progress bars
    distance, match, signature = _nearest(text)
    if oom_kills and distance > ROOT:
        return _oom_kill(oom_kills)
    own = _own_exceptions(text) if distance > ROOT else []
    if match is None or signature is None or (distance == CONSEQUENCE and own):
        return _unknown(text, own, exit_code)
    evidence = [_line_at(text, match.start()), *own]
    return Finding(
        signature.cause, _distinct(evidence), signature.remedy, signature.retryable
    )


_LINE = re.compile(
    signatures.PREFIX + r"(?P<indent> *)(?P<frame>File \"[^\"\n]+\", line)?"
)


def _without_source(text: str) -> str:
    """Drop the source lines that tracebacks quote: they name errors that may not have occurred."""
    kept: list[str] = []
    frames: dict[
        str, int
    ] = {}  # what a rank's lines begin with → its last frame's indent
    for line in text.split("\n"):
        found = _LINE.match(line)
        assert found, "it matches any line"
        rank, indent = line[: found.start("indent")], len(found["indent"])
        if indent <= frames.get(rank, indent):
            kept.append(line)
            frames.pop(rank, None)
            if found["frame"]:
                frames[rank] = indent
    return "\n".join(kept)


def _nearest(text: str) -> tuple[int, re.Match[str] | None, Signature | None]:
    """Return the earliest match among the signatures nearest to the root."""
    found = [
        (signature.distance, match.start(), match, signature)
        for signature in SIGNATURES
        if (match := signature.pattern.search(text))
    ]
    if not found:
        return CONSEQUENCE + 1, None, None
    distance, _, match, signature = min(found, key=lambda each: each[:2])
    return distance, match, signature


def _oom_kill(count: int) -> Finding:
    return usual(
        "oom_host",
        f"the kernel killed {count} process(es) of this job: out of host memory",
    )


def _unknown(text: str, own: list[str], exit_code: int | None) -> Finding:
    evidence = own or _last_lines(text, 3)
    if exit_code is not None:
        evidence = [*evidence, _exit_line(exit_code)]
    if not evidence:
        evidence = ["nothing was written"]
    # An error that a program raised itself comes again; one that left no trace may not.
    return Finding(
        "unknown",
        _distinct(evidence),
        "read the attempt's worker.log (`orch logs`)",
        retryable=not own,
    )


def _exit_line(exit_code: int) -> str:
    if exit_code < 0:
        return f"the workers were ended by signal {-exit_code}"
    return f"the workers ended with exit code {exit_code}"


_EXCEPTION = re.compile(
    r"^(?:[^\n]{0,40}\]:? ?)?((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)"
    r"(?::[^\n]*)?)$",
    re.MULTILINE,
)
_SUMMARY = ("ChildFailedError", "SignalException")


def _own_exceptions(text: str) -> list[str]:
    """Return the first lines that name a Python exception and no cause: a program's own errors."""
    lines = (_line_at(text, found.start()) for found in _EXCEPTION.finditer(text))
    own = (line for line in lines if not any(word in line for word in _SUMMARY))
    return list(islice((line for line in own if not _is_known(line)), 3))


def _is_known(line: str) -> bool:
    return any(signature.pattern.search(line) for signature in SIGNATURES)


def _last_lines(text: str, count: int) -> list[str]:
    lines = [line for line in text[-20000:].splitlines() if line.strip()]
    return [_readable(line) for line in lines[-count:]]


def _line_at(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return _readable(text[start : end if end >= 0 else len(text)])


_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def _readable(line: str) -> str:
    return _UNPRINTABLE.sub("", line).strip()[:_LINE_LENGTH]


def _distinct(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for line in lines if line))[:_EVIDENCE_LINES]
