#!/usr/bin/env bash
# One run for each seed of the array, at most two at a time.
#     sbatch [--array=0-4%2] [--signal=B:USR1@SECONDS] slurm/array.sh CONFIG [key=value ...]
# GPUs, which client ranks take in turn: the site's gpus_per_node, sbatch's option of that name, or
# without one # of the line below.
#SBATCH --job-name=seeds
#SBATCH --array=0-4%2
#SBATCH --nodes=1
#SBATCH --ntasks=11
##SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

common=${SLURM_SUBMIT_DIR:-.}/slurm/common.sh
[[ -e $common ]] || { echo "submit from the checkout: there is no $common" >&2; exit 2; }
source "$common"
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || refuse "SLURM_ARRAY_TASK_ID: not set: submit this script with sbatch"
(($#)) || refuse "CONFIG must be a run of configs/runs, or a file (got nothing)"
run_job "$1" seed="$SLURM_ARRAY_TASK_ID" "${@:2}"
