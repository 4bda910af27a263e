"""What can break once jobs wait or run: each case ends with one result or a named cause."""

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from machine import install
from site_of_tests import Site


def one_case(site: Site, **changes: Any) -> None:
    """Submit a single case."""
    grid = json.loads(json.dumps(_grid(site)))
    grid["axes"] = {"model": "toy", "strategy": ["model"], "gpus": [1]}
    site.box.grid.write_text(json.dumps(grid))
    if changes:
        site.change(**changes)
    done = site.box.submit()
    assert done.returncode == 0, done.stderr


def _grid(site: Site) -> dict[str, Any]:
    import yaml

    grid: dict[str, Any] = yaml.safe_load(site.box.grid.read_text())
    return grid


def row(site: Site) -> dict[str, Any]:
    rows = site.status()
    assert len(rows) == 1
    return rows[0]


def node_of_the_job(site: Site) -> str:
    return site.slurm.command("squeue", "-h", "-t", "R", "-o", "%N").strip()


def declare_dead(site: Site, node: str) -> None:
    """What Slurm would do by itself half a minute later."""
    site.slurm.command("scontrol", "update", f"node={node}", "state=down", "reason=x")


def wait_for(site: Site, status: str, timeout: float = 60) -> dict[str, Any]:
    """The row, once it has that status."""
    end = time.monotonic() + timeout
    while (found := row(site))["status"] != status:
        assert time.monotonic() < end, found
        time.sleep(0.3)
    return found


def starts_now(site: Site) -> None:
    """Spare a requeued job Slurm's two minutes."""
    site.slurm.wait(lambda: site.queue("-t", "PD"), "the job to be requeued")
    (job_id,) = site.queue()
    site.slurm.wait(
        lambda: (
            site.slurm.command(
                "scontrol", "update", f"jobid={job_id}", "starttime=now", check=False
            )
            == ""
        ),
        "the job to be released",
    )


def test_a_node_that_dies_under_a_job_is_the_cause_and_is_avoided_on_retry(
    site: Site,
) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"}, requeue=False)
    site.all_run(1)
    node = node_of_the_job(site)
    site.slurm.kill(node)
    if (
        not site.slurm.accounting
    ):  # once is enough to wait until Slurm notices by itself
        declare_dead(site, node)
    found = wait_for(site, "lost")
    assert found["cause"] == "node_fail", found
    site.slow(0)
    done = site.box.orch("retry")
    assert done.returncode == 0, done.stderr
    scripts = sorted((site.box.results / "quick/jobs").glob("*/job.sh"))
    assert f"#SBATCH --exclude={node}\n" in scripts[-1].read_text()
    site.drained()
    assert row(site)["status"] == "ok"
    assert row(site)["attempt"] == 2


def test_a_job_requeued_after_its_node_died_makes_the_next_attempt(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "5"}, requeue=True)
    site.all_run(1)
    before, node = site.queue(), node_of_the_job(site)
    site.slurm.kill(node)
    # What Slurm would do by itself some seconds later.
    site.slurm.command(
        "scontrol", "update", f"node={node}", "state=down", "reason=dead"
    )
    starts_now(site)
    site.drained()
    found = row(site)
    assert (found["status"], found["attempt"]) == ("ok", 2)
    assert found["job_id"] == before[0]


def preempt(site: Site) -> None:
    """A job of higher priority that needs every node."""
    site.slurm.command("sbatch", "--partition=main", f"--nodes={len(site.slurm.nodes)}",
                       "--exclusive", "--job-name=important", "--output=/dev/null",
                       "--wrap=sleep 2")  # fmt: skip


def test_a_preempted_and_requeued_job_makes_the_next_attempt(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "6"}, partition="low", requeue=True)
    site.all_run(1)
    preempt(site)
    site.slurm.wait(lambda: site.queue("-t", "R", "-n", "important"), "preemption")
    site.slurm.wait(lambda: not site.queue("-n", "important"), "the other job to end")
    starts_now(site)
    site.drained()
    assert (row(site)["status"], row(site)["attempt"]) == ("ok", 2)


def test_a_preempted_and_cancelled_job_is_submitted_again(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"}, partition="cancelled")
    site.all_run(1)
    preempt(site)
    site.slurm.wait(lambda: site.queue("-t", "R", "-n", "important"), "preemption")
    assert wait_for(site, "lost")["cause"] == "preempted"
    site.slow(0)
    assert site.box.submit().returncode == 0
    site.drained()
    assert (row(site)["status"], row(site)["attempt"]) == ("ok", 2)


def test_a_time_limit_that_was_hit_is_the_cause(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"})
    site.all_run(1)
    (job_id,) = site.queue()
    site.slurm.command("scontrol", "update", f"jobid={job_id}", "endtime=now+1")
    found = wait_for(site, "lost", timeout=90)
    assert (found["cause"], found["slurm_state"]) == ("timeout", "TIMEOUT")
    refused = site.box.orch("retry")
    assert "timeout would fail again: give --case-time" in refused.stderr
    assert site.queue() == []
    site.slow(0)
    assert site.box.orch("retry", "--case-time", "20min").returncode == 0
    assert "20:00" in site.slurm.command("squeue", "-h", "-a", "-t", "all", "-o", "%l")
    site.drained()
    assert row(site)["status"] == "ok"


def test_scancel_from_outside_is_the_cause(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"})
    site.all_run(1)
    site.slurm.command("scancel", *site.queue())
    assert wait_for(site, "lost")["cause"] == "cancelled"


def test_status_without_the_controller_shows_what_was_last_known_and_says_so(
    site: Site,
) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"})
    site.all_run(1)
    assert row(site)["status"] == "running"
    time.sleep(1.1)  # the profile's poll
    site.slurm.kill("slurmctld")
    found = row(site)
    assert found["status"] == "running"
    assert "Unable to contact slurm controller" in found["evidence"][0]
    if not site.slurm.accounting:
        assert found["as_of"] is not None


def test_a_job_that_ends_while_the_controller_is_down_is_done(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "4"})
    site.all_run(1)
    site.slurm.kill("slurmctld")
    record = "cases/*/attempt-1/record.json"
    site.slurm.wait(
        lambda: list((site.box.results / "quick").glob(record)), "the record"
    )
    assert row(site)["status"] == "ok"
    site.slurm.repair()
    assert site.box.submit().returncode == 0
    site.each_ran_once()


def test_without_slurmdbd_jobs_are_submitted_run_and_seen(accounted_site: Site) -> None:
    site = accounted_site
    site.slurm.kill("slurmdbd")
    one_case(site)
    site.drained()
    assert row(site)["status"] == "ok"


def test_a_dead_job_is_lost_without_slurmdbd_too(accounted_site: Site) -> None:
    site = accounted_site
    one_case(site, environment={"QUICK_CASE_S": "600"})
    site.all_run(1)
    site.slurm.kill("slurmdbd")
    site.slurm.command("scancel", *site.queue())
    assert wait_for(site, "lost")["cause"] == "cancelled"


def test_a_job_that_slurm_forgot_is_lost_and_its_id_is_nobody_elses(site: Site) -> None:
    one_case(site, environment={"QUICK_CASE_S": "600"})
    site.all_run(1)
    (job_id,) = site.queue()
    site.slurm.forget()
    while True:  # another job gets the same id
        said = site.slurm.command("sbatch", "--parsable", "--job-name=other", "--hold",
                                  "--output=/dev/null", "--wrap=true")  # fmt: skip
        if int(said) >= int(job_id):
            break
    assert job_id in site.queue("-n", "other")
    found = row(site)
    assert (found["status"], found["cause"]) == ("lost", "lost")
    site.slow(0)
    assert site.box.submit().returncode == 0
    site.slurm.wait(lambda: row(site)["status"] == "ok", "the new attempt")


@pytest.mark.parametrize("damage", ["", '{"schema_version": 1, "case"', "{}"])
def test_a_record_that_was_cut_short_is_no_result(site: Site, damage: str) -> None:
    one_case(site)
    site.drained()
    (record,) = site.box.records()
    record.write_text(damage)
    found = row(site)
    assert found["status"] == "lost"
    assert "record.json" in found["evidence"][0]
    assert site.box.submit().returncode == 0
    site.drained()
    assert (row(site)["status"], row(site)["attempt"]) == ("ok", 2)
    assert record.read_text() == damage


def test_a_study_whose_jobs_folder_was_lost_still_tells_what_is_done(
    site: Site,
) -> None:
    one_case(site)
    site.drained()
    shutil.rmtree(site.box.results / "quick/jobs")
    assert row(site)["status"] == "ok"


@pytest.mark.parametrize("skew", ["+3h", "-3h"])
def test_a_node_whose_clock_is_wrong_loses_and_doubles_nothing(
    site: Site, skew: str
) -> None:
    install({"faketime": "faketime"})
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": skew, "QUICK_CASE_S": "3"}
    one_case(site, environment=wrong)
    site.all_run(1)
    assert row(site)["status"] == "running"
    site.drained()
    record = json.loads(site.box.records()[0].read_text())
    began = datetime.fromisoformat(record["started_at"])
    assert abs(datetime.now(UTC) - began) > timedelta(hours=2), "the clock was right"
    found = row(site)
    assert found["status"] == "ok"
    assert 0 < found["elapsed_s"] < 600
    assert site.box.submit().returncode == 0
    site.each_ran_once()
