"""Writes a checkpoint of seeded random weights in a genuine format, with a tokenizer.

    python -m jobs.make_checkpoint FOLDER --format hf
    python -m jobs.make_checkpoint FOLDER --format meta --like llama-2-7b --shards 2

For tests and demonstrations where no trained weights are at hand, and for measuring: how fast a
model runs does not depend on what it learnt. Options override the shape that --like names; without
it, a toy of 4 layers. Written aside and renamed at the end: FOLDER is never half a checkpoint.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from jobs.hf_writer import write_hf
from jobs.meta_writer import write_meta
from jobs.toy_tokenizer import train_tokenizer
from kernels.shapes import KNOWN, ModelShape, RopeScaling, ShapeError, weight_bytes
from kernels.weights import RandomWeights, Weights
from orchestrator.errors import InputError, OrchError, nearest

TOY = ModelShape(
    dim=256, n_layers=4, n_heads=8, n_kv_heads=4, ffn_dim=704, vocab_size=2048
)
"""What is written when nothing is said of the shape."""
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def shape_from(like: str | None, options: dict[str, Any]) -> ModelShape:
    """The shape named `like` (default: `TOY`) with the options that are not None put over it.

    Raises:
        InputError: the name is not known or the numbers contradict each other.
    """
    if like is not None and like not in KNOWN:
        raise InputError(f"no model {like!r}: {nearest(like, KNOWN)}")
    base = TOY if like is None else KNOWN[like]
    given = {name: value for name, value in options.items() if value is not None}
    factor = given.pop("rope_factor", None)
    if given.keys() & {"dim", "n_heads"} and "head_dim" not in given:
        given["head_dim"] = 0
    if "n_heads" in given:
        given.setdefault("n_kv_heads", given["n_heads"])
    try:
        if factor is not None:
            given["rope_scaling"] = RopeScaling(factor=factor)
        return replace(base, **given)
    except ShapeError as error:
        raise InputError(str(error)) from error


def parse_bytes(text: str) -> int:
    """`5GB`, `300MB` or a plain number as bytes, decimal as transformers counts them.

    Raises:
        InputError: it is neither.
    """
    found = re.fullmatch(r"(\d+) ?([kmg]?)b?", text.strip().lower())
    if not found or not int(found[1]):
        raise InputError(f"a size is a number with KB, MB or GB after it, got {text!r}")
    return int(found[1]) * _BYTES[found[2]]


def make_checkpoint(
    folder: Path,
    format: str,
    weights: Weights,
    *,
    shards: int = 1,
    embedding_split: str = "columns",
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
) -> None:
    """Writes `weights` and a tokenizer of their vocabulary into the new folder.

    Raises:
        InputError: something is there already, or the format cannot express what is asked.
    """
    if format == "hf" and shards != 1:
        raise InputError(
            f"Hugging Face's files are cut by size, not into {shards}: take --max-shard-size, "
            f"or --format meta"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not empty; remove it or name another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}-{os.getpid()}"
    aside.mkdir()
    try:
        size = weights.shape.vocab_size if tokenizer else None
        if size is not None:
            train_tokenizer(aside / "tokenizer.model", size)
        if format == "hf":
            limit = parse_bytes(max_shard_size)
            write_hf(aside, weights, max_file_bytes=limit, has_tokenizer=tokenizer)
        else:
            write_meta(
                aside,
                weights,
                num_files=shards,
                embedding_split="rows" if embedding_split == "rows" else "columns",
                tokenizer_size=size,
            )
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Watched:
    """Weights that tell how many bytes were read."""

    def __init__(self, weights: Weights, tell: Callable[[int], object]) -> None:
        self.shape, self.dtype = weights.shape, weights.dtype
        self._weights = weights
        self._tell = tell

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        part = self._weights.read(source, dim, owned)
        self._tell(part.nbytes)
        return part


@click.command(
    help=(__doc__ or "").split("\n", 1)[0],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["meta", "hf"]), required=True)
@click.option("--like", metavar="MODEL", help="Start from a known shape: llama-2-7b …")
@click.option("--dim", type=int)
@click.option("--n-layers", type=int)
@click.option("--n-heads", type=int)
@click.option(
    "--n-kv-heads", type=int, help="Default where --n-heads is given: as many."
)
@click.option("--head-dim", type=int, help="Default: dim / n-heads.")
@click.option("--ffn-dim", type=int)
@click.option("--vocab-size", type=int)
@click.option("--norm-eps", type=float)
@click.option("--rope-theta", type=float)
@click.option(
    "--rope-factor", type=float, help="Llama-3.1's scaling of the wavelengths."
)
@click.option("--max-seq-len", type=int)
@click.option("--sliding-window", type=int)
@click.option("--tied/--untied", "tied_embeddings", default=None)
@click.option("--qkv-bias/--no-qkv-bias", default=None)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "bfloat16", "float16"]),
    default="bfloat16",
    show_default=True,
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--shards",
    type=click.IntRange(1, 99),
    default=1,
    show_default=True,
    help="Meta: number of consolidated files.",
)
@click.option(
    "--embedding-split",
    type=click.Choice(["columns", "rows"]),
    default="columns",
    show_default=True,
    help="Meta: how the files share the embedding; Llama-2 columns, Llama-3 rows.",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    help="HF: largest safetensors file.",
)
@click.option("--tokenizer/--no-tokenizer", default=True)
def main(
    folder: Path,
    format: str,
    like: str | None,
    dtype: str,
    seed: int,
    shards: int,
    embedding_split: str,
    max_shard_size: str,
    tokenizer: bool,
    **options: Any,
) -> None:
    try:
        shape = shape_from(like, options)
        size = weight_bytes(shape, dtype)
        weights = RandomWeights(shape, seed, getattr(torch, dtype))
        with click.progressbar(
            length=size, label=f"Writing {folder}", file=sys.stderr
        ) as bar:
            make_checkpoint(
                folder,
                format,
                _Watched(weights, bar.update),
                shards=shards,
                embedding_split=embedding_split,
                max_shard_size=max_shard_size,
                tokenizer=tokenizer,
            )
    except (OrchError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    gib = size / 2**30
    click.echo(f"{folder}: {format}, {shape.n_layers} layers, {gib:.3g} GiB", err=True)


if __name__ == "__main__":
    main()
