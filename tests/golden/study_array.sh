#!/bin/bash

# Parameters
#SBATCH --account=abc123
#SBATCH --array=0-3%3
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=1
#SBATCH --gpus-per-node=2
#SBATCH --job-name=tiny
#SBATCH --mem=64G
#SBATCH --nodes=2
#SBATCH --ntasks=5
#SBATCH --ntasks-per-node=3
#SBATCH --open-mode=append
#SBATCH --output=/shared/out/cells/.jobs/0003/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=12:00:00

# setup
export FEDGMR_MODULES='gcc/13.2 openmpi/5.0'
export FEDGMR_VENV=/shared/venv
source '/shared/fedgmr hpc/slurm/common.sh'
enter_site
trap '' USR1

# command
export SUBMITIT_EXECUTOR=slurm
exec python -u -m submitit.core._submit /shared/out/cells/.jobs/0003
