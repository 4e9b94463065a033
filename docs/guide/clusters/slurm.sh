#!/bin/bash
# A batch as a Slurm array: sbatch slurm.sh zoo.yaml
# All paths are on a file system that all nodes share. Submit it again to do what is left; run single tasks again with
#   sbatch --array=3,5 slurm.sh zoo.yaml
#SBATCH --job-name=ligo-batch
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail
parts=8   # number of tasks of the whole array above, so that an array of some of them runs only their shards
source "$HOME/ligo/bin/activate"
# srun forwards signals: a task that is asked to stop leaves its work staged, and the next one continues. Since Slurm 22.05 it uses one core
# unless --cpus-per-task is given.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ligo-convert batch "$1" --shard "$SLURM_ARRAY_TASK_ID/$parts" --jobs 1 --json \
    > "batch-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID.json"
