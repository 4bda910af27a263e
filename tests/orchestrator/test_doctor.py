"""`orch doctor` and `orch clusters`: what they find and how they say it."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from orchestrator.checks import Check
from orchestrator.cli import orch
from orchestrator.clusters.cluster import PROFILES, cluster_names, load_cluster
from orchestrator.clusters.hardware import gpu_memories_bytes
from orchestrator.commands.doctor import findings
from orchestrator.slurm.doctor import slurm_findings
from tests.orchestrator.sandbox import CHECKOUT


def look(results: Path, cluster: str = "local") -> list[Check]:
    return list(findings(results, load_cluster(cluster), job=False))


def test_a_sound_machine_has_nothing_bad(tmp_path: Path) -> None:
    assert [each for each in look(tmp_path / "results") if each.level == "fail"] == []


def test_the_doctor_leaves_nothing_behind(tmp_path: Path) -> None:
    look(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_packages_that_setup_names_and_nobody_installed_are_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "orch_bench-9.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text(
        "Metadata-Version: 2.1\nName: orch-bench\nVersion: 9\n"
        "Requires-Dist: click>=8.1\nRequires-Dist: nosuch>=1\n"
        "Requires-Dist: norsuch>=2 ; extra == 'parquet'\n"
        "Requires-Dist: nobody ; extra == 'test'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {each.level: each for each in look(tmp_path / "results")}
    assert found["fail"].what == "missing: nosuch"
    assert f"{sys.executable} -m pip install -e" in found["fail"].remedy
    assert found["warn"].what == "--format parquet cannot be used: missing norsuch"
    assert f"{CHECKOUT}[parquet]" in found["warn"].remedy


def test_a_folder_that_holds_no_results_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    bad = [each for each in look(file) if each.level == "fail"]
    assert len(bad) == 1
    assert "cannot hold results" in bad[0].what
    assert "--results" in bad[0].remedy


def test_a_slurm_cluster_without_slurms_commands_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bad = [each for each in look(tmp_path, "sol") if each.level == "fail"]
    assert len(bad) == 1
    assert "no sbatch" in bad[0].what
    assert "login node" in bad[0].remedy


def fake(folder: Path, **scripts: str) -> None:
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct"):
        script = scripts.get(name, "exit 0")
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def test_a_type_of_gpu_may_begin_with_a_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, sinfo="echo 'gpu:a100:2,gpu:2g.20gb:3(S:0-1)'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    device = {"request": "2g.20gb", "per_node": 3, "cpus": 1, "host_memory": "4GiB"}
    cluster = load_cluster("slurm", {"devices": {"mig": device}, "device": "mig"})
    found = list(slurm_findings(cluster, tmp_path, job=False))
    assert [each for each in found if "no node has GPUs" in each.what] == []


@pytest.mark.parametrize(
    ("scripts", "level", "what"),
    [
        ({"scontrol": "echo down >&2; exit 1"}, "fail", "Slurm does not answer: down"),
        ({"sacct": "echo disabled >&2; exit 1"}, "warn", "no accounting: disabled"),
        ({"sinfo": "echo general"}, "warn", "htc, public, which sinfo does not show"),
        ({"sinfo": "echo gpu:v100:4"}, "fail", "no node has GPUs of type a100; there are: v100"),
        ({"sinfo": "echo cpu"}, "fail", "sinfo shows no node with GPUs"),
        ({"scontrol": "echo MaxArraySize = 1001"}, "warn", "this Slurm takes 1000"),
    ],
)  # fmt: skip
def test_what_slurm_answers_is_compared_with_the_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: dict[str, str],
    level: str,
    what: str,
) -> None:
    fake(tmp_path, **scripts)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = [each for each in look(tmp_path / "x", "sol") if each.level == level]
    assert any(what in each.what for each in found), found
    assert all(each.remedy for each in found)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(orch, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_clusters_lists_every_profile_and_how_sure_its_facts_are() -> None:
    shown = run("clusters")
    for name in cluster_names():
        assert f"\n{name}" in shown
    assert shown.count("unverified") >= 5


def test_a_profile_is_explained() -> None:
    shown = run("clusters", "sol")
    for word in ("htc", "a100-20", "79 GiB", "docs.rc.asu.edu", "extends: sol"):
        assert word in shown


def test_what_json_says_of_a_cluster_is_a_profile_again(tmp_path: Path) -> None:
    (row,) = json.loads(run("clusters", "sol", "--json"))
    row.pop("here")
    file = tmp_path / "copy.yaml"
    file.write_text(yaml.safe_dump(row))
    assert load_cluster(file) == load_cluster("sol")


def test_the_schema_that_is_printed_takes_what_ships() -> None:
    schema = json.loads(run("clusters", "--schema"))
    for name in cluster_names():
        described = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
        jsonschema.validate(described, schema)


def test_a_profile_of_ones_own_is_extended_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: local\nname: mine\ncase_time: 7d\n")
    shown = run("clusters", str(file))
    assert "facts are tested, unless this file changes them" in shown
    assert "time for a case: 7 days; each job runs 1 case" in shown
    assert f"`extends: {file}`" in shown
    assert "Slurm" not in shown.split("time for a case")[1]


@pytest.mark.parametrize(
    ("cluster", "said"),
    [("local", "ranks compute on the CPU"), ("sol", "jobs get theirs from Slurm")],
)
def test_a_machine_without_gpus_is_judged_by_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    gpu_memories_bytes.cache_clear()
    found = look(tmp_path, cluster)
    gpu_memories_bytes.cache_clear()
    assert any(said in each.what for each in found)


def test_a_job_is_not_silently_left_out_on_this_machine(tmp_path: Path) -> None:
    found = findings(tmp_path, load_cluster("local"), job=True)
    assert any("no job was tried" in each.what for each in found)
