"""One file a command of `orch`."""
