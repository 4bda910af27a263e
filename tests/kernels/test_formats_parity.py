"""Both on-disk formats, in however many files, on however many ranks: one and the same answer.

A failure here means that a loader reads other weights than were written: fluent garbage.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from answers import (
    NEW_TOKENS,
    TOLERANCE,
    Answer,
    answers,
    batch_of,
    difference,
    prompts,
    random_weights,
    toy,
)
from oracle import oracle, oracle_ids, oracle_logits
from plain import plain_logits
from ranks import Ranks
from torch import Tensor

from kernels.checkpoints.hf_writer import write_hf
from kernels.checkpoints.meta_writer import write_meta
from kernels.shapes import ModelShape
from kernels.strategies import ModelParallel, Parallel, Single, Strategy, TensorParallel
from kernels.world import World

SHAPE = toy(dim=64, n_kv_heads=8, n_layers=2, ffn_dim=104, vocab_size=136)
SIZES = (1, 4, 7)

SPREADS = [
    Parallel(single=Single()),
    Parallel(model=ModelParallel(degree=2)),
    Parallel(tensor=TensorParallel(degree=2)),
    Parallel(tensor=TensorParallel(degree=4)),
    Parallel(model=ModelParallel(degree=2), tensor=TensorParallel(degree=2)),
    Parallel(tensor=TensorParallel(degree=8)),
]
FORMATS = (
    "meta 1 file",
    "meta 2 files",
    "meta 8 files",
    "meta 2 files, embedding by rows",
    "hf 1 file",
    "hf many files",
    "hf by transformers",
)
FORMATS_FOR_MANY = ("meta 2 files", "meta 8 files", "hf many files")
"""Enough where many ranks share few cores."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in each format."""
    weights = random_weights(SHAPE, torch.float32)
    made = {}
    for name in FORMATS:
        folder = made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        if name == "hf by transformers":
            oracle(weights).save_pretrained(folder)
        elif name.startswith("hf"):
            size = 20_000 if "many" in name else 10**9
            write_hf(folder, weights, size, has_tokenizer=False)
        else:
            write_meta(
                folder,
                weights,
                num_files=int(name.split()[1]),
                embedding_split="rows" if "rows" in name else "columns",
                tokenizer_size=None,
            )
    return made


@cache
def others_answers() -> list[Answer]:
    """transformers' greedy ids and logits on the weights that were written."""
    model = oracle(random_weights(SHAPE, torch.float32))
    return [
        Answer(oracle_ids(model, batch, NEW_TOKENS), oracle_logits(model, batch))
        for batch in map(batch_of, SIZES)
    ]


def all_answers(
    world: World, folders: list[Path], strategy: Strategy
) -> list[list[Answer]]:
    return [answers(world, folder, strategy) for folder in folders]


@pytest.mark.parametrize(
    "spread",
    SPREADS,
    ids=lambda spread: f"stages {spread.stages}, tensor {spread.shards}",
)
def test_every_format_on_every_number_of_ranks_answers_as_transformers_does(
    spread: Strategy, folders: dict[str, Path], ranks: Callable[[int], Ranks]
) -> None:
    names = FORMATS if spread.world_size < 4 else FORMATS_FOR_MANY
    chosen = [folders[name] for name in names]
    if spread.world_size == 1:
        by_rank = [all_answers(World(), chosen, spread)]
    else:
        by_rank = ranks(spread.world_size).run(all_answers, chosen, spread)
    for by_format in by_rank:
        for name, given in zip(names, by_format, strict=True):
            for one, other, size in zip(others_answers(), given, SIZES, strict=True):
                found = difference(one, other, batch_of(size), TOLERANCE["float32"])
                assert found is None, f"{name}, batch of {size}: {found}"
            # The same shards of the same weights: the same bits, whatever the files.
            assert all(
                torch.equal(one.logits, other.logits)
                for one, other in zip(by_format[0], given, strict=True)
            ), name


class RawMetaFiles:
    """A Meta checkpoint as it lies on disk, its files put together by fairscale's rules."""

    shape: ModelShape = SHAPE

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("consolidated.*.pth"))
        self._parts = [torch.load(file, weights_only=True) for file in files]

    def read(self, source: str) -> Tensor:
        parts = [part[source] for part in self._parts]
        if "norm" in source:
            return parts[0]
        by_columns = ("tok_embeddings.weight", ".wo.weight", ".w2.weight")
        return torch.cat(parts, dim=1 if source.endswith(by_columns) else 0)


@pytest.mark.parametrize("name", ["meta 1 file", "meta 8 files"])
def test_metas_own_rotation_of_the_raw_files_gives_the_same_logits(
    name: str, folders: dict[str, Path]
) -> None:
    """Writer and reader permute wq and wk; that both are wrong alike would show only here."""
    raw = RawMetaFiles(folders[name])
    given = answers(World(), folders[name], SPREADS[0], "float64", (1,))[0]
    expected = plain_logits(raw, prompts(1)[0], adjacent_pairs=True)
    assert (given.logits[0] - expected).abs().max() < TOLERANCE["float64"]
