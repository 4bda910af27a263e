"""Which rank owns which layers, heads and rows. Integers only, no torch.

The forecast on the login node and the real placement in a job read the same functions, so
they cannot disagree. Ranks are numbered with the tensor shard fastest, then the stage, then
the replica: neighbours in a tensor group sit on one node.

    strategy tensor 2 × stages 2          rank 0   rank 1   rank 2   rank 3
    (4 layers, 8 heads)           layers  0-1      0-1      2-3      2-3
                                  heads   0-3      4-7      0-3      4-7
"""

from dataclasses import dataclass

from kernels.shapes import ModelShape, layer_tensors
from kernels.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The part of one checkpoint tensor that a rank owns."""

    source: str
    """Name in the checkpoint; differs from the parameter's for a tied output head."""
    dim: int = 0
    owned: range | None = None
    """Indices along `dim`; None stands for the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What one rank owns, in global indices."""

    rank: int
    replica: int
    stage: int
    shard: int
    layers: range
    heads: range
    kv_heads: range
    ffn: range
    vocab: range
    is_first: bool
    """Holds the embedding."""
    is_last: bool
    """Holds the final norm and the output head."""


def split_evenly(count: int, parts: int) -> list[range]:
    """`count` indices in `parts` consecutive ranges whose lengths differ by at most one.

    The longer ranges come first: the last stage also computes the output head.

    >>> split_evenly(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    size, longer = divmod(count, parts)
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return [range(starts[part], starts[part + 1]) for part in range(parts)]


def stage_layers(strategy: Strategy, n_layers: int) -> list[range]:
    """Return the layers of each stage, first stage first."""
    if not strategy.split:
        return split_evenly(n_layers, strategy.stages)
    starts = [sum(strategy.split[:stage]) for stage in range(strategy.stages + 1)]
    return [range(starts[stage], starts[stage + 1]) for stage in range(strategy.stages)]


def kv_heads_of(shape: ModelShape, tensor: int, shard: int) -> range:
    """The KV heads that the shard's query heads attend to; replicated where shards exceed them."""
    if tensor <= shape.n_kv_heads:
        return split_evenly(shape.n_kv_heads, tensor)[shard]
    head = shard * shape.n_kv_heads // tensor
    return range(head, head + 1)


def place(strategy: Strategy, shape: ModelShape, rank: int) -> Placement:
    """Return what `rank` owns. The strategy must have passed `impossible`."""
    shard = rank % strategy.shards
    stage = rank // strategy.shards % strategy.stages
    return Placement(
        rank=rank,
        replica=rank // (strategy.shards * strategy.stages),
        stage=stage,
        shard=shard,
        layers=stage_layers(strategy, shape.n_layers)[stage],
        heads=split_evenly(shape.n_heads, strategy.shards)[shard],
        kv_heads=kv_heads_of(shape, strategy.shards, shard),
        ffn=split_evenly(shape.ffn_dim, strategy.shards)[shard],
        vocab=split_evenly(shape.vocab_size, strategy.shards)[shard],
        is_first=stage == 0,
        is_last=stage == strategy.stages - 1,
    )


def axis_groups(strategy: Strategy) -> dict[str, list[list[int]]]:
    """Axis (`replicas`, `stages`, `shards`) → the groups of ranks that differ only along it.

    >>> from kernels.strategies import ModelParallel, Parallel, TensorParallel
    >>> two_by_two = Parallel(model=ModelParallel(degree=2), tensor=TensorParallel(degree=2))
    >>> axis_groups(two_by_two)["stages"]
    [[0, 2], [1, 3]]
    """
    strides = {
        "replicas": strategy.stages * strategy.shards,
        "stages": strategy.shards,
        "shards": 1,
    }
    sizes = {
        "replicas": strategy.replicas,
        "stages": strategy.stages,
        "shards": strategy.shards,
    }
    return {
        axis: [
            [first + step * stride for step in range(sizes[axis])]
            for first in range(strategy.world_size)
            if first // stride % sizes[axis] == 0
        ]
        for axis, stride in strides.items()
    }


def owned_slices(placement: Placement, shape: ModelShape) -> dict[str, Slice]:
    """Parameter name → the part of the checkpoint that the rank holds, in the order of use."""
    slices: dict[str, Slice] = {}
    if placement.is_first:
        slices["tok_embeddings.weight"] = Slice(
            source="tok_embeddings.weight", dim=0, owned=placement.vocab
        )
    for layer in placement.layers:
        for name in layer_tensors(shape):
            full = f"layers.{layer}.{name}"
            dim, owned = _layer_slice(placement, shape, name)
            slices[full] = Slice(source=full, dim=dim, owned=owned)
    if placement.is_last:
        slices["norm.weight"] = Slice(source="norm.weight")
        head = "tok_embeddings.weight" if shape.tied_embeddings else "output.weight"
        slices["output.weight"] = Slice(source=head, dim=0, owned=placement.vocab)
    return slices


def _layer_slice(
    placement: Placement, shape: ModelShape, name: str
) -> tuple[int, range | None]:
    # Megatron's pairing: outputs split in the first linear, inputs in the second, one sum after it.
    width = shape.head_dim
    part = name.split(".")[1]
    if part == "wq":
        return 0, _scaled(placement.heads, width)
    if part in ("wk", "wv"):
        return 0, _scaled(placement.kv_heads, width)
    if part == "wo":
        return 1, _scaled(placement.heads, width)
    if part in ("w1", "w3"):
        return 0, placement.ffn
    if part == "w2":
        return 1, placement.ffn
    return 0, None


def _scaled(heads: range, width: int) -> range:
    return range(heads.start * width, heads.stop * width)


def _tensor_degrees(shape: ModelShape) -> list[int]:
    kv = shape.n_kv_heads
    return [
        degree
        for degree in range(1, shape.n_heads + 1)
        if shape.n_heads % degree == 0 and (kv % degree == 0 or degree % kv == 0)
    ]


def impossible(strategy: Strategy, shape: ModelShape) -> list[str]:
    """Return why the strategy does not fit the model: a sentence for each reason; [] if it fits."""
    reasons = []
    ways = ", ".join(map(str, _tensor_degrees(shape)))
    if shape.n_heads % strategy.shards:
        reasons.append(
            f"the tensor degree must divide the attention heads: {strategy.shards} does not divide "
            f"{shape.n_heads}; take one of {ways}"
        )
    elif strategy.shards not in _tensor_degrees(shape):
        reasons.append(
            f"the tensor degree must divide the KV heads or be a multiple of them: "
            f"{strategy.shards} and {shape.n_kv_heads} are neither; take one of {ways}"
        )
    if strategy.stages > shape.n_layers:
        reasons.append(
            f"a stage needs at least one layer: {strategy.stages} stages for {shape.n_layers} "
            f"layers; take at most {shape.n_layers} stages"
        )
    if strategy.split and (
        len(strategy.split) != strategy.stages
        or sum(strategy.split) != shape.n_layers
        or min(strategy.split) < 1
    ):
        reasons.append(
            f"split must give each of {strategy.stages} stages at least one of "
            f"{shape.n_layers} layers, got {list(strategy.split)}"
        )
    if max(strategy.shards, 1) > shape.ffn_dim or strategy.shards > shape.vocab_size:
        reasons.append(
            f"every shard needs feed-forward columns and vocabulary rows: {strategy.shards} shards "
            f"for {shape.ffn_dim} and {shape.vocab_size}; take a lower tensor degree"
        )
    return reasons
