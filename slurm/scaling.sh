#!/usr/bin/env bash
# A scaling study: runs on more and more ranks, one after the other, then a report of all.
#     sbatch slurm/scaling.sh strong|weak CONFIG --ranks 2,3,6,11 [--repeats N] [key=value ...]
# N ranks take N nodes while there are as many. A requeued job leaves out what has finished.
# At most 5 ranks a node (4 GPUs and the server); GPUs as in imagenet100.sh.
#SBATCH --job-name=scaling
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
(($# > 1)) || refuse "scaling must be given KIND CONFIG --ranks 2,3, as the verb scale (got '$*')"
run_scale "$@"
