"""Write a checkpoint of seeded random weights in a genuine format, with a tokenizer.

    python -m jobs.make_checkpoint FOLDER --format hf
    python -m jobs.make_checkpoint FOLDER --format meta --like llama-2-7b --shards 2

For tests and demonstrations without trained weights, and for measurements: how fast a model runs
does not depend on what it has learnt. Size options override the model that --like names, or a toy
of 4 layers. Everything is written aside and renamed last: FOLDER never holds half a checkpoint.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor

from jobs.toy_tokenizer import train_tokenizer
from kernels.checkpoints.hf_writer import write_hf
from kernels.checkpoints.meta_writer import write_meta
from kernels.shapes import KNOWN, ModelShape, ShapeError, weight_bytes
from kernels.weights import RandomWeights, Weights
from orchestrator.errors import InputError, OrchError, nearest

TOY = ModelShape(
    dim=256, n_layers=4, n_heads=8, n_kv_heads=4, ffn_dim=704, vocab_size=2048
)
"""What is written where no option names a shape."""


def shape_from(like: str | None, sizes: dict[str, int | None]) -> ModelShape:
    """Return the shape named `like` (None: `TOY`), with the sizes that are not None replaced.

    Raises:
        InputError: the name is not known, or the sizes contradict each other.
    """
    if like is not None and like not in KNOWN:
        raise InputError(f"no model {like!r}: {nearest(like, KNOWN)}")
    given: dict[str, Any] = {
        name: value for name, value in sizes.items() if value is not None
    }
    if given.keys() & {"dim", "n_heads"}:
        given["head_dim"] = 0
    if "n_heads" in given:
        given.setdefault("n_kv_heads", given["n_heads"])
    try:
        return replace(TOY if like is None else KNOWN[like], **given)
    except ShapeError as error:
        raise InputError(str(error)) from error


def make_checkpoint(
    folder: Path,
    format: str,
    weights: Weights,
    *,
    shards: int = 1,
    max_shard_bytes: int = 5 * 10**9,
    tokenizer: bool = True,
) -> None:
    """Write `weights`, and a tokenizer of their vocabulary, into the new folder.

    Raises:
        InputError: the folder is not empty, or the format cannot express what is asked.
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
    size = weights.shape.vocab_size if tokenizer else None
    try:
        if size is not None:
            train_tokenizer(aside / "tokenizer.model", size)
        if format == "hf":
            write_hf(aside, weights, max_shard_bytes, has_tokenizer=tokenizer)
        else:
            write_meta(aside, weights, num_files=shards, tokenizer_size=size)
        aside.replace(folder)
    except ShapeError as error:
        raise InputError(str(error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Watched:
    """Weights that report how many bytes were read."""

    def __init__(self, weights: Weights, report: Callable[[int], object]) -> None:
        self.shape, self.dtype = weights.shape, weights.dtype
        self._weights = weights
        self._report = report

    def read(self, source: str, dim: int = 0, owned: range | None = None) -> Tensor:
        part = self._weights.read(source, dim, owned)
        self._report(part.nbytes)
        return part


def _size(_context: click.Context, _option: click.Parameter, text: str) -> int:
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    # At least a MB: pydantic reads "1,5 GB" as one byte.
    if size < 10**6:
        raise click.BadParameter(f"a size is 1MB or more, as in 5GB, got {text!r}")
    return int(size)


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
@click.option("--n-kv-heads", type=int, help="Default with --n-heads: as many.")
@click.option("--ffn-dim", type=int)
@click.option("--vocab-size", type=int)
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
    "--max-shard-size",
    "max_shard_bytes",
    callback=_size,
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
    max_shard_bytes: int,
    tokenizer: bool,
    **sizes: Any,
) -> None:
    try:
        shape = shape_from(like, sizes)
        num_bytes = weight_bytes(shape, dtype)
        weights = RandomWeights(shape, seed, getattr(torch, dtype))
        with click.progressbar(
            length=num_bytes, label=f"Writing {folder}", file=sys.stderr
        ) as bar:
            make_checkpoint(
                folder,
                format,
                _Watched(weights, bar.update),
                shards=shards,
                max_shard_bytes=max_shard_bytes,
                tokenizer=tokenizer,
            )
    except (OrchError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    gib = num_bytes / 2**30
    click.echo(f"{folder}: {format}, {shape.n_layers} layers, {gib:.3g} GiB", err=True)


if __name__ == "__main__":
    main()
