"""Random weights in any slice, and a rank's slices put into its module."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.llama import Llama
from kernels.placement import Slice, owned_slices, place
from kernels.shapes import KNOWN, ModelShape, tensors
from kernels.strategies import Parallel, Single
from kernels.weights import RandomWeights, WeightsError, load_into

SHAPE = ModelShape(
    dim=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    ffn_dim=80,
    vocab_size=96,
    qkv_bias=True,
)
WHOLE = RandomWeights(SHAPE, 7, torch.float32)


@settings(deadline=None)  # the first read also makes the pool
@given(data=st.data())
def test_any_slice_of_random_weights_is_that_slice_of_the_whole(
    data: st.DataObject,
) -> None:
    name = data.draw(st.sampled_from(sorted(tensors(SHAPE))))
    dims = tensors(SHAPE)[name]
    dim = data.draw(st.integers(0, len(dims) - 1))
    start = data.draw(st.integers(0, dims[dim] - 1))
    owned = range(start, data.draw(st.integers(start + 1, dims[dim])))
    part = WHOLE.read(name, dim, owned)
    assert torch.equal(part, WHOLE.read(name).narrow(dim, start, len(owned)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_the_rounding_of_the_same_random_weights(
    dtype: torch.dtype,
) -> None:
    other = RandomWeights(SHAPE, 7, dtype)
    for name in tensors(SHAPE):
        assert torch.equal(other.read(name), WHOLE.read(name).to(dtype)), name


def test_random_weights_differ_by_seed_tensor_and_row() -> None:
    name = "layers.0.feed_forward.w1.weight"
    whole = WHOLE.read(name)
    assert not torch.equal(whole, RandomWeights(SHAPE, 8, torch.float32).read(name))
    assert not torch.equal(whole, WHOLE.read("layers.1.feed_forward.w1.weight"))
    assert len({tuple(row) for row in whole.tolist()}) == SHAPE.ffn_dim


def test_random_weights_keep_the_variance_of_what_they_multiply() -> None:
    x = torch.randn(1000, SHAPE.dim, generator=torch.Generator().manual_seed(0))
    for name in ("attention.wq", "attention.wo", "feed_forward.w1"):
        y = x @ WHOLE.read(f"layers.0.{name}.weight").T
        assert 0.5 < y.std() < 2, name
    assert abs(WHOLE.read("norm.weight").mean() - 1) < 0.1


def test_the_random_weights_of_a_large_model_are_made_by_the_slice() -> None:
    shape = KNOWN["llama-3.1-405b"]
    weights = RandomWeights(shape, 0, torch.bfloat16)
    part = weights.read("layers.125.feed_forward.w2.weight", 1, range(53000, 53248))
    assert part.shape == (16384, 248)
    assert part.untyped_storage().nbytes() == part.nbytes  # nothing wider behind it


def test_random_weights_of_a_seed_stay_what_they_are() -> None:
    """Records name a seed: were its weights to change, old and new digests would not compare."""
    row = WHOLE.read("layers.1.attention.wo.weight", 0, range(5, 6))[0, :4]
    assert row.tolist() == [
        0.07063326239585876, 0.20713192224502563, -0.05590808391571045, 0.059464722871780396
    ]  # fmt: skip


def test_a_random_model_has_no_other_tensors() -> None:
    with pytest.raises(
        WeightsError, match=r"no tensor layers\.2\.attention\.wq\.weight"
    ):
        WHOLE.read("layers.2.attention.wq.weight")


def on_meta(shape: ModelShape) -> Llama:
    with torch.device("meta"):
        return Llama(shape)


def slices_of(shape: ModelShape) -> dict[str, Slice]:
    return owned_slices(place(Parallel(single=Single()), shape, 0), shape)


def test_load_into_fills_every_parameter_in_the_wanted_dtype() -> None:
    model = on_meta(SHAPE)
    load_into(model, slices_of(SHAPE), WHOLE, "cpu", torch.float64)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float64
        assert not parameter.requires_grad
        assert torch.equal(parameter, WHOLE.read(name).double()), name


def test_load_into_takes_slices() -> None:
    linear = nn.Linear(20, 48, bias=False, device="meta")
    source = "layers.0.feed_forward.w2.weight"
    part = Slice(source=source, dim=1, owned=range(30, 50))
    load_into(linear, {"weight": part}, WHOLE, "cpu", torch.float32)
    assert torch.equal(linear.weight, WHOLE.read(source)[:, 30:50])


def test_load_into_reports_bytes_up_to_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    load_into(
        on_meta(SHAPE), slices_of(SHAPE), WHOLE, "cpu", torch.float32,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert len(seen) == len(tensors(SHAPE))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_tied_head_shares_the_embeddings_memory() -> None:
    shape = ModelShape(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8, vocab_size=40,
        tied_embeddings=True,
    )  # fmt: skip
    model = on_meta(shape)
    weights = RandomWeights(shape, 0, torch.float32)
    load_into(model, slices_of(shape), weights, "cpu", torch.float32)
    pointers = {
        name: parameter.data_ptr()
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    assert pointers["output.weight"] == pointers["tok_embeddings.weight"]


def test_a_parameter_of_another_shape_than_its_slice_is_refused_by_name() -> None:
    linear = nn.Linear(10, 10, bias=False, device="meta")
    part = Slice(source="layers.0.feed_forward.w2.weight")
    with pytest.raises(
        WeightsError, match=r"weight must be \[10, 10\].*w2.*\[48, 80\]"
    ):
        load_into(linear, {"weight": part}, WHOLE, "cpu", torch.float32)


def test_a_parameter_without_a_slice_is_refused_by_name() -> None:
    model = on_meta(SHAPE)
    slices = slices_of(SHAPE)
    del slices["layers.1.attention.wk.bias"]
    with pytest.raises(WeightsError, match=r"layers\.1\.attention\.wk\.bias"):
        load_into(model, slices, WHOLE, "cpu", torch.float32)
