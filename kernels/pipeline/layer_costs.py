"""What each layer costs in decode: time, weights, cache, messages. Numbers only, no torch.

The layers of a Llama differ only at the ends: the first comes with the embedding, the last with
the norm and the output head. Times are measured (`jobs.profiling.profile_layers`).
"""

from dataclasses import dataclass

from kernels.shapes import DTYPE_BYTES, ModelShape, layer_tensors, num_elements


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer; the first one with the embedding, the last one with the head."""

    seconds: float
    """Of one micro-batch's step on a device of speed 1."""
    weight_bytes: int
    kv_bytes: int
    """Keys and values of all sequences in flight."""
    activation_bytes: int
    """Of one micro-batch, passed to the next layer."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What goes through the layers in decode."""

    dtype: str
    """A key of `DTYPE_BYTES`."""
    rows: int
    """Of a micro-batch."""
    rows_in_flight: int
    context: int
    """Tokens in the cache of each sequence, at the end."""

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds of one decode step of one micro-batch."""

    layer_s: float
    embedding_s: float
    head_s: float
    """With the final norm."""


def layer_bytes(shape: ModelShape, load: Load) -> int:
    """Return the bytes of one layer's weights, without embedding and head."""
    return load.width * sum(map(num_elements, layer_tensors(shape).values()))


def layer_costs(times: LayerTimes, shape: ModelShape, load: Load) -> list[LayerCost]:
    """Return every layer's cost, first layer first."""
    table = load.width * shape.vocab_size * shape.dim
    costs = []
    for layer in range(shape.n_layers):
        is_first, is_last = layer == 0, layer == shape.n_layers - 1
        ends_s = times.embedding_s * is_first + times.head_s * is_last
        costs.append(
            LayerCost(
                seconds=times.layer_s + ends_s,
                weight_bytes=layer_bytes(shape, load) + table * (is_first + is_last),
                kv_bytes=load.rows_in_flight * _kv_bytes(shape, load),
                activation_bytes=load.rows * shape.dim * load.width,
            )
        )
    return costs


def _kv_bytes(shape: ModelShape, load: Load) -> int:
    # of one sequence in one layer
    return 2 * shape.n_kv_heads * shape.head_dim * load.context * load.width
