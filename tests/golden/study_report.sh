#!/bin/bash

# Parameters
#SBATCH --account=abc123
#SBATCH --constraint=a100
#SBATCH --dependency=afterany:4711
#SBATCH --job-name=tiny-report
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/out/cells/.jobs/0003/report/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --signal=USR2@90
#SBATCH --time=12:00:00

# setup
export FEDGMR_MODULES='gcc/13.2 openmpi/5.0'
export FEDGMR_VENV=/shared/venv
source '/shared/fedgmr hpc/slurm/common.sh'
enter_site
trap '' USR1

# command
export SUBMITIT_EXECUTOR=slurm
exec python -u -m submitit.core._submit /shared/out/cells/.jobs/0003/report
