"""One study: its folder, ledger and lock, and where each of its cases stands."""
