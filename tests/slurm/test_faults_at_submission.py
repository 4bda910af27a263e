"""What can break while jobs are handed over: nothing is lost, nothing is submitted twice."""

from collections.abc import Iterator

import psutil
import pytest
from site_of_tests import Site

# sbatch ← timeout ← orch: the wrapper kills `orch submit` with -9, at its n-th call.
KILL_ORCH = """
parent() {
    while read -r name number; do [ "$name" = PPid: ] && echo "$number"; done < /proc/$1/status
}
kill_orch() {
    kill -9 $(parent $(parent $$))
}
echo call >> "$0.calls"
n=$(wc -l < "$0.calls")
"""
MOMENTS = {
    "before the first sbatch": '[ $n = 1 ] && kill_orch && exit 1; exec "$REAL" "$@"',
    "after the first sbatch": '"$REAL" "$@"; code=$?; [ $n = 1 ] && kill_orch; exit $code',
    "between two": '[ $n = 2 ] && kill_orch && exit 1; exec "$REAL" "$@"',
    "after the last sbatch": '"$REAL" "$@"; code=$?; [ $n = 2 ] && kill_orch; exit $code',
}


@pytest.fixture(autouse=True)
def _held(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs wait until a test lets them run, so that they can be counted."""
    name = "site" if "site" in request.fixturenames else "accounted_site"
    site: Site = request.getfixturevalue(name)
    site.hold()
    yield
    site.release()


def finish(site: Site) -> None:
    site.release()
    site.drained()
    site.each_ran_once()


@pytest.mark.parametrize("moment", MOMENTS)
def test_submit_killed_and_run_again_submits_each_case_once(
    site: Site, moment: str
) -> None:
    site.wrap("sbatch", KILL_ORCH + MOMENTS[moment])
    assert site.box.submit().returncode == -9
    site.slurm.wait(lambda: len(site.queue()) in (0, 2, 4), "sbatch to end")
    again = site.box.submit()
    assert again.returncode == 0, again.stderr
    assert len(site.queue()) == 4
    assert site.statuses() == ["pending"] * 4
    finish(site)


def test_two_submits_at_once_submit_each_case_once(site: Site) -> None:
    arguments = ("submit", "--grid", str(site.box.grid))
    both = [site.box.start(*arguments) for _ in range(2)]
    for one in both:
        assert one.wait(timeout=120) == 0, one.communicate()
        one.communicate()
    assert len(site.queue()) == 4
    finish(site)


def test_submit_while_the_controller_is_down_loses_and_doubles_nothing(
    site: Site,
) -> None:
    site.one_shape()
    site.slurm.kill("slurmctld")
    done = site.box.submit()
    assert done.returncode == 1
    assert "Unable to contact slurm controller" in done.stderr
    site.slurm.repair()
    site.hold()
    assert site.box.submit().returncode == 0
    assert len(site.queue()) == 2
    finish(site)


def test_an_sbatch_that_never_answers_is_given_up_and_asked_about(site: Site) -> None:
    site.one_shape()
    site.change(submit_timeout="3s")
    site.wrap("sbatch", '"$REAL" "$@" > "$0.said"; sleep 600')  # accepted, not told
    done = site.box.submit()
    assert done.returncode == 1
    assert "may or may not have been accepted" in done.stderr
    assert len(site.queue()) == 2
    site.wrap("sbatch", 'exec "$REAL" "$@"')
    again = site.box.submit()
    assert again.returncode == 0, again.stderr
    assert len(site.queue()) == 2
    finish(site)


BAD = {
    "partition": ({"routes": [{"partition": "nowhere", "max_time": "4h"}]},
                  "invalid partition specified", "`sinfo -s` lists the partitions"),
    "too long": ({"routes": [{"partition": "minute", "max_time": "4h"}]},
                 "Requested time limit is invalid", "take a shorter case_time"),
    "too many GPUs": ({"devices": {"fake": {"per_node": 8}}, "whole_node": False,
                       "options": ["--gpus-per-node=fake:8"]},
                      "Requested node configuration is not available", "compare the profile"),
    "GPU type": ({"devices": {"fake": {"request": "h900"}}},
                 "node configuration is not available|Invalid generic resource", "`sinfo"),
    "feature": ({"devices": {"fake": {"constraint": "a100_80"}}},
                "Invalid feature specification", "constraint"),
}  # fmt: skip
BAD_BY_ACCOUNTING = {
    "QOS": ({"options": ["--qos=nosuch"]}, "Invalid qos", "sacctmgr show qos"),
    "account": ({"account": "nosuch"}, "Invalid account", "sacctmgr show associations"),
}  # fmt: skip


def refused(site: Site, what: tuple[dict[str, object], str, str]) -> None:
    changes, said, way_out = what
    before = dict(site.changes)
    site.release()  # a partition that is down takes what no node can do, since 24.11
    site.change(**changes)
    done = site.box.submit()
    assert done.returncode == 1
    assert any(word in done.stderr for word in said.split("|")), done.stderr
    assert way_out in done.stderr
    assert site.queue() == []
    assert set(site.statuses()) == {"new"}
    site.hold()
    site.changes = before
    site.change()
    assert site.box.submit().returncode == 0
    assert len(site.queue()) == 4


@pytest.mark.parametrize("what", BAD)
def test_a_refusal_is_told_with_the_way_out_and_submits_nothing(
    site: Site, what: str
) -> None:
    refused(site, BAD[what])  # type: ignore[arg-type]


@pytest.mark.parametrize("what", BAD_BY_ACCOUNTING)
def test_a_refusal_by_accounting_is_told_with_the_way_out(
    accounted_site: Site, what: str
) -> None:
    refused(accounted_site, BAD_BY_ACCOUNTING[what])  # type: ignore[arg-type]


def test_a_submit_limit_in_the_middle_keeps_what_was_taken(
    accounted_site: Site,
) -> None:
    site = accounted_site
    site.change(arrays=False, options=["--qos=one"])
    done = site.box.submit()
    assert done.returncode == 1
    assert "3 cases were not accepted" in done.stderr
    assert len(site.queue()) == 1
    assert sorted(site.statuses()) == ["new", "new", "new", "pending"]
    site.change(options=[])
    assert site.box.submit().returncode == 0
    assert len(site.queue()) == 4


def test_the_submission_leaves_no_process_behind(accounted_site: Site) -> None:
    conf = accounted_site.slurm.environment["SLURM_CONF"]
    accounted_site.box.submit()
    running = psutil.process_iter(["name", "environ"])
    assert [
        each.info["name"]
        for each in running
        if (each.info["environ"] or {}).get("SLURM_CONF") == conf
        and each.info["name"] in ("sbatch", "timeout", "python")
    ] == []
