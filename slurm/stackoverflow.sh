#!/usr/bin/env bash
# StackOverflow next words, transformer: 1 server and 10 client ranks.
#     sbatch [--signal=B:USR1@SECONDS] slurm/stackoverflow.sh [key=value ...]
# It checkpoints and is requeued so many seconds before its time is over (up to 60 earlier).
# 4 + 4 + 3 ranks: with 4 GPUs a node each client rank has one of its own, since the server, on the
# first node, takes none. At most so many ranks a node: GPUs + 1; with other --nodes and --ntasks see
# docs/clusters.md. GPUs are asked for by the site's gpus_per_node, by sbatch's option of that
# name, or where one # goes from the line below (a cluster without GPUs would refuse the job).
#SBATCH --job-name=stackoverflow
#SBATCH --nodes=3
#SBATCH --ntasks=11
#SBATCH --ntasks-per-node=5
##SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

common=${SLURM_SUBMIT_DIR:-.}/slurm/common.sh
[[ -e $common ]] || { echo "submit from the checkout: there is no $common" >&2; exit 2; }
source "$common"
run_job stackoverflow "$@"
