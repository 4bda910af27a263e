"""`orch doctor` and `orch clusters`: what they find and how they say it."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from orchestrator.checks import Check
from orchestrator.cli import orch
from orchestrator.clusters.cluster import PROFILES, cluster_names, load_cluster
from orchestrator.commands.doctor import findings


def look(results: Path, cluster: str = "local") -> list[Check]:
    return list(findings(results, load_cluster(cluster), job=False))


def test_a_sound_machine_has_nothing_bad(tmp_path: Path) -> None:
    assert [each for each in look(tmp_path / "results") if each.level == "fail"] == []


def test_the_doctor_leaves_nothing_behind(tmp_path: Path) -> None:
    look(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
