"""One rank of one case: measures it, and on rank 0 writes the record.

    torchrun --nproc-per-node 2 -m jobs.bench case.json            # the record on stdout
    python -m jobs.bench case.json                                 # a case of one rank

`jobs.launch` starts it with `--attempt-dir`, where rank 0 then writes record.json. What a person
has to fix (a missing checkpoint, a bad prompts file) is one line and exit code 2; any other
error is a traceback, and `jobs.launch` makes the record from it.
"""

import argparse
import faulthandler
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.checkout import require_ours

if __name__ == "__main__":
    require_ours()  # before theirs can be taken for ours

from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing.errors import record as with_traceback

from jobs import gates, timing
from jobs.environment import with_torch
from jobs.filing import file_or_keep
from jobs.measure import Report, Work, measure, prepare
from jobs.progress import DONE, ProgressBoard, ProgressReporter
from jobs.tracing import trace
from kernels.world import World, join, leave, object_gatherer
from orchestrator.case import Case
from orchestrator.causes.finding import announce
from orchestrator.environment import Environment
from orchestrator.errors import InputError, OrchError
from orchestrator.record import Record, TraceFacts
from orchestrator.study.files import Attempt, attempt_in


@with_traceback
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the case that the arguments name."""
    # Segmentation faults, and ranks that are ended because they hang, show where they were.
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)
    options = _parser().parse_args(arguments)
    started_at = options.started_at or datetime.now(UTC)
    try:
        case = read_case(options.case)
        world = World.from_environment(timeout_s=options.collective_s)
        reporter = ProgressBoard.open(options.scratch, world.size).reporter(world.rank)
        join(world)
        gather: Callable[[Report], list[Report]] = object_gatherer(world)
        work = prepare(case, world, reporter, LoadingLine(reporter, world.rank == 0))
    except (ValueError, OrchError, FileNotFoundError, PermissionError) as error:
        _stop(error)
    report = measure(work, reporter)
    reports = gather(report)
    if world.rank == 0:
        attempt = attempt_in(options.attempt_dir) if options.attempt_dir else None
        number = attempt.number if attempt else 1
        record = compose(work, reports, number, started_at, options.cluster)
        if case.trace:
            write_trace(attempt or Attempt(case.case_id, number, Path()), case, reports)
        if attempt is None:
            print(record.model_dump_json(indent=1))
        else:
            file_or_keep(record, attempt, options.scratch)
    reporter.enter(DONE, case.warmup + case.repeats)
    work.engine.close()
    leave()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench",
        description="Measure one case, as one of its ranks.",
    )
    add = parser.add_argument
    add("case", type=Path, help="the case as JSON")
    add("--attempt-dir", type=Path, help="where record.json goes; default: stdout")
    add("--scratch", type=Path, help="folder made by jobs.launch")
    add("--collective-s", type=float, default=600, help="wait so long for other ranks")
    add("--cluster", default="", help="profile that the case was submitted to")
    moment = datetime.fromisoformat
    add("--started-at", type=moment, help="when the attempt began; default: now")
    return parser


def read_case(file: Path) -> Case:
    """Return the case in a file.

    Raises:
        InputError: there is none.
    """
    try:
        return Case.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{file} cannot be read as a case: {error}") from error


def _stop(error: Exception) -> None:
    """End this rank with a line that tells a person what to fix."""
    if type(error) in (ValueError, FileNotFoundError, PermissionError):
        traceback.print_exception(
            error
        )  # not written for people: show where it came from
    print(announce("config", str(error)), file=sys.stderr, flush=True)
    sys.exit(2)


def compose(
    work: Work,
    reports: list[Report],
    attempt: int,
    started_at: datetime,
    cluster: str = "",
) -> Record:
    """Return the record of what all ranks report: ok, or invalid with the reasons."""
    problems = [
        f"rank {rank}: {problem}"
        for rank, report in enumerate(reports)
        for problem in report.problems
    ]
    problems += gates.check_ranks([report.digests for report in reports])
    valid = not problems
    samples = zip(*(report.times for report in reports), strict=True)
    return Record(
        case=work.case,
        attempt=attempt,
        status="ok" if valid else "invalid",
        cause=None if valid else "invalid_result",
        evidence=problems[:10],
        remedy=None if valid else "a fault of the program or the machine: report it",
        started_at=started_at,
        ended_at=datetime.now(UTC),
        samples=[timing.slowest(times) for times in samples if any(times)],
        ranks=[report.facts for report in reports],
        prompt_lengths=work.prompt_lengths,
        output_tokens=reports[0].output_tokens,
        ids_digest=reports[0].digests[-1],
        trace=_trace_facts(work, reports),
        shape=work.shape,
        split=reports[0].split,
        weights_wait=reports[0].weights_wait,
        cluster=cluster,
        environment=_environment(reports),
    )


def _trace_facts(work: Work, reports: list[Report]) -> TraceFacts | None:
    if not work.case.trace:
        return None
    return trace.facts(work.case, work.batch.length, traced(reports))


def traced(reports: list[Report]) -> list[trace.Traced]:
    """Return what each rank recorded of the traced repetition."""
    return [each.traced for each in reports if each.traced]


def write_trace(attempt: Attempt, case: Case, reports: list[Report]) -> None:
    """Write the trace's files. On a full disk they are lost, not the record."""
    try:
        files = trace.write(attempt, case, traced(reports))
    except OSError as error:
        print(f"the trace cannot be written: {error}", file=sys.stderr, flush=True)
        return
    for file in files:
        print(f"trace: {file}", file=sys.stderr, flush=True)


def _environment(reports: list[Report]) -> Environment:
    """Rank 0's environment, with the machines of the other ranks."""
    first, *others = [each.environment for each in reports if each.environment]
    hosts = [*first.hosts, *(host for each in others for host in each.hosts)]
    software = with_torch(first.software)
    return first.model_copy(update={"hosts": hosts, "software": software})


class LoadingLine:
    """Tells on stderr, every few seconds, how much of rank 0's weights is there."""

    def __init__(
        self, reporter: ProgressReporter, speaks: bool, every_s: float = 2.0
    ) -> None:
        self._reporter = reporter
        self._every_s = every_s if speaks else float("inf")
        self._told_at = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """So many bytes of so many are loaded."""
        self._reporter.loaded(done_bytes, total_bytes)
        if time.monotonic() - self._told_at >= self._every_s:
            self._told_at = time.monotonic()
            percent = 100 * done_bytes // max(total_bytes, 1)
            size = f"{done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
            print(f"loading {percent:3d} % ({size})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
