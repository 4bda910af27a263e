#!/bin/bash
# Study report: 1 case
# Written by orch. By hand, in the folder of this file:
#     sbatch job.sh
#     bash job.sh                             # without Slurm
#SBATCH --job-name=orch-KEY
#SBATCH --comment=orch:KEY
#SBATCH --account=x
#SBATCH --partition=booster
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --time=00:30:00
#SBATCH --output=%j_0_log.out
#SBATCH --open-mode=append
#SBATCH --gres=gpu:4
#SBATCH --exclusive

# What an allocation around `orch submit` may have left.
unset "${!SBATCH_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
# srun of Slurm 22.05 to 23.02 does not take it over from sbatch.
export SRUN_CPUS_PER_TASK=48
export PYTHONPATH=/checkout
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0

job=job-0.json
if [ -n "$SLURM_JOB_ID" ]; then
    # How jobs.launch starts a case's workers: a step of their own, which ends as one.
    export ORCH_SRUN='srun --kill-on-bad-exit=1 --wait=60 --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=48'
    # Where the nodes meet: the first one, at a port of this job's own.
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export ORCH_NODES=2
    export ORCH_RENDEZVOUS="$first"i:$((10000 + SLURM_JOB_ID % 20000))
fi
exec /env/bin/python -m jobs.launch "$job"
