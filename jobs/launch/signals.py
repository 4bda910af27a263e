"""Signals that are waited for instead of interrupting, so that no moment is a bad one for them."""

import signal
import time
from types import TracebackType

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """While entered, requests to end and the deaths of children wake `wait`, nothing else.

    A signal that the caller had set to be ignored (nohup, a shell's background) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first request to end; it stands once it came."""
        heeded = [each for each in _ENDING if signal.getsignal(each) != signal.SIG_IGN]
        self._waited = {*heeded, signal.SIGCHLD}

    def __enter__(self) -> "Signals":
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while signal.sigtimedwait(self._waited, 0):
            pass  # taken off, or they would strike when unblocked
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def unblock(self) -> None:
        """For a child between fork and exec: give it the mask that the caller had."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> None:
        """Return after that time, or as soon as a child dies or a request to end comes."""
        if self.received is not None:
            seconds = min(seconds, 0.1)
        caught = signal.sigtimedwait(self._waited, max(seconds, 0))
        if caught is not None and caught.si_signo != signal.SIGCHLD:
            self.received = self.received or signal.Signals(caught.si_signo)

    def rest(self, seconds: float) -> None:
        """Sleep for that time, unless a request to end comes or has come."""
        until = time.monotonic() + seconds
        while self.received is None and time.monotonic() < until:
            self.wait(until - time.monotonic())
