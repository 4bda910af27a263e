"""The virtual cluster itself: what the other tests here build on."""

import os
import subprocess
from pathlib import Path

import psutil
from virtual_slurm import VirtualSlurm


def test_a_job_on_two_nodes_sees_their_names_and_its_fake_gpus(
    slurm: VirtualSlurm, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "srun -l sh -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES; getent hosts node1'"
    )
    slurm.command("sbatch", "-W", "-N2", "--gpus-per-node=fake:2", "-o", str(out),
                  "--wrap", script)  # fmt: skip
    lines = sorted(out.read_text().splitlines())
    assert [line for line in lines if "node" in line and "127" not in line] == [
        "0: node1 0,1",
        "1: node2 0,1",
    ]
    assert sum("127.0.0.1" in line for line in lines) == 2


def test_sacct_answers_exactly_where_accounting_is_on(slurm: VirtualSlurm) -> None:
    done = subprocess.run(["sacct", "-P"], capture_output=True, env=slurm.environment)
    assert (done.returncode == 0) is slurm.accounting


def test_a_crashed_node_takes_its_processes_with_it_and_comes_back(
    slurm: VirtualSlurm, tmp_path: Path
) -> None:
    pid_file = tmp_path / "marker"
    long = f"sleep {10**6 + os.getpid()}"
    slurm.command("sbatch", "-w", "node2", "--no-requeue", "-o", "/dev/null", "--wrap",
                  f"touch {pid_file}; exec {long}")  # fmt: skip
    slurm.wait(pid_file.exists, "the job to run")
    slurm.kill("node2")

    def is_gone() -> bool:
        lines = (each.info["cmdline"] for each in psutil.process_iter(["cmdline"]))
        return not any(long in " ".join(words or ()) for words in lines)

    slurm.wait(is_gone, "the node's processes to be gone", 10)
    slurm.repair()
    assert slurm.idle() == set(slurm.nodes)
