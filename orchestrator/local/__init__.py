"""This machine as a cluster: one job at a time, without Slurm."""
