"""A measurement uses four members of an engine, and nothing else: so a peer can be measured too."""

import ast
import inspect
from pathlib import Path

import pytest

from kernels.engine import Engine
from kernels.llama_engine import LlamaEngine, SequentialEngine
from kernels.pipeline_parallel import PipelineEngine
from kernels.zero_offload import OffloadEngine

CHECKOUT = Path(__file__).resolve().parents[2]
MEMBERS = {"generate", "weight_bytes", "facts", "close"}


def test_the_protocol_has_four_members() -> None:
    named = {name for name in vars(Engine) if not name.startswith("_")}
    assert named == MEMBERS


@pytest.mark.parametrize("engine", [SequentialEngine, PipelineEngine, OffloadEngine])
def test_every_engine_of_ours_keeps_to_it(engine: type[LlamaEngine]) -> None:
    for name in MEMBERS - {"weight_bytes"}:
        wanted = inspect.signature(getattr(Engine, name)).parameters
        assert list(inspect.signature(getattr(engine, name)).parameters) == list(wanted)
    assert isinstance(inspect.getattr_static(engine, "weight_bytes"), property)


@pytest.mark.parametrize("file", ["measure.py", "bench.py", "timing.py", "gates.py"])
def test_measuring_uses_nothing_else_of_an_engine(file: str) -> None:
    tree = ast.parse((CHECKOUT / "jobs" / file).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute | ast.Name)
        and (
            node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
        )
        == "engine"
    }
    assert used <= MEMBERS
