"""Checks that a model's logits are numbers: NaN and infinity choose ids like any others."""

import torch
from torch import Tensor

from kernels.generate import Batch


def not_finite(logits_BTV: Tensor, batch: Batch) -> list[str]:
    """What is wrong with the logits of these prompts, padding aside; [] if nothing is."""
    positions_T = torch.arange(batch.length)
    real_BT = positions_T >= batch.pad_B[:, None]
    wrong = int((~logits_BTV.isfinite()).any(-1)[real_BT].sum())
    if wrong:
        return [f"the logits of {wrong} prompt tokens are not finite numbers"]
    return []


def last_tokens(batch: Batch, vocab_size: int, elements: int = 1 << 24) -> Batch:
    """The prompts, cut at the front so that their logits are at most so many numbers."""
    keep = max(1, min(batch.length, elements // (batch.size * vocab_size)))
    cut = batch.length - keep
    return Batch(batch.ids_BT[:, cut:], (batch.pad_B - cut).clamp(min=0))
