"""Fixtures of the orchestrator's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.sandbox import Sandbox, make_sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A copy of the checkout with a quick jobs.launch; its jobs are over when the test is."""
    box = make_sandbox(tmp_path / "checkout")
    yield box
    box.end_jobs()
