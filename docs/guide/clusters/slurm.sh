#!/bin/bash
# A batch as a Slurm array: sbatch slurm.sh zoo.yaml
# Everything named here lies on a file system that all nodes share. Run again, it does what is left; single tasks are done again with
#   sbatch --array=3,5 slurm.sh zoo.yaml
#SBATCH --job-name=ligo-batch
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail
parts=8   # how many tasks the whole array above has: said here, so that an array of some of them does just their parts
source "$HOME/ligo/bin/activate"
# srun passes signals on: a task that is asked to stop leaves its work staged, for the next one to go on with. Since Slurm 22.05 it gives
# one core, unless told how many.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ligo-convert batch "$1" --shard "$SLURM_ARRAY_TASK_ID/$parts" --jobs 1 --json \
    > "batch-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID.json"
