"""Submit, go away, look, collect: the ways a study goes when nothing breaks."""

import csv
import io
import os
import re
import time
from pathlib import Path

import pytest
from site_of_tests import Site
from virtual_slurm import VirtualSlurm

from orchestrator.case import Case
from orchestrator.job_spec import JobCase, JobSpec
from orchestrator.study.files import Study
from orchestrator.study.ledger import Entry, LedgerWriter
from tests.orchestrator.made import a_case
from tests.orchestrator.sandbox import make_sandbox


def test_submit_then_status_then_collect(site: Site) -> None:
    done = site.box.submit()
    assert done.returncode == 0, done.stderr
    site.drained()
    site.each_ran_once()
    table = site.box.orch("collect", "--long").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["status"] for row in rows] == ["ok"] * 4
    again = site.box.submit()
    assert "4 recorded already" in again.stderr
    assert site.queue() == []


def test_cases_of_one_shape_are_one_array_with_a_throttle(
    accounted_site: Site,
) -> None:
    site = accounted_site
    site.change(throttle=1)
    site.hold()
    site.box.submit()
    ids = site.queue()
    assert len(ids) == 4
    assert len({job_id.split("_")[0] for job_id in ids}) == 2
    assert "%1]" in site.slurm.command("squeue", "-h", "-o", "%i")


def test_a_site_without_arrays_gets_single_jobs(site: Site) -> None:
    site.change(arrays=False)
    site.hold()
    site.box.submit()
    assert len(site.queue()) == 4
    assert not any("_" in job_id for job_id in site.queue())
    site.release()
    site.drained()
    site.each_ran_once()


def test_a_pack_is_one_job_of_several_cases(site: Site) -> None:
    site.hold()
    assert site.box.submit("--cases-per-job", "2").returncode == 0
    assert len(site.queue()) == 2
    site.release()
    site.drained()
    site.each_ran_once()


def test_a_waiting_case_tells_why_in_plain_words(site: Site) -> None:
    site.hold()
    site.box.submit()
    site.slurm.wait(
        lambda: "PartitionDown" in site.slurm.command("squeue", "-h", "-o", "%r"),
        "Slurm to note why",
    )
    rows = site.status()
    assert {row["status"] for row in rows} == {"pending"}
    assert {row["evidence"][0] for row in rows} == {"the partition is down"}


def test_a_dry_run_shows_the_script_and_asks_slurm_but_submits_nothing(
    accounted_site: Site,
) -> None:
    site = accounted_site
    done = site.box.submit("--test-only")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#SBATCH --array=0-1%2") == 2
    assert done.stdout.count("Slurm would accept it: Job") == 2
    assert site.queue() == []
    assert not (site.box.results / "quick").exists()


def test_the_script_can_be_submitted_by_hand_and_repeats_nothing(
    accounted_site: Site,
) -> None:
    site = accounted_site
    site.box.submit()
    site.drained()
    script = next((site.box.results / "quick/jobs").glob("*/job.sh"))
    site.slurm.command("env", "-C", str(script.parent), "sbatch", script.name)
    site.drained()
    site.each_ran_once()


def test_logs_of_a_case_and_of_its_job(
    accounted_site: Site,
) -> None:
    site = accounted_site
    site.box.submit()
    site.drained()
    by_workers = site.box.orch("logs", "toy_model_1x")
    assert re.fullmatch(r"workers of toy_model_1x_\S+\n", by_workers.stdout)
    (log,) = site.box.results.glob("quick/cases/toy_model_1x_*/attempt-1/*.log")
    log.unlink()
    by_job = site.box.orch("logs", "toy_model_1x")
    case_id = by_workers.stdout.split()[-1]
    assert f"job of {case_id}\n" in by_job.stdout
    assert "the workers wrote nothing" in by_job.stderr
    several = site.box.orch("logs", "toy")
    assert several.returncode == 2
    assert "fits 4 cases" in several.stderr


def test_cancel_ends_the_jobs_of_the_named_cases_only(site: Site) -> None:
    site.hold()
    site.box.submit()
    done = site.box.orch("cancel", "*_1x_*")
    assert done.returncode == 0, done.stderr
    site.slurm.wait(lambda: len(site.queue()) == 2, "two jobs to go")
    rows = {row["case_id"]: row for row in site.status()}
    ended = [row for case_id, row in rows.items() if "_1x_" in case_id]
    assert {(row["status"], row["cause"]) for row in ended} == {("lost", "cancelled")}
    assert sum(row["status"] == "pending" for row in rows.values()) == 2


def test_retry_runs_the_cancelled_again(site: Site) -> None:
    site.hold()
    site.box.submit()
    site.box.orch("cancel", "--all")
    site.drained()
    site.release()
    done = site.box.orch("retry")
    assert done.returncode == 0, done.stderr
    assert "submitted 4 cases again" in done.stderr
    site.drained()
    site.each_ran_once()


ODD = 'it\'s "an" odd\nplace; $(touch pwned) `touch pwned` & ü'


def test_odd_folder_names_stay_names(
    accounted_slurm: VirtualSlurm, tmp_path: Path
) -> None:
    site = Site(accounted_slurm, make_sandbox(tmp_path / ODD))
    done = site.box.submit("--cluster", str(site.profile))
    assert done.returncode == 0, done.stderr
    site.drained()
    site.each_ran_once()
    assert list(tmp_path.rglob("pwned")) == []


@pytest.mark.parametrize("name", ["$(touch pwned)", "a;touch pwned", "a\ntouch pwned"])
def test_hostile_names_in_a_grid_reach_nothing(accounted_site: Site, name: str) -> None:
    site = accounted_site
    site.name_model(name)
    done = site.box.submit()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert site.queue() == []
    assert list(site.box.root.rglob("pwned")) == []


@pytest.mark.parametrize("name", ["per%cent", "back\\slash"])
def test_a_folder_that_slurm_cannot_log_to_is_refused(
    accounted_slurm: VirtualSlurm, tmp_path: Path, name: str
) -> None:
    site = Site(accounted_slurm, make_sandbox(tmp_path / name))
    done = site.box.submit()
    assert done.returncode == 1
    assert "Slurm writes no log" in done.stderr
    assert site.queue() == []


def test_an_allocation_around_orch_changes_nothing(
    accounted_site: Site,
) -> None:
    site = accounted_site
    site.hold()
    site.box.submit(
        SLURM_JOB_ID="1",
        SBATCH_PARTITION="low",
        SLURM_MEM_PER_CPU="1",
        SBATCH_TIMELIMIT="3",
        SQUEUE_FORMAT="%j",
    )
    said = site.slurm.command("squeue", "-h", "-o", "%P %l")
    assert set(said.splitlines()) == {"main 5:00"}
    assert set(site.statuses()) == {"pending"}


def _study_of(folder: Path, count: int) -> tuple[Study, list[Case]]:
    study = Study(folder)
    study.create()
    cases = [a_case(seed=seed) for seed in range(count)]
    for case in cases:
        study.file_case(case)
    study.write_facts({"cases": [case.case_id for case in cases], "cluster": "x"})
    return study, cases


@pytest.mark.alone
def test_a_thousand_cases_go_out_by_one_sbatch_nearly_as_fast_as_submitits_own(
    slurm: VirtualSlurm, tmp_path: Path
) -> None:
    """Ten times what submitit takes for a bare array, in the same run, is allowed."""
    import submitit

    from orchestrator.clusters.cluster import load_cluster
    from orchestrator.slurm.runner import SlurmRunner

    slurm.command("scontrol", "update", "partitionname=main", "state=down")
    runner = SlurmRunner(load_cluster(Path(__file__).with_name("virtual.yaml")))
    study, cases = _study_of(tmp_path / "study", 1000)
    bare = submitit.SlurmExecutor(tmp_path / "bare")
    bare.update_parameters(partition="main")
    began = time.perf_counter()
    bare.map_array(print, range(1000))
    bare_s = time.perf_counter() - began

    began = time.perf_counter()
    (batch,) = runner.batches(cases)
    specs = [
        JobSpec(
            study=str(study.folder),
            key="thousand",
            cases=[JobCase(case_id=case.case_id, first_attempt=1)],
        )
        for job in batch.jobs
        for case in job
    ]
    ids = runner.submit(study, batch, specs)
    assert time.perf_counter() - began < 10 * bare_s
    assert len(set(ids)) == 1000
    assert len({job_id.split("_")[0] for job_id in ids}) == 1
    assert (
        len(slurm.command("squeue", "-h", "-r", "-n", "orch-thousand").split("\n"))
        == 1001
    )


def test_status_of_a_thousand_asks_squeue_and_sacct_once_each(site: Site) -> None:
    counter = site.box.root / "calls"
    for name in ("squeue", "sacct"):
        site.wrap(name, f'echo {name} >> "{counter}"; exec "$REAL" "$@"')
    site.hold()
    study, cases = _study_of(site.box.results / "quick", 1000)
    ledger = LedgerWriter(study.ledger_file)
    entries = [[Entry(case.case_id, 1)] for case in cases]
    ledger.intend("k", "slurm", str(site.profile), entries)
    out = site.slurm.command("sbatch", "--parsable", "--array=0-999", "--job-name=orch-k",
                             "--wrap=true", "-o", os.devnull)  # fmt: skip
    ledger.accept("k", [f"{out.strip()}_{index}" for index in range(1000)])
    site.slurm.command("scancel", f"{out.strip()}_[0-9]")
    assert sum(status == "pending" for status in site.statuses()) == 990
    assert sorted(counter.read_text().split()) == ["sacct", "squeue"]


def test_slurm_is_asked_no_more_often_than_the_site_allows(site: Site) -> None:
    counter = site.box.root / "calls"
    site.wrap("squeue", f'echo squeue >> "{counter}"; exec "$REAL" "$@"')
    site.change(poll="10min")
    site.hold()
    site.box.submit()
    for _ in range(3):
        assert set(site.statuses()) == {"pending"}
    assert counter.read_text().split() == ["squeue"]
