"""From a grid to the table with nothing replaced: real jobs, real workers, a real model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.clusters.hardware import gpu_memories_bytes
from tests.orchestrator.sandbox import CHECKOUT

GRID = """
study: real
cluster: local
models:
  toy: {random: {dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, vocab_size: 128}}
  huge: {random: llama-3.1-405b}
fixed: {dtype: float32, batch_size: 2, prompt_tokens: 4, new_tokens: 4, repeats: 2, gpus: 2}
axes: {model: [toy, huge], strategy: [model, tensor]}
"""


def orch(
    results: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    own = {
        "ORCH_RESULTS": str(results), "ORCH_MACHINE_LOCK": str(results / "machine.lock"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=CHECKOUT,
        env=os.environ | own | more, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_grid_becomes_a_table_on_this_machine(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    run = orch(tmp_path, "submit", "--grid", str(grid), "--wait")
    assert run.returncode == 0, run.stderr
    rows = json.loads(orch(tmp_path, "collect", "--long", "--format", "json").stdout)
    assert [row["status"] for row in rows] == ["ok", "ok", "pruned", "pruned"]
    assert rows[0]["ids_digest"] == rows[1]["ids_digest"]
    assert all(row["output_tok_per_s_mean"] > 0 for row in rows[:2])
    assert all(row["n"] == 2 and row["output_tokens"] == 8 for row in rows[:2])
    table = orch(tmp_path, "collect", "--format", "markdown").stdout.splitlines()
    assert table[0].startswith("| model | strategy | 2 ")
    assert [line.split("|")[3].strip() for line in table[4:]] == ["#", "#"]


EVERY_STRATEGY = """
study: every
cluster: local
models:
  toy: {random: {dim: 32, n_layers: 4, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, vocab_size: 128}}
fixed:
  {model: toy, dtype: float32, batch_size: 2, prompt_tokens: 4, new_tokens: 4, repeats: 1}
include:
  - {strategy: [single, zero-offload, {zero-offload: {source: disk, kv: host}}], gpus: 1}
  - {strategy: [model, pipeline, {pipeline: {schedule: async}}, tensor, zero-offload], gpus: 2}
  - {strategy: {tensor: 2, pipeline: {}}, gpus: 4}
"""


def test_every_strategy_goes_the_whole_way_and_chooses_the_same_ids(
    tmp_path: Path,
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(EVERY_STRATEGY)
    run = orch(tmp_path, "submit", "--grid", str(grid), "--wait")
    assert run.returncode == 0, run.stderr
    rows = json.loads(orch(tmp_path, "collect", "--long", "--format", "json").stdout)
    assert [row["status"] for row in rows] == ["ok"] * 9
    assert len({row["ids_digest"] for row in rows}) == 1
    assert all(row["ids_agree"] for row in rows)


@pytest.mark.gpu
def test_a_grid_becomes_a_table_on_a_gpu_with_the_ids_of_a_cpu(tmp_path: Path) -> None:
    if not gpu_memories_bytes():
        pytest.skip("needs a CUDA device, and this machine has none")
    grid = tmp_path / "grid.yaml"
    one_gpu = "\n".join(
        line for line in EVERY_STRATEGY.splitlines() if "gpus: 2}" not in line
    )
    grid.write_text(
        one_gpu.replace("  - {strategy: {tensor: 2, pipeline: {}}, gpus: 4}", "")
    )
    found = {}
    for place, devices in (("gpu", "0"), ("cpu", "")):
        run = orch(
            tmp_path, "submit", "--grid", str(grid), "--study", place, "--wait",
            CUDA_VISIBLE_DEVICES=devices,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        said = orch(tmp_path, "collect", "--study", place, "--long", "--format", "json")
        found[place] = json.loads(said.stdout)
    assert [row["status"] for row in found["gpu"]] == ["ok"] * 3
    assert len({row["ids_digest"] for rows in found.values() for row in rows}) == 1
    assert {row["device"] for row in found["gpu"]}.isdisjoint(
        row["device"] for row in found["cpu"]
    )
    assert all(row["driver"] and row["cuda"] for row in found["gpu"])
    single = found["gpu"][0]
    assert single["peak_memory_bytes"] >= single["weight_bytes"]
