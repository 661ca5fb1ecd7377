#!/usr/bin/env bash
# CIFAR-10, Dirichlet(0.6), VGG-11: 1 server and 10 client ranks.
#     sbatch [--signal=B:USR1@SECONDS] slurm/cifar10.sh [key=value ...]
# It checkpoints and is requeued so many seconds before its time is over (up to 60 earlier).
# With 4 GPUs a node each client rank has one: 3 + 4 + 3 beside the server on the first node.
#SBATCH --job-name=cifar10
#SBATCH --nodes=3
#SBATCH --ntasks=11
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

common=${SLURM_SUBMIT_DIR:-.}/slurm/common.sh
[[ -e $common ]] || { echo "submit from the checkout: there is no $common" >&2; exit 2; }
source "$common"
run_job cifar10 "$@"
