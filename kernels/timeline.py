"""Where engines report what they do, for the traced repetition (`jobs.tracing`) to record.

The kernels hold no clock: a timeline that records comes from outside, by `engine.watch`.
"""

from contextlib import AbstractContextManager, nullcontext


class Timeline:
    """A timeline that records nothing."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def at(self, token: int, micro_batch: int = 0) -> None:
        """What follows belongs to this token and micro-batch."""

    def span(
        self, kind: str, name: str, layer: int | None = None
    ) -> AbstractContextManager[None]:
        """Return a context around something of a kind (of `spans.KINDS`)."""
        return self._nothing


OFF = Timeline()
"""The timeline of every engine that is not traced."""
