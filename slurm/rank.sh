#!/usr/bin/env bash
# One rank of a job: rank.sh FLAG COMMAND...
# Exit code 75 (checkpointed) becomes the file FLAG and exit code 0: at any other code srun and
# mpirun kill the ranks that are still busy, perhaps the one that writes the checkpoint.
trap '' USR2    # must not end a rank that does not listen to it yet
trap : INT TERM # are for the rank; wait for what it makes of them
if [[ $FEDGMR_MPI == torch ]]; then # what torchrun would set
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
fi
flag=$1
shift
code=0
"$@" || code=$?
if ((code > 128)); then # died of a signal: so does this, which MPICH's mpirun looks for
  trap - USR2 INT TERM
  kill -$((code - 128)) $$
fi
((code == 75)) || exit "$code"
: >"$flag"
