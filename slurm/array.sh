#!/usr/bin/env bash
# One run for each seed of the array, at most two at a time.
#     sbatch [--array=0-4%2] [--signal=B:USR1@SECONDS] slurm/array.sh CONFIG [key=value ...]
#SBATCH --job-name=seeds
#SBATCH --array=0-4%2
#SBATCH --nodes=1
#SBATCH --ntasks=11
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
config=${1:?is missing: CONFIG, a run of configs/runs}
enter_site
run_job "$config" seed="$SLURM_ARRAY_TASK_ID" "${@:2}"
