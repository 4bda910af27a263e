"""The supervisor that a job runs: it starts torchrun for each case and files what came of it."""
