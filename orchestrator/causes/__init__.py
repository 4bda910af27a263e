"""Why a job or its workers ended: signatures in logs, Slurm's states."""
