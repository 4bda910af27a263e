"""Worlds and groups, and the worker ranks that the tests themselves stand on."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ranks import RankFailure, Ranks

from kernels.world import Group, World, WorldError, leave

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_to(*values: str) -> None:
        for name, value in zip(TORCHRUN, values, strict=False):
            monkeypatch.setenv(name, value)

    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return set_to


def test_torchruns_variables_describe_the_world(
    environment: Callable[..., None],
) -> None:
    environment("5", "8", "1", "4")
    world = World.from_environment("cpu")
    assert (world.rank, world.size) == (5, 8)
    assert (world.local_rank, world.local_size) == (1, 4)
    assert world.device == torch.device("cpu")


@pytest.mark.usefixtures("environment")
def test_without_torchrun_the_world_is_one_rank() -> None:
    world = World.from_environment("cpu")
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)


def test_a_rank_that_is_no_number_is_refused(environment: Callable[..., None]) -> None:
    environment("five")
    with pytest.raises(WorldError, match="RANK must be a whole number, got 'five'"):
        World.from_environment("cpu")


def test_each_rank_needs_a_gpu_of_its_own(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment("3", "4", "3", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(WorldError, match="4 local ranks for 2 GPUs"):
        World.from_environment("cuda")


def test_the_gpu_is_the_local_ranks(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment("7", "8", "3", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert World.from_environment("cuda").device == torch.device("cuda", 3)


def test_a_group_of_one_hands_everything_back() -> None:
    group = World().group([0])
    tensor = torch.arange(3.0)
    assert group.all_reduce(tensor) is tensor
    assert group.broadcast(tensor, 0) is tensor
    assert group.all_gather(tensor).tolist() == [[0.0, 1.0, 2.0]]
    group.barrier()
    group.close()
    leave()


def test_a_member_knows_its_place_and_an_outsider_that_it_has_none() -> None:
    assert Group([4, 6], 6, None).index == 1
    assert Group([4, 6], 5, None).index == -1


def talk(world: World) -> dict[str, list[float]]:
    group = world.group_among([[0, 2], [1, 3]])
    mine = torch.tensor([float(world.rank)])
    heard = {
        "gathered": group.all_gather(mine).flatten().tolist(),
        "sum": group.all_reduce(mine.clone()).tolist(),
        "from last": group.broadcast(mine.clone(), 1).tolist(),
    }
    passed = torch.empty(2, 2).t()
    if group.index == 0:
        group.send(torch.arange(4.0).view(2, 2).t() + world.rank, 1)
    else:
        heard["passed"] = group.receive(torch.empty(2, 2), 0).flatten().tolist()
    assert passed.shape == (2, 2)
    group.barrier()
    group.close()
    return heard


def test_groups_talk_among_themselves(ranks: Callable[[int], Ranks]) -> None:
    zero, one, two, three = ranks(4).run(talk)
    assert zero == {"gathered": [0, 2], "sum": [2], "from last": [2]}
    assert one == {"gathered": [1, 3], "sum": [4], "from last": [3]}
    assert two == zero | {"passed": [0, 2, 1, 3]}
    assert three == one | {"passed": [1, 3, 2, 4]}


def summed_bits(world: World, dtype: str) -> bytes:
    generator = torch.Generator().manual_seed(world.rank)
    mine = torch.randn(1000, generator=generator).to(getattr(torch, dtype))
    group = world.group(range(world.size))
    out = group.all_reduce(mine).view(torch.uint8).numpy().tobytes()
    group.close()
    return out


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_rank_gets_the_same_bits_of_a_sum(
    dtype: str, ranks: Callable[[int], Ranks]
) -> None:
    assert len(set(ranks(4).run(summed_bits, dtype))) == 1


def wait_in_vain(world: World) -> str:
    group = replace(world, timeout_s=2.0).group([0, 1])
    try:
        if group.index == 0:
            group.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        return str(error)
    return "did not wait"


def test_waiting_for_a_rank_that_does_not_come_ends_in_time() -> None:
    world = Ranks(2)
    try:
        first, second = world.run(wait_in_vain, timeout_s=30)
    finally:
        world.close()
    assert "imed out" in first
    assert second == "did not wait"


def misbehave(world: World, how: str) -> int:
    if world.rank == 1:
        if how == "raises":
            raise ValueError("rank one fell")
        if how == "dies":
            os._exit(3)
        time.sleep(60)
    return world.rank


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "rank one fell"),
        ("dies", "rank 1 of 2 died"),
        ("hangs", r"ranks \[1\] hung for 2"),
    ],
)
def test_a_rank_that_misbehaves_fails_its_test_and_no_other(
    how: str, says: str
) -> None:
    world = Ranks(2)
    try:
        with pytest.raises(RankFailure, match=says):
            world.run(misbehave, how, timeout_s=2)
        assert world.run(misbehave_not) == [0, 1]
    finally:
        world.close()


def misbehave_not(world: World) -> int:
    return world.rank
