"""Signals for all tests as in a terminal, however the tests were started."""

import signal

# `nohup` has its child ignore SIGHUP, and a script's `&` SIGINT; programs started by a test would
# inherit that. A handler is no part of what they inherit, and tests go on under nohup as before.
for _each in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_each) == signal.SIG_IGN:
        signal.signal(_each, lambda *_: None)
