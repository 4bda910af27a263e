"""What a result must pass to count: each check gives the sentences that say why it does not."""

import hashlib
from collections.abc import Sequence

from torch import Tensor

from kernels.generate import NOTHING
from orchestrator.case import Case


def digest(ids_BN: Tensor) -> str:
    """SHA-256 of generated ids: rows of decimal numbers."""
    rows = (" ".join(map(str, row)) for row in ids_BN.tolist())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def output_tokens(ids_BN: Tensor) -> int:
    """Return tokens generated over all sequences, none counted after an end token."""
    return int((ids_BN != NOTHING).sum())


def check_ids(ids_BN: Tensor, case: Case, vocab_size: int) -> list[str]:
    """Check that ids are as many as asked for, and of the vocabulary. Return what is wrong."""
    rows = case.strategy.sequences(case.batch_size)
    wanted = f"{rows} rows of {case.new_tokens} tokens"
    shape = "×".join(map(str, ids_BN.shape))
    if not output_tokens(ids_BN):
        return [f"no token was generated, {wanted} were asked for"]
    problems = []
    if tuple(ids_BN.shape) != (rows, case.new_tokens):
        problems.append(f"{wanted} were asked for, {shape} came")
    elif not case.stop_at_eos and output_tokens(ids_BN) < ids_BN.numel():
        problems.append(f"{wanted} were asked for, only {output_tokens(ids_BN)} came")
    kept = ids_BN[ids_BN != NOTHING]
    outside = kept[(kept < 0) | (kept >= vocab_size)]
    if outside.numel():
        problems.append(
            f"{outside.numel()} ids are outside the vocabulary of {vocab_size}, "
            f"such as {int(outside[0])}"
        )
    return problems


def check_times(times: Sequence[float], case: Case, had_rows: bool) -> list[str]:
    """Check that a rank with rows marked every token, and that the first one took time."""
    fewest = 0 if not had_rows else 1 if case.stop_at_eos else case.new_tokens
    if not fewest <= len(times) <= case.new_tokens:
        return [f"{len(times)} of {case.new_tokens} tokens were timed"]
    if times and times[0] <= 0:
        return ["the first token took no time"]
    return []


def check_repeats(digests: Sequence[str]) -> list[str]:
    """Check that the same prompts and seed gave the same ids each time."""
    kinds = len(set(digests))
    if kinds > 1:
        return [f"{len(digests)} repeats of the same work gave {kinds} different texts"]
    return []


def check_ranks(digests: Sequence[Sequence[str]]) -> list[str]:
    """Check that every rank holds the same ids; `digests` are each rank's."""
    differing = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if differing:
        return [f"ranks disagree on the ids: {differing} differ from rank 0"]
    return []
