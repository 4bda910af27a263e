"""What a record says of its surroundings, and what it must never say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import environment
from jobs.launch.torchrun import Nodes, processors, torchrun, worker_environment

CHECKOUT = Path(__file__).resolve().parents[2]
GIT = shutil.which("git")


def git(folder: Path, *arguments: str) -> str:
    assert GIT is not None
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = [GIT, "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    if GIT is None:
        pytest.skip("needs git, which this machine does not have")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "bench.py").write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(repository: Path) -> None:
    code = environment.code(repository)
    assert code.commit == git(repository, "rev-parse", "HEAD").strip()
    assert code.changes is None


def test_each_change_has_a_digest_of_its_own(repository: Path) -> None:
    seen = {environment.code(repository).changes}
    (repository / "jobs" / "bench.py").write_text("second\n")
    seen.add(environment.code(repository).changes)
    (repository / "new file.py").write_text("one\n")
    seen.add(environment.code(repository).changes)
    (repository / "new file.py").write_text("two\n")
    seen.add(environment.code(repository).changes)
    assert len(seen) == 4


def test_a_change_that_is_taken_back_leaves_no_trace(repository: Path) -> None:
    before = environment.code(repository)
    (repository / "jobs" / "bench.py").write_text("second\n")
    assert environment.code(repository) != before
    (repository / "jobs" / "bench.py").write_text("first\n")
    assert environment.code(repository) == before


def test_ignored_files_are_not_changes(repository: Path) -> None:
    (repository / ".gitignore").write_text("results/\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "ignore")
    (repository / "results").mkdir()
    (repository / "results" / "record.json").write_text("{}")
    assert environment.code(repository).changes is None


def test_without_a_repository_the_source_still_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "llama.py").write_text("1\n")
    code = environment.code(tmp_path)
    assert (code.commit, code.changes) == (None, None)
    (tmp_path / "kernels" / "llama.py").write_text("2\n")
    assert environment.code(tmp_path).source != code.source


def test_a_repository_around_the_checkout_is_not_ours(repository: Path) -> None:
    inner = repository / "copy"
    inner.mkdir()
    assert environment.code(inner).commit is None


def test_without_git_the_source_still_has_a_digest(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_git = environment.code(repository)
    monkeypatch.setenv("PATH", str(repository))
    without = with_git.model_copy(update={"commit": None})
    assert environment.code(repository) == without


def test_no_secret_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "MY_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    described = environment.describe()
    assert "hunter2" not in repr(described)
    assert described.variables["NCCL_DEBUG"] == "WARN"
    assert described.slurm == {"job_id": "812"}


def test_versions_name_what_a_number_depends_on() -> None:
    software = environment.software()
    assert software.python == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "safetensors"} <= software.packages.keys()
    assert software.torch == software.packages["torch"]


def test_the_machine_is_described() -> None:
    host = environment.this_host()
    assert host.cpu
    assert host.allowed_processors == len(os.sched_getaffinity(0))
    assert host.memory_bytes > 1 << 28


def test_gpus_are_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "0, NVIDIA A100-SXM4-80GB, GPU-1, 81920, 550.1, [N/A], Enabled, 1410, 1593, 400.5"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gpu,) = environment.gpus()
    assert (gpu.index, gpu.name) == (0, "NVIDIA A100-SXM4-80GB")
    assert (gpu.memory_bytes, gpu.driver) == (81920 << 20, "550.1")
    assert (gpu.mig, gpu.ecc) == (None, "Enabled")
    assert (gpu.max_sm_mhz, gpu.max_memory_mhz, gpu.power_limit_w) == (
        1410,
        1593,
        400.5,
    )


def test_a_broken_nvidia_smi_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho no devices; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert environment.gpus() == []
    assert environment.this_host().topology is None


def test_describing_needs_no_torch() -> None:
    code = (
        "import sys, jobs.launch; from jobs.environment import describe; describe(); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("granted", "ranks", "threads"), [("8", 2, "4"), ("8", 3, "2"), ("2", 4, "1")]
)
def test_ranks_share_the_processors_they_were_granted(
    monkeypatch: pytest.MonkeyPatch, granted: str, ranks: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    given = {"SLURM_CPUS_PER_TASK": granted, "OMP_NUM_THREADS": granted}
    variables = worker_environment(given, ranks)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == threads


def test_no_more_processors_than_allowed_are_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert processors({"SLURM_CPUS_PER_TASK": "48"}) == 2
    assert processors({}) == 2


def test_the_checkout_comes_first_on_the_path() -> None:
    path = worker_environment({"PYTHONPATH": "/theirs"}, 1)["PYTHONPATH"]
    assert path.split(os.pathsep) == [str(CHECKOUT), "/theirs"]


def test_one_machine_meets_at_a_port_of_its_own(tmp_path: Path) -> None:
    command = torchrun(Nodes(ranks_per_node=2), tmp_path, ["jobs.bench", "case.json"])
    assert "--standalone" in command
    assert "--nproc-per-node=2" in command
    assert "--max-restarts=0" in command
    assert command[-3:] == ["--module", "jobs.bench", "case.json"]


def test_several_machines_meet_at_the_first() -> None:
    nodes = Nodes(ranks_per_node=4, count=2, rendezvous="a1:29500", job_id="812")
    command = torchrun(nodes, Path("logs"), ["jobs.bench"])
    assert "--standalone" not in command
    assert {"--nnodes=2", "--rdzv-endpoint=a1:29500", "--rdzv-id=812"} <= set(command)
