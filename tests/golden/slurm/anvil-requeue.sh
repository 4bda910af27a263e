#!/bin/bash
# Study report: 1 case
# Written by orch. By hand, in the folder of this file:
#     sbatch job.sh
#     bash job.sh                             # without Slurm
#SBATCH --job-name=orch-KEY
#SBATCH --comment=orch:KEY
#SBATCH --account=abc-gpu
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=112640M
#SBATCH --time=00:30:00
#SBATCH --output=%j_0_log.out
#SBATCH --open-mode=append
#SBATCH --export=NONE
#SBATCH --gpus-per-node=1
#SBATCH --requeue

# Nothing came along from the login node (--export=NONE); what is set here reaches srun's tasks.
export SLURM_EXPORT_ENV=ALL
# srun of Slurm 22.05 to 23.02 does not take it over from sbatch.
export SRUN_CPUS_PER_TASK=32
export PYTHONPATH=/checkout

job=job-0.json
if [ -n "$SLURM_JOB_ID" ]; then
    # How jobs.launch starts a case's workers: a step of their own, which ends as one.
    export ORCH_SRUN='srun --kill-on-bad-exit=1 --wait=60 --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=32 --mpi=pmi2'
fi
exec /env/bin/python -m jobs.launch "$job"
