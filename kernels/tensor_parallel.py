"""Tensor parallel: every layer cut by attention heads and feed-forward columns (Megatron).

The first linear of each half-block is cut by outputs, the second by inputs, so that one sum
over the shards follows each half. The embedding and the output head are cut by vocabulary.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.llama import Attention, FeedForward, Llama
from kernels.placement import Placement, Slice, owned_slices
from kernels.world import Group


def tensor_parallel(model: Llama, placement: Placement, shards: Group) -> None:
    """Cut what the rank's shard owns out of a model on the meta device, and join the shards."""
    for name, part in owned_slices(placement, model.shape).items():
        _cut(model, name, part)
    # Hooks, not other classes: the layer's code stays that of a single device.
    for module in model.modules():
        if isinstance(module, Attention):
            module.n_heads = len(placement.heads)
            module.n_kv_heads = len(placement.kv_heads)
            module.wo.register_forward_hook(_sum_over(shards))
        elif isinstance(module, FeedForward):
            module.w2.register_forward_hook(_sum_over(shards))
    if model.tok_embeddings is not None:
        model.tok_embeddings = EmbeddingShard(
            model.tok_embeddings.get_parameter("weight"), placement.vocab, shards
        )


def _cut(model: Llama, name: str, part: Slice) -> None:
    if part.owned is None:
        return
    path, leaf = name.rsplit(".", 1)
    module = model.get_submodule(path)
    whole = module.get_parameter(leaf)
    size = list(whole.shape)
    size[part.dim] = len(part.owned)
    setattr(module, leaf, nn.Parameter(whole.new_empty(size)))
    # What a printed model shows, and what quantisers and fused kernels ask for.
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def _sum_over(
    shards: Group,
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def all_reduce(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        return shards.all_reduce(out)

    return all_reduce


class EmbeddingShard(nn.Module):
    """Some rows of the embedding; tokens of the other shards' rows come by a sum over shards."""

    def __init__(self, weight: nn.Parameter, vocab: range, shards: Group) -> None:
        super().__init__()
        self.weight = weight
        self._vocab = vocab
        self._shards = shards

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embed ids of the whole vocabulary: hidden states [B, T, D], the same on every shard."""
        # A token of another shard looks up row 0 here and adds zeros to the sum.
        local_BT = ids_BT - self._vocab.start
        elsewhere_BT = (local_BT < 0) | (local_BT >= len(self._vocab))
        x_BTD = F.embedding(local_BT.masked_fill(elsewhere_BT, 0), self.weight)
        x_BTD = x_BTD.masked_fill(elsewhere_BT[..., None], 0)
        return self._shards.all_reduce(x_BTD)
