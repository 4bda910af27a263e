"""Job scripts: compared whole with golden files; hostile values stay values.

To refresh the golden files after a change that is meant: ORCH_REFRESH_GOLDEN=1 pytest …
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernels.shapes import KNOWN
from kernels.strategies import Parallel, TensorParallel
from orchestrator.case import Case
from orchestrator.checkout import checkout
from orchestrator.clusters.cluster import cluster_names, load_cluster
from orchestrator.errors import InputError
from orchestrator.slurm.resources import resources
from orchestrator.slurm.script import render

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"


def case_of(gpus: int) -> Case:
    return Case(
        model="llama-2-7b",
        random=KNOWN["llama-2-7b"],
        label="tensor",
        strategy=Parallel(tensor=TensorParallel(degree=gpus)),
        gpus=gpus,
    )


def script_of(cluster: str, gpus: int, jobs: int, **changes: Any) -> str:
    profile = load_cluster(cluster, {"python": "/env/bin/python", **changes})
    need = resources(profile, case_of(gpus), profile.cases_per_job)
    text = render(profile, need, key="KEY", jobs=jobs, summary="Study report: 1 case")
    return text.replace(str(checkout()), "/checkout")


SCRIPTS = {
    "sol-array": lambda: script_of("sol", gpus=2, jobs=40),
    "sol-two-nodes": lambda: script_of("sol", gpus=8, jobs=1),
    "sol-debug": lambda: script_of("sol", 1, 1, qos="debug", case_time="10min"),
    "sol-mig-slice": lambda: script_of("sol", 1, 1, device="a100-20"),
    "sol-cpu": lambda: script_of("sol", 4, 1, device="cpu", case_time="6h"),
    "perlmutter": lambda: script_of("perlmutter", 2, 3, account="m1234_g"),
    "lonestar6": lambda: script_of("lonestar6", 2, 1),
    "juwels-two-nodes": lambda: script_of("juwels-booster", 8, 1, account="x"),
    "anvil-requeue": lambda: script_of("anvil", 1, 1, account="abc-gpu", requeue=True),
    "slurm-anywhere": lambda: script_of("slurm", gpus=4, jobs=1),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_the_golden_one(name: str) -> None:
    text = SCRIPTS[name]()
    file = GOLDEN / f"{name}.sh"
    if os.environ.get("ORCH_REFRESH_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_the_script(name: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=SCRIPTS[name](), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


HOSTILE = "$(touch pwned) `touch pwned` '; touch pwned; \" \\ ü %j"


def test_hostile_values_reach_neither_shell_nor_slurm(tmp_path: Path) -> None:
    profile = load_cluster(
        "sol",
        {
            "python": "/bin/true",
            "account": HOSTILE,
            "environment": {"MODEL": HOSTILE},
            "setup": ['printf "%s" "$MODEL" > model'],
            "partition": None,
        },
    )
    need = resources(profile, case_of(2))
    text = render(profile, need, key="k", jobs=1, summary=f"Study {HOSTILE}\nrm -rf x")
    subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
    assert (tmp_path / "model").read_text() == HOSTILE
    assert all(
        line.startswith("#") for line in text.splitlines()[:25] if "pwned" in line
    )


def test_a_profile_value_of_two_lines_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('extends: sol\naccount: "a\\n#SBATCH --uid=0"\n')
    with pytest.raises(InputError, match=r"mine.yaml:2:.*must be one line"):
        load_cluster(str(file))


def test_a_variable_name_that_is_none_is_refused() -> None:
    profile = load_cluster("sol", {"environment": {"A=1;rm": "x"}})
    with pytest.raises(InputError, match="no name of a variable"):
        render(profile, resources(profile, case_of(1)), key="k", jobs=1, summary="")


@pytest.mark.parametrize("key", ["a b", "../x", "a;b", ""])
def test_a_key_that_could_mean_something_is_refused(key: str) -> None:
    profile = load_cluster("slurm")
    with pytest.raises(InputError, match="a key is letters"):
        render(profile, resources(profile, case_of(1)), key=key, jobs=1, summary="")


@pytest.mark.parametrize("name", [name for name in cluster_names() if name != "local"])
def test_every_profile_that_ships_renders_a_script(name: str) -> None:
    changes = {"account": "xyz"} if load_cluster(name).account_required else {}
    profile = load_cluster(name, changes)
    text = render(profile, resources(profile, case_of(1)), key="k", jobs=2, summary="")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "srun --kill-on-bad-exit=1" in text
