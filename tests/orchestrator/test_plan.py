"""What would be done with each case, and the reason where it cannot fit."""

from pathlib import Path

import pytest

from orchestrator.local import runner as local_runner
from orchestrator.study.ledger import read_ledger
from orchestrator.submission.plan import Plan, Request, Target, plan, read_target

GIB = 2**30
GRID = """
models: {big: {random: llama-2-70b}}
prompts: random
fixed: {model: big, dtype: bfloat16, batch_size: 1, new_tokens: 1, prompt_tokens: 1}
"""
PROFILE = """
name: two-a-node
about: for a test
confidence: unverified
devices:
  cpu: {is_gpu: false, per_node: 2, cpus: 1, host_memory: 40GiB}
  gpu: {memory: 40GiB, per_node: 2, cpus: 1, host_memory: 40GiB}
device: KIND
routes: [{max_time: 1d}]
"""


def reasons(folder: Path, axes: str, cluster: str) -> list[str | None]:
    grid = folder / "grid.yaml"
    grid.write_text(f"{GRID}axes: {axes}\n")
    aim = read_target(Request(grid, folder, cluster), dry_run=True)
    planned = plan(aim, read_ledger(aim.study.ledger_file))
    return [planned.pruned.get(case_id) for case_id in planned.statuses]


@pytest.fixture(params=["cpu", "gpu"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of device."""
    name: str = request.param
    return name


def test_a_reason_calls_the_device_what_it_is(tmp_path: Path, kind: str) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE.replace("KIND", kind))
    (reason,) = reasons(tmp_path, "{strategy: single, gpus: 1}", str(profile))
    called = {"cpu": "worker", "gpu": "GPU"}[kind]
    assert reason == f"needs 129 GiB on each {called}, it has 40 GiB"


def test_main_memory_is_compared_node_by_node(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE.replace("KIND", "gpu"))
    streamed = [f"{{zero-offload: {{}}, tensor: {gpus}}}" for gpus in (2, 4)]
    axes = (
        f"{{strategy: [{', '.join(streamed)}], gpus: [2, 4]}}\nzip: [[strategy, gpus]]"
    )
    one_node, two_nodes = reasons(tmp_path, axes, str(profile))
    assert one_node == "needs 129 GiB of main memory, there is 80 GiB"
    assert two_nodes is None


@pytest.mark.parametrize(("gpu", "word"), [(None, "worker"), (8 * GIB, "GPU")])
def test_this_machine_has_workers_where_it_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: int | None, word: str
) -> None:
    monkeypatch.setattr(local_runner, "gpu_memory_bytes", lambda: gpu)
    monkeypatch.setattr(local_runner, "host_memory_bytes", lambda: 16 * GIB)
    (reason,) = reasons(tmp_path, "{strategy: single, gpus: 1}", "local")
    assert f"on each {word}, it has" in (reason or "")


def sol(folder: Path, grid_text: str) -> tuple[Target, Plan]:
    grid = folder / "grid.yaml"
    grid.write_text(grid_text)
    target = read_target(Request(grid, folder, "sol"), dry_run=True)
    return target, plan(target, read_ledger(target.study.ledger_file))


def test_a_case_that_fits_on_as_many_nodes_as_it_takes_is_not_pruned(
    tmp_path: Path,
) -> None:
    """Ten ranks go to five nodes of two, since three nodes cannot hold them in equal numbers."""
    _, planned = sol(
        tmp_path,
        "models: {huge: {random: llama-3.1-405b}}\nprompts: random\n"
        "fixed: {model: huge, dtype: float32}\n"
        "axes: {strategy: {model: 5, tensor: 2, zero-offload: {}}, gpus: 10}\n",
    )
    assert planned.pruned == {}
    assert len(planned.todo) == 1


@pytest.mark.parametrize("gpus", range(1, 17))
def test_the_plan_and_the_job_take_the_same_number_of_nodes(
    tmp_path: Path, gpus: int
) -> None:
    target, planned = sol(
        tmp_path,
        "models: {toy: {random: llama-3.2-1b}}\nprompts: random\n"
        f"fixed: {{model: toy}}\naxes: {{strategy: data, gpus: {gpus}}}\n",
    )
    (batch,) = target.runner.batches(planned.todo)
    assert batch.resources is not None
    nodes = batch.resources.nodes
    assert nodes == target.cluster.nodes(gpus)
    assert nodes * batch.resources.ranks_per_node == gpus


def test_a_case_is_ended_by_us_before_its_job_is_ended_by_slurm(tmp_path: Path) -> None:
    target, planned = sol(
        tmp_path,
        "models: {toy: {random: llama-3.2-1b}}\nprompts: random\n"
        "fixed: {model: toy}\naxes: {strategy: single, gpus: 1}\n",
    )
    (batch,) = target.runner.batches(planned.todo)
    assert batch.resources is not None
    assert 0 < batch.timeout_s < batch.resources.time_s
