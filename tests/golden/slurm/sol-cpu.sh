#!/bin/bash
# Study report: 1 case
# Written by orch. By hand, in the folder of this file:
#     sbatch job.sh
#     bash job.sh                             # without Slurm
#SBATCH --job-name=orch-KEY
#SBATCH --comment=orch:KEY
#SBATCH --partition=public
#SBATCH --qos=public
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=122880M
#SBATCH --time=06:00:00
#SBATCH --output=%j_0_log.out
#SBATCH --open-mode=append
#SBATCH --export=NONE
#SBATCH --mail-user=%u@asu.edu
#SBATCH --mail-type=END,FAIL

# Nothing came along from the login node (--export=NONE); what is set here reaches srun's tasks.
export SLURM_EXPORT_ENV=ALL
# srun of Slurm 22.05 to 23.02 does not take it over from sbatch.
export SRUN_CPUS_PER_TASK=32
export PYTHONPATH=/checkout
export PYTHONNOUSERSITE=1

# The cluster's profile asks for:
if type module >/dev/null 2>&1; then module purge; module load mamba/latest; fi

job=job-0.json
if [ -n "$SLURM_JOB_ID" ]; then
    # How jobs.launch starts a case's workers: a step of their own, which ends as one.
    export ORCH_SRUN='srun --kill-on-bad-exit=1 --wait=60 --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=32'
fi
exec /env/bin/python -m jobs.launch "$job"
