"""Signals to end are waited for, not handled asynchronously: they interrupt nothing."""

import signal
import time
from types import TracebackType

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """A context in which a signal to end, or a child's death, does nothing but wake `wait`.

    A signal that the caller ignores (under nohup, or in a shell's background) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal to end; later ones do not replace it."""
        self._ending = {
            each for each in _ENDING if signal.getsignal(each) != signal.SIG_IGN
        }
        self._waited = {*self._ending, signal.SIGCHLD}

    def __enter__(self) -> "Signals":
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Signals that are still pending would take effect as soon as they are unblocked.
        while signal.sigtimedwait(self._waited, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def unblock(self) -> None:
        """Restore the caller's signal mask; for a child between fork and exec."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> None:
        """Return after that time, or as soon as a child dies or a signal to end arrives."""
        if self.received is not None:
            seconds = min(seconds, 0.1)
        caught = signal.sigtimedwait(self._waited, max(seconds, 0))
        # After SIGSTOP and SIGCONT, sigtimedwait may return a number that is no signal at all.
        if caught is not None and caught.si_signo in self._ending:
            self.received = self.received or signal.Signals(caught.si_signo)

    def sleep(self, seconds: float) -> bool:
        """Sleep for that time. Return False as soon as a signal to end has arrived."""
        until = time.monotonic() + seconds
        while self.received is None and time.monotonic() < until:
            self.wait(until - time.monotonic())
        return self.received is None
