"""What would be done with each case, and the reason where it cannot fit."""

from pathlib import Path

import pytest

from orchestrator.clusters import hardware
from orchestrator.study.ledger import read_ledger
from orchestrator.submission.plan import Request, plan, target

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
    aim = target(Request(grid, folder, cluster), dry_run=True)
    planned = plan(aim, read_ledger(aim.study.ledger_file))
    return [planned.pruned.get(case_id) for case_id in planned.standing]


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
    monkeypatch.setattr(hardware, "gpu_memories_bytes", lambda: (gpu,) if gpu else ())
    monkeypatch.setattr(hardware, "host_memory_bytes", lambda: 16 * GIB)
    (reason,) = reasons(tmp_path, "{strategy: single, gpus: 1}", "local")
    assert f"on each {word}, it has" in (reason or "")
