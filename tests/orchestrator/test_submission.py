"""Submitting batches: the order of the ledger's lines, refusals, and cases that fit after all."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.errors import OrchError
from orchestrator.job_spec import JobSpec
from orchestrator.runner import JobBatch, JobState
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter, Submission, read_ledger
from orchestrator.submission.submit import submit_cases
from tests.orchestrator.made import a_case, a_study
from tests.orchestrator.sandbox import Sandbox, wait_until

CASES = [a_case(gpus=gpus) for gpus in (1, 2, 4)]


class OneByOne:
    """A runner with a batch per case, which refuses some and looks at the ledger."""

    name = "one-by-one"

    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        self.refused = refused
        self.open_when_called: list[list[str]] = []

    def batches(self, cases: Sequence[object]) -> list[JobBatch]:
        return [JobBatch(jobs=((case,),), timeout_s=60) for case in cases]  # type: ignore[arg-type]

    def submit(
        self, study: Study, batch: JobBatch, specs: Sequence[JobSpec]
    ) -> list[str]:
        self.open_when_called.append(read_ledger(study.ledger_file).open_keys())
        if batch.jobs[0][0].case_id in self.refused:
            raise OrchError("no room")
        return [spec.key for spec in specs]

    def states(
        self, study: Study, jobs: Mapping[str, Submission]
    ) -> dict[str, JobState]:
        raise AssertionError


def submit(study: Study, runner: OneByOne) -> tuple[int, tuple[str, ...]]:
    entries = {case.case_id: Entry(case.case_id, 1) for case in CASES}
    outcome = submit_cases(study, CASES, entries, runner, "somewhere")  # type: ignore[arg-type]
    return outcome.accepted, outcome.problems


def test_a_refused_batch_does_not_stop_the_next(tmp_path: Path) -> None:
    study = a_study(tmp_path, CASES)
    assert submit(study, OneByOne(frozenset({CASES[0].case_id}))) == (2, ("no room",))
    ledger = read_ledger(study.ledger_file)
    assert set(ledger.asked()) == {case.case_id for case in CASES[1:]}
    assert ledger.refusals() == {CASES[0].case_id: "no room"}


def test_the_ledger_announces_a_submission_before_it_is_made(tmp_path: Path) -> None:
    """After a crash in between, the announcement is what the job is looked for by."""
    runner = OneByOne()
    submit(a_study(tmp_path, CASES), runner)
    assert [len(keys) for keys in runner.open_when_called] == [1, 1, 1]


def test_each_line_of_the_ledger_is_on_the_disk_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def counting(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", counting)
    ledger = LedgerWriter(tmp_path / "ledger.jsonl")
    ledger.intend("key", "local", "local", [[Entry("case", 1)]])
    announced = (tmp_path / "ledger.jsonl").stat().st_size
    assert synced == [announced]
    ledger.accept("key", ["job"])
    assert synced[-1] == (tmp_path / "ledger.jsonl").stat().st_size > announced


def test_a_case_that_fits_after_all_is_submitted_and_no_longer_marked(
    sandbox: Sandbox,
) -> None:
    shape = "{dim: 64, n_layers: 4, n_heads: 8, n_kv_heads: 4, ffn_dim: 128, vocab_size: 256}"
    sandbox.grid.write_text(
        "study: quick\ncluster: local\nprompts: random\n"
        f"models: {{toy: {{random: {shape}}}}}\n"
        "fixed: {model: toy, dtype: float32, batch_size: 2, prompt_tokens: 8}\n"
        "axes: {strategy: single, gpus: 1, new_tokens: 4}\n"
    )
    study = Study(sandbox.results / "quick")
    assert sandbox.submit("--dry-run").returncode == 0
    code = (
        "from orchestrator.checkout import checkout; checkout()\n"
        "from orchestrator.grids.grid import load_grid\n"
        "from pathlib import Path\n"
        "import sys\n"
        "print(load_grid(Path(sys.argv[1])).cases[0].model_dump_json())"
    )
    written = subprocess.check_output(
        [sys.executable, "-c", code, str(sandbox.grid)], cwd=sandbox.root, text=True
    )
    from orchestrator.case import Case

    case = Case.model_validate_json(written)
    study.create()
    study.file_case(case)
    study.write_facts({"cases": [case.case_id], "cluster": "local"})
    study.prune(case.case_id, "needs 900 GiB on each worker, it has 1 GiB")
    assert (
        sandbox.orch("status", "--study", "quick", "--json").stdout.count("pruned") == 1
    )
    done = sandbox.submit("--wait")
    assert done.returncode == 0, done.stderr
    assert study.pruned(case.case_id) is None
    assert len(sandbox.records()) == 1


def test_cancel_and_retry_work_on_this_machine_and_are_in_the_ledger(
    sandbox: Sandbox,
) -> None:
    sandbox.submit(QUICK_CASE_S="60")
    wait_until(lambda: len(sandbox.starts()) == 1, "the first case runs")
    study = Study(sandbox.results / "quick")
    (key,) = read_ledger(study.ledger_file).submissions
    done = sandbox.orch("cancel", "--all", "--yes", "--study", "quick")
    assert done.returncode == 0, done.stderr
    assert read_ledger(study.ledger_file).submissions[key].cancelled == {key}
    wait_until(lambda: "running" not in sandbox.orch("status").stdout, "it ended")
    again = sandbox.submit("--wait", QUICK_CASE_S="0")
    assert again.returncode == 0, again.stderr
    assert len(sandbox.records()) == 4


def test_two_submits_at_once_make_one_job(sandbox: Sandbox) -> None:
    both = [sandbox.start("submit", "--grid", str(sandbox.grid)) for _ in range(2)]
    for each in both:
        _, said = each.communicate(timeout=120)
        assert each.returncode == 0, said
    study = Study(sandbox.results / "quick")
    assert len(read_ledger(study.ledger_file).submissions) == 1
    assert len(list(study.jobs_dir.glob("*/job-0.json"))) == 1
