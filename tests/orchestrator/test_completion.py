"""What the shell completes: commands, studies, clusters, metrics, cases and subsets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import VERBS
from tests.orchestrator.made import a_case, a_study
from tests.orchestrator.sandbox import CHECKOUT, GRID

LIGHT = ["status", "logs", "trace", "clusters", "doctor"]


def completed(line: str, results: Path) -> list[str]:
    """What the shell is offered for the last word of the line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    run = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli"], cwd=CHECKOUT, text=True,
        capture_output=True,
        env=os.environ | words
        | {"ORCH_RESULTS": str(results), "_ORCH_COMPLETE": "bash_complete"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in run.stdout.split()]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A study of four cases."""
    cases = [a_case(name, gpus) for name in ("model", "tensor") for gpus in (1, 2)]
    a_study(tmp_path, cases, "four")
    return tmp_path


def test_commands_are_completed_in_the_order_of_work(tmp_path: Path) -> None:
    assert completed("orch ", tmp_path) == list(VERBS)
    assert completed("orch s", tmp_path) == ["submit", "status"]


@pytest.mark.parametrize("verb", LIGHT)
def test_completing_an_option_loads_nothing_heavy(verb: str) -> None:
    code = f"import orchestrator.commands.{verb}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"torch", "numpy", "pandas", "pydantic", "rich", "yaml"} & set(loaded)


def test_names_of_studies_clusters_and_metrics_are_completed(results: Path) -> None:
    assert completed("orch status --study f", results) == ["four"]
    assert completed("orch submit --cluster lo", results) == ["local", "lonestar6"]
    assert completed("orch clusters so", results) == ["sol"]
    assert completed("orch collect --metric ttf", results) == ["ttft_s"]


def test_cases_of_the_study_are_completed(results: Path) -> None:
    for line in ("orch logs toy_mo", "orch cancel --study four toy_mo"):
        names = [case_id.rpartition("-")[0] for case_id in completed(line, results)]
        assert names == ["toy_model_1x_b2_fp32", "toy_model_2x_b2_fp32"]


def test_subsets_of_the_grid_are_completed(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    line = f"orch submit --grid {grid} --subset s"
    for text in ("subsets: [", "[]", "subsets: 3"):
        grid.write_text(text)
        assert completed(line, tmp_path) == []
    grid.write_text(GRID + "subsets: {small: {gpus: 1}, large: {gpus: 2}}\n")
    assert completed(line, tmp_path) == ["small"]


def test_where_there_is_no_study_nothing_is_completed(tmp_path: Path) -> None:
    assert completed("orch logs t", tmp_path) == []
    assert completed("orch status --study f", tmp_path) == []


def test_completion_works_from_any_folder(tmp_path: Path) -> None:
    # as the installed program: Python knows of `orchestrator` alone
    (tmp_path / "orchestrator").symlink_to(CHECKOUT / "orchestrator")
    words = {"COMP_WORDS": "orch collect --metric peak_m", "COMP_CWORD": "3"}
    run = subprocess.run(
        [sys.executable, "-c", "from orchestrator.cli import main; main()"],
        cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | words | {"_ORCH_COMPLETE": "bash_complete", "PYTHONPATH": ""},
    )  # fmt: skip
    assert (run.stderr, run.stdout) == ("", "plain,peak_memory_bytes\n")
