"""Worlds of worker ranks, shared by all tests of the session."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the ranks: they share few cores

from ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """`ranks(size)`: the world of that many processes, made when first asked for."""
    worlds: dict[int, Ranks] = {}

    def of_size(size: int) -> Ranks:
        return worlds.setdefault(size, Ranks(size))

    yield of_size
    for world in worlds.values():
        world.close()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
