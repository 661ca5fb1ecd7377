#!/usr/bin/env bash
# FEMNIST by writer, Conv2: 1 server and 10 client ranks.
#     sbatch [--signal=B:USR1@SECONDS] slurm/femnist.sh [key=value ...]
# It checkpoints and is requeued so many seconds before its time is over (up to 60 earlier).
# GPUs, which client ranks take in turn: the site's gpus_per_node, sbatch's option of that name, or
# without one # of the line below.
#SBATCH --job-name=femnist
#SBATCH --nodes=1
#SBATCH --ntasks=11
##SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

common=${SLURM_SUBMIT_DIR:-.}/slurm/common.sh
[[ -e $common ]] || { echo "submit from the checkout: there is no $common" >&2; exit 2; }
source "$common"
run_job femnist "$@"
