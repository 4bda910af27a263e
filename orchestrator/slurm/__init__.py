"""Slurm: what a job asks for, its script, its submission, and what Slurm says of it."""
