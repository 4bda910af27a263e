#!/bin/bash
# Study report: 1 case
# Written by orch. By hand, in the folder of this file:
#     sbatch job.sh
#     bash job.sh                             # without Slurm
#SBATCH --job-name=orch-KEY
#SBATCH --comment=orch:KEY
#SBATCH --partition=gpu-a100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:30:00
#SBATCH --output=%j_0_log.out
#SBATCH --open-mode=append

# What an allocation around `orch submit` may have left.
unset "${!SBATCH_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
# srun of Slurm 22.05 to 23.02 does not take it over from sbatch.
export SRUN_CPUS_PER_TASK=84
export PYTHONPATH=/checkout

job=job-0.json
if [ -n "$SLURM_JOB_ID" ]; then
    # How jobs.launch starts a case's workers: a step of their own, which ends as one.
    export ORCH_SRUN='srun --kill-on-bad-exit=1 --wait=60 --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=84'
fi
exec /env/bin/python -m jobs.launch "$job"
