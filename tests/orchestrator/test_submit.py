"""orch submit: whatever happens meanwhile, each case gets exactly one result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.study.files import Study
from orchestrator.study.lock import locked
from tests.orchestrator.made import a_failure, a_record, file
from tests.orchestrator.sandbox import CHECKOUT, Sandbox, wait_until


def rows_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(sandbox.orch("status", "--json").stdout)
    return rows


def test_submit_runs_every_case_once_and_a_second_submit_nothing(
    sandbox: Sandbox,
) -> None:
    first = sandbox.submit("--wait")
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    assert len(sandbox.records()) == 4
    again = sandbox.submit("--wait")
    assert again.returncode == 0
    assert "4 recorded already" in again.stderr
    assert len(sandbox.starts()) == 4


def test_only_what_is_missing_runs_again(sandbox: Sandbox) -> None:
    sandbox.submit("--wait")
    gone = sandbox.records()[1].parent
    (gone / "record.json").unlink()
    assert sandbox.submit("--wait").returncode == 0
    assert len(sandbox.starts()) == 5
    assert sandbox.starts()[-1] == gone.parent.name
    assert (gone.parent / "attempt-2" / "record.json").exists()


def test_an_edited_grid_says_that_earlier_cases_stay(sandbox: Sandbox) -> None:
    first = sandbox.submit("--wait")
    assert "earlier grids" not in first.stderr
    text = sandbox.grid.read_text()
    sandbox.grid.write_text(text.replace("gpus: [1, 2]", "gpus: [2, 4]"))
    for more in (["--dry-run"], ["--wait"]):
        said = sandbox.submit(*more).stderr
        assert "4 cases: 2 to submit" in said
        assert "the study keeps 2 more, of earlier grids" in said
    assert len(rows_of(sandbox)) == 6


def test_a_half_written_record_is_no_success_and_runs_again(sandbox: Sandbox) -> None:
    sandbox.submit("--wait")
    torn = sandbox.records()[0]
    half = torn.read_text()[:200]
    torn.write_text(half)
    rows = rows_of(sandbox)
    assert sorted(row["status"] for row in rows) == ["lost", "ok", "ok", "ok"]
    assert "is not a valid record" in next(
        row["evidence"][0] for row in rows if row["status"] == "lost"
    )
    assert sandbox.submit("--wait").returncode == 0
    assert torn.read_text() == half
    assert {row["status"] for row in rows_of(sandbox)} == {"ok"}


def test_failed_cases_stay_failed_and_submit_says_so(sandbox: Sandbox) -> None:
    sandbox.submit("--wait")
    study = Study(sandbox.results / "quick")
    case = study.read_case(sandbox.records()[0].parents[1].name)
    sandbox.records()[0].unlink()
    (study.case_dir(case.case_id) / "attempt-1" / "record.json").write_text(
        a_failure(case).model_dump_json()
    )
    again = sandbox.submit("--wait")
    assert again.returncode == 1
    assert "1 failed before" in again.stderr
    assert len(sandbox.starts()) == 4


def test_a_ledger_with_lines_that_cannot_be_read_is_told(sandbox: Sandbox) -> None:
    sandbox.submit("--wait")
    ledger = Study(sandbox.results / "quick").ledger_file
    with ledger.open("a") as stream:
        stream.write('{"event": "inten')
    again = sandbox.submit()
    assert again.returncode == 0
    assert f"{ledger}: 1 line cannot be read" in again.stderr


def test_what_cannot_fit_is_pruned_with_its_reason(sandbox: Sandbox) -> None:
    text = sandbox.grid.read_text().replace("dim: 64", "dim: 65536")
    text = text.replace("ffn_dim: 128", "ffn_dim: 1000000").replace(
        "n_layers: 4", "n_layers: 99"
    )
    sandbox.grid.write_text(text)
    assert sandbox.submit("--wait").returncode == 0
    rows = rows_of(sandbox)
    assert {row["status"] for row in rows} == {"pruned"}
    assert all("needs" in row["evidence"][0] for row in rows)
    table = sandbox.orch("collect")
    assert table.stdout.count("#") == 4


def test_a_dry_run_shows_every_case_and_writes_nothing(sandbox: Sandbox) -> None:
    run = sandbox.submit("--dry-run")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert lines[0].split() == ["case", "strategy", "status", "action", "note"]
    assert [line.split()[2:] for line in lines[1:]] == [["new", "submit"]] * 4
    assert "nothing was submitted" in run.stderr
    assert not sandbox.results.exists()


def test_a_dry_run_after_a_submit_says_what_it_would_skip(sandbox: Sandbox) -> None:
    sandbox.submit("--wait")
    before = sorted(sandbox.results.rglob("*"))
    run = sandbox.submit("--dry-run")
    assert [line.split()[2:] for line in run.stdout.splitlines()[1:]] == [
        ["ok", "skip"]
    ] * 4
    assert sorted(sandbox.results.rglob("*")) == before


def test_cases_keep_the_order_of_the_grid_also_after_a_subset(sandbox: Sandbox) -> None:
    sandbox.grid.write_text(sandbox.grid.read_text() + "subsets: {two: {gpus: 2}}\n")
    whole = [
        line.split()[0] for line in sandbox.submit("--dry-run").stdout.splitlines()[1:]
    ]
    sandbox.submit("--subset", "two", "--wait")
    study = Study(sandbox.results / "quick")
    assert study.case_ids() == [case_id for case_id in whole if "_2x_" in case_id]
    sandbox.submit("--wait")
    assert study.case_ids() == whole
    sandbox.submit("--subset", "two", "--wait")
    assert study.case_ids() == whole
    assert len(sandbox.starts()) == 4


def test_killed_at_every_instant_and_submitted_again_gives_one_result_per_case(
    tmp_path: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_sweep.py")), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, cwd=CHECKOUT,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 20, "the sweep should have met every change"
    for results in tmp_path.iterdir():
        attempts = sorted(results.glob("swept/cases/*/attempt-*"))
        assert len(attempts) == 3, f"{results.name}: {attempts}"
        assert all((each / "record.json").exists() for each in attempts)
        starts = [
            line for line in (results / "swept/runs.log").read_text().splitlines()
            if " done " not in line
        ]  # fmt: skip
        assert len(starts) == 3, f"{results.name}: a case was run twice"


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, 0.6, 1.0, 1.6])
def test_a_local_submit_killed_after_a_while_is_made_good_by_the_next(
    sandbox: Sandbox, after_s: float
) -> None:
    process = sandbox.start(
        "submit", "--grid", str(sandbox.grid), "--wait", QUICK_CASE_S="0.2"
    )
    wait_until(
        lambda: (sandbox.results / "quick").exists() or process.poll() is not None,
        "started",
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sandbox.submit("--wait", QUICK_CASE_S="0.2").returncode == 0
    assert len(sandbox.records()) == 4
    assert len(sandbox.starts()) == 4


def test_submit_touches_nothing_while_another_command_holds_the_study(
    sandbox: Sandbox,
) -> None:
    study = Study(sandbox.results / "quick")
    study.create()
    with locked(study.lock_file):
        process = sandbox.start("submit", "--grid", str(sandbox.grid))
        assert process.stderr is not None
        assert "another orch works on this study" in process.stderr.readline()
        assert list(study.jobs_dir.iterdir()) == []
        assert not study.ledger_file.exists()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert len(list(study.jobs_dir.iterdir())) == 1


def test_two_submits_at_once_share_the_work(sandbox: Sandbox) -> None:
    both = [
        sandbox.start(
            "submit", "--grid", str(sandbox.grid), "--wait", QUICK_CASE_S="0.2"
        )
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(sandbox.starts()) == 4
    assert len(sandbox.records()) == 4


def test_a_record_from_elsewhere_counts_without_any_ledger(sandbox: Sandbox) -> None:
    study = Study(sandbox.results / "quick")
    study.create()
    listed = sandbox.submit("--dry-run").stdout.splitlines()[1].split()[0]
    sandbox.submit("--wait")
    record = study.attempts(listed)[0].read_record()
    assert record is not None
    other = Study(sandbox.results / "other")
    other.create()
    file(other, a_record(record.case))
    run = sandbox.submit("--study", "other", "--dry-run")
    assert [line.split()[2] for line in run.stdout.splitlines()[1:]].count("ok") == 1
